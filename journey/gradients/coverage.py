"""Which measured parameters the rules of layers give gradients of, and which are left to autograd."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from math import prod

from torch import Tensor, nn

from journey.errors import CoverageError
from journey.gradients.names import name_some
from journey.gradients.rules import Contribution, Direct, Rule, find_rule
from journey.gradients.storage import is_computed_in
from journey.ops.geometry import tap_major
from journey.projectors.base import ParameterSlot


class Coverage:
    """Which of some parameters the rules of a model's layers cover.

    Args:
        model: The model.
        parameters: Those that are measured, by name.

    Attributes:
        rules: The layers with a rule that measured parameters are in.
        layers_of: Those that each parameter is in.
        slots: Where each parameter stands among all.
        uncovered: Names of the parameters that no rule covers.

    Raises:
        CoverageError: If a parameter is complex, or in a dtype that nothing is computed in.
    """

    def __init__(self, model: nn.Module, parameters: dict[str, nn.Parameter]) -> None:
        strange = [name for name, p in parameters.items() if p.is_complex()]
        if strange:
            raise CoverageError(
                f"parameters must be real, got complex {name_some(strange)}, whose gradient is two numbers for one; "
                "leave them out with select=..."
            )
        coarse = [name for name, p in parameters.items() if not is_computed_in(name, p, model)]
        if coarse:
            raise CoverageError(
                f"parameters must be in 16 bits or more to be measured, got {parameters[coarse[0]].dtype} in "
                f"{name_some(coarse)}; convert them, as with parameter.data = parameter.data.float()"
            )
        self.slots = parameter_slots(parameters)
        self._parameters = parameters
        self._slot_of = {id(p): self.slots[name] for name, p in parameters.items()}
        past_calls = _used_past_their_calls(model)
        self.rules: dict[nn.Module, Rule] = {}
        self.layers_of: dict[str, list[nn.Module]] = {name: [] for name in parameters}
        for module in model.modules():
            own = [self._slot_of[id(p)].name for p in module.parameters(recurse=False) if id(p) in self._slot_of]
            rule = find_rule(module) if own and module not in past_calls else None
            if rule is not None:
                self.rules[module] = rule
                for name in own:
                    self.layers_of[name].append(module)
        # A weight that is not a parameter itself, as under weight normalisation, leaves what it is made of uncovered.
        covered = {id(getattr(module, name, None)) for module in self.rules for name in ("weight", "bias")}
        self.uncovered: list[str] = []
        self.leave([name for name, p in parameters.items() if id(p) not in covered])

    @property
    def covered(self) -> list[str]:
        """Names of the parameters that a rule covers."""
        return [name for name in self._parameters if name not in self.uncovered]

    def leave(self, names: Collection[str]) -> None:
        """Leave some parameters to autograd, whatever layers they are in."""
        for name in names:
            self._slot_of.pop(id(self._parameters[name]), None)
            self.layers_of[name] = []
        self.uncovered = list(dict.fromkeys([*self.uncovered, *names]))
        left = {module for layers in self.layers_of.values() for module in layers}
        self.rules = {module: rule for module, rule in self.rules.items() if module in left}

    def leave_layer(self, layer: nn.Module) -> None:
        """Leave the parameters of one layer to autograd."""
        self.leave([name for name, layers in self.layers_of.items() if layer in layers])

    def contributions(
        self, module: nn.Module, x: Tensor, g: Tensor, num_groups: int
    ) -> Iterator[tuple[ParameterSlot, Contribution]]:
        """What a call of a layer gives to each parameter that its rule covers."""
        for contribution in self.rules[module](module, x, g, num_groups):
            slot = self._slot_of.get(id(getattr(module, contribution.parameter)))
            if slot is None:  # not trainable, not selected, or left to autograd
                continue
            if slot.taps > 1 and isinstance(contribution, Direct):
                contribution = contribution._replace(grads=tap_major(contribution.grads, slot.taps))
            yield slot, contribution


def parameter_slots(parameters: dict[str, nn.Parameter]) -> dict[str, ParameterSlot]:
    """Return where each of some named parameters stands among them, by name."""
    slots, offset = {}, 0
    for name, p in parameters.items():
        rows = p.shape[0] if p.dim() > 1 else 1
        slots[name] = ParameterSlot(name, rows, p.numel() // max(rows, 1), offset, prod(p.shape[2:]))
        offset += p.numel()
    return slots


def _used_past_their_calls(model: nn.Module) -> set[nn.Module]:
    """Layers whose weights are used by others too: DoRA takes the norm of what its layers' weights add up to."""
    adapted = [module for module in model.modules() if len(getattr(module, "lora_magnitude_vector", ()))]
    return {part for module in adapted for part in module.modules()}
