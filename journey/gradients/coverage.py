"""Which measured parameters the rules of layers give gradients of, which are given to each row, and which are left."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from math import prod

from torch import Tensor, nn

from journey.errors import CoverageError
from journey.gradients.hooks import UnservedLayer
from journey.gradients.names import name_some
from journey.gradients.per_row import Meetings, UnservedParameters
from journey.gradients.rules import Contribution, Direct, Rule, Summed, find_rule
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
        per_row: Parameters that no rule covers and code other than torch's uses, of which each row gets one of its own
            (``journey.gradients.per_row``), by name.
        meetings: What passes learn of those.
        uncovered: Names of the other parameters that no rule covers.

    Raises:
        CoverageError: If a parameter is complex, in a dtype that nothing is computed in, or made of other tensors.
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
        wrapped = [name for name, p in parameters.items() if hasattr(p, "__tensor_flatten__")]
        if wrapped:
            raise CoverageError(
                f"parameters must be plain tensors to be measured, got {type(parameters[wrapped[0]].data).__name__} in "
                f"{name_some(wrapped)}: a quantised base is frozen, network.requires_grad_(False), before its adapter "
                "is added"
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
        self.per_row: dict[str, nn.Parameter] = {}
        self.leave([name for name, p in parameters.items() if id(p) not in covered])
        # What torch's own modules do is known: where they have no rule, they do not look their parameters up.
        torchs = {id(p) for m in model.modules() if _is_torchs(m) for p in m.parameters(recurse=False)}
        self.per_row = {
            name: parameters[name]
            for name in self.uncovered
            if id(parameters[name]) not in torchs and parameters[name].dtype.itemsize > 1
        }
        self.uncovered = [name for name in self.uncovered if name not in self.per_row]
        self._reached: set[str] = set()

    @property
    def covered(self) -> list[str]:
        """Names of the parameters that are not left to autograd."""
        return [name for name in self._parameters if name not in self.uncovered]

    def leave(self, names: Collection[str]) -> None:
        """Leave some parameters to autograd, whatever layers they are in."""
        self.meetings = Meetings()
        for name in names:
            self.per_row.pop(name, None)
            self._slot_of.pop(id(self._parameters[name]), None)
            self.layers_of[name] = []
        self.uncovered = list(dict.fromkeys([*self.uncovered, *names]))
        left = {module for layers in self.layers_of.values() for module in layers}
        self.rules = {module: rule for module, rule in self.rules.items() if module in left}
        self._slots_in = {
            module: {name: self._slot_of[id(p)] for name, p in module._parameters.items() if id(p) in self._slot_of}
            for module in self.rules
        }

    def leave_unserved(self, error: UnservedLayer | UnservedParameters) -> None:
        """Leave to autograd the parameters that an error is about."""
        if isinstance(error, UnservedLayer):
            self.leave([name for name, layers in self.layers_of.items() if error.layer in layers])
        else:
            self.leave(error.names)

    def contributions(
        self, module: nn.Module, x: Tensor, g: Tensor, num_groups: int
    ) -> Iterator[tuple[ParameterSlot, Contribution | Summed]]:
        """What a call of a layer gives to each parameter that its rule covers."""
        slots = self._slots_in[module]
        for contribution in self.rules[module](module, x, g, num_groups):
            slot = slots.get(contribution.parameter)
            if slot is None:  # not trainable, not selected, or left to autograd
                continue
            if slot.taps > 1 and isinstance(contribution, Direct):
                contribution = contribution._replace(grads=tap_major(contribution.grads, slot.taps))
            yield slot, contribution

    def not_reached(self) -> list[str]:
        """Names of the parameters whose rows had no gradient so far, unless they were returned before."""
        names = [name for name in self.per_row if name not in self._reached]
        self._reached.update(names)
        return names

    def of_rows(self, name: str, grads: Tensor, num_groups: int) -> tuple[ParameterSlot, Contribution]:
        """What the gradients of every row [num_rows, *shape] give to a parameter of which each row has its own."""
        self._reached.add(name)
        slot = self.slots[name]
        summed = grads.float().reshape(num_groups, -1, slot.rows * slot.cols).sum(1)
        return slot, Direct(name, tap_major(summed.reshape(num_groups, slot.rows, slot.cols), slot.taps))


def parameter_slots(parameters: dict[str, nn.Parameter]) -> dict[str, ParameterSlot]:
    """Return where each of some named parameters stands among them, by name."""
    slots, offset = {}, 0
    for name, p in parameters.items():
        rows = p.shape[0] if p.dim() > 1 else 1
        slots[name] = ParameterSlot(name, rows, p.numel() // max(rows, 1), offset, prod(p.shape[2:]))
        offset += p.numel()
    return slots


def _is_torchs(module: nn.Module) -> bool:
    """Whether a module is one of torch's own that uses its parameters itself."""
    is_list = isinstance(module, nn.ParameterList | nn.ParameterDict)
    return type(module).__module__.partition(".")[0] == "torch" and not is_list


def _used_past_their_calls(model: nn.Module) -> set[nn.Module]:
    """Layers whose weights are used by others too: DoRA takes the norm of what its layers' weights add up to."""
    adapted = [module for module in model.modules() if len(getattr(module, "lora_magnitude_vector", ()))]
    return {part for module in adapted for part in module.modules()}
