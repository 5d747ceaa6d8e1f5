"""Per-sample gradients of a whole model in one backward pass, handed to a projector layer by layer.

Hooks keep each layer's input and receive the gradient of its output; the layer's rule
(``journey.gradients.rules``) turns the pair into parameter gradients per group of rows, and the projector adds
them to the features at once. Measured parameters have ``requires_grad=False`` meanwhile, so autograd computes no weight
gradient a second time, and no vmap is involved, so fused attention stays in use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from journey.errors import CoverageError
from journey.gradients.hooks import captured
from journey.gradients.names import describe_uncovered
from journey.gradients.rules import Contribution, Direct, Outer, Rule, find_rule
from journey.locks import exclusively
from journey.projectors.base import ParameterSlot, Projector

# Gradients of up to so many entries, biases and norms, are kept until the end of the backward pass and projected
# together: on a GPU a launch each would cost more than the work.
_DEFERRED_ENTRIES = 1 << 16

RowValues = Callable[[slice], Tensor]
"""A batch's measurement: takes a slice of rows, runs the model on them, returns differentiable values. [num_rows]"""

Receive = Callable[[ParameterSlot, list[Contribution]], None]
"""Takes a parameter and what its gradient is made of: one contribution for each call of its layers."""


class GradientEngine:
    """Adds projected per-sample gradients of a model's trainable parameters to features.

    Args:
        model: The module to differentiate, in eval mode.
        select: Which of the trainable parameters to measure, by name; all by default.
        uncovered: What to do about parameters that no layer rule covers: ``"error"`` names them, ``"autograd"``
            differentiates them one group at a time, which costs a forward and a backward pass per group.

    Raises:
        CoverageError: If no parameter is left, or some are not covered and ``uncovered`` is ``"error"``.
        ValueError: If the model is in train mode or ``uncovered`` is neither of the two.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        select: Callable[[str], bool] | None = None,
        uncovered: Literal["error", "autograd"] = "error",
    ) -> None:
        if uncovered not in ("error", "autograd"):
            raise ValueError(f'uncovered must be "error" or "autograd", got {uncovered!r}')
        if model.training:
            raise ValueError(
                "model must be in eval mode, got train mode: dropout and batch statistics would make a sample's "
                "gradient depend on its neighbours and on chance; call model.eval()"
            )
        self.model = model
        self.parameters = {
            name: p for name, p in model.named_parameters() if p.requires_grad and (select is None or select(name))
        }
        if not self.parameters:
            raise CoverageError("model has no trainable parameter among the selected ones: nothing to measure")
        self.slots = parameter_slots(self.parameters)
        self.num_parameters = sum(p.numel() for p in self.parameters.values())
        self._slot_of = {id(p): self.slots[name] for name, p in self.parameters.items()}
        self._rules = {module: rule for module in model.modules() if (rule := self._rule_for(module)) is not None}
        self._layers_of: dict[str, list[nn.Module]] = {name: [] for name in self.slots}
        for module in self._rules:
            for p in module.parameters(recurse=False):
                if id(p) in self._slot_of:
                    self._layers_of[self._slot_of[id(p)].name].append(module)
        self._deferred: list[tuple[ParameterSlot, Tensor, int]] = []
        # A weight that is not a parameter itself, as under weight normalisation, leaves what it is made of uncovered.
        covered = {id(getattr(module, name, None)) for module in self._rules for name in ("weight", "bias")}
        self._uncovered = {name: p for name, p in self.parameters.items() if id(p) not in covered}
        if self._uncovered and uncovered == "error":
            raise CoverageError(describe_uncovered(model, list(self._uncovered)))

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy is made from: its parameters are others, so all that looks them up is made anew."""
        return {"model": self.model, "names": list(self.parameters)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make the engine again for the copied model; what is not covered was accepted before."""
        self.__init__(state["model"], select=set(state["names"]).__contains__, uncovered="autograd")  # type: ignore[misc]

    def _rule_for(self, module: nn.Module) -> Rule | None:
        if any(id(p) in self._slot_of for p in module.parameters(recurse=False)):
            return find_rule(module)
        return None

    def add_gradients_(self, features: Tensor, values: RowValues, *, num_rows: int, projector: Projector) -> Tensor:
        """Add each group's projected gradient of the mean of its rows' values.

        ``features[i] += projector(grad of mean(values of the rows of group i))``

        Args:
            features: Added to, float32; groups are consecutive rows of equal number. [num_groups, proj_dim]
            values: Runs the model on some rows of the batch and returns their values, differentiably.
            num_rows: Rows of the batch.
            projector: Maps gradients to features.

        Returns:
            The values of all rows, detached. [num_rows]

        Raises:
            CoverageError: If a layer's input does not have ``num_rows`` as its first dimension.
            InPlaceError: If a layer's input was modified between forward and backward.
        """
        num_groups = features.shape[0]
        rows_per_group = num_rows // num_groups
        receive = partial(self._add_layer_, features, projector)
        with self._frozen(), captured(self.model, self._rules, num_rows, receive), torch.enable_grad():
            measured = values(slice(0, num_rows))
            self._deferred = []
            if measured.requires_grad:
                (measured.sum() / rows_per_group).backward()
            projector.add_many_(features, self._deferred)
            self._deferred = []
        for group in range(num_groups if self._uncovered else 0):
            rows = slice(group * rows_per_group, (group + 1) * rows_per_group)
            for slot, grad in self.by_autograd(values, rows, rows_per_group, list(self._uncovered)):
                projector.add_(features[group : group + 1], slot, grad)
        return measured.detach()

    def for_each_parameter(self, values: RowValues, *, num_rows: int, num_groups: int, receive: Receive) -> None:
        """Hand on what each parameter's gradient is made of, group by group, without projecting it.

        A parameter comes once, with the contributions of all calls of its layers, as soon as the backward pass has left
        the last of them behind: nothing is kept but the inputs and output gradients of layers that are called several
        times, and contributions that autograd must give. A gradient of zero has no contribution and does not come.

        Args:
            values: As for ``add_gradients_``.
            num_rows: Rows of the batch.
            num_groups: Groups of consecutive rows; the gradient of each is that of its mean value.
            receive: Takes a parameter and its contributions (``journey.gradients.rows`` knows what to do with
                them).

        Raises:
            CoverageError: If a layer's input does not have ``num_rows`` as its first dimension.
            InPlaceError: If a layer's input was modified between forward and backward.
        """
        found: dict[str, list[Contribution]] = {}
        rows_per_group = num_rows // num_groups

        def keep(module: nn.Module, x: Tensor, g: Tensor) -> None:
            for slot, contribution in self._contributions(module, x, g, num_groups):
                found.setdefault(slot.name, []).append(contribution)
            for name in [name for name in found if not any(waiting[layer] for layer in self._layers_of[name])]:
                receive(self.slots[name], found.pop(name))

        with (
            self._frozen(),
            captured(self.model, self._rules, num_rows, keep) as waiting,
            torch.enable_grad(),
        ):
            measured = values(slice(0, num_rows))
            if measured.requires_grad:
                (measured.sum() / rows_per_group).backward()
        whole: dict[str, Tensor] = {}
        for group in range(num_groups if self._uncovered else 0):
            rows = slice(group * rows_per_group, (group + 1) * rows_per_group)
            for slot, grad in self.by_autograd(values, rows, rows_per_group, list(self._uncovered)):
                if slot.name not in whole:
                    whole[slot.name] = grad.new_zeros(num_groups, slot.rows, slot.cols)
                whole[slot.name][group] = grad[0]
        found |= {name: [Direct(name, grads)] for name, grads in whole.items()}
        for name in list(found):
            receive(self.slots[name], found.pop(name))

    def by_autograd(
        self, values: RowValues, rows: slice, rows_per_group: int, names: list[str]
    ) -> Iterator[tuple[ParameterSlot, Tensor]]:
        """Yield named parameters with autograd's gradient of the values' sum / rows_per_group. Each [1, rows, cols]"""
        with self._frozen(except_for=names), torch.enable_grad():
            loss = values(rows).sum() / rows_per_group
            parameters = [self.parameters[name] for name in names]
            grads = (
                torch.autograd.grad(loss, parameters, allow_unused=True) if loss.requires_grad else [None] * len(names)
            )
        for name, grad in zip(names, grads, strict=True):
            if grad is not None:
                slot = self.slots[name]
                yield slot, grad.reshape(1, slot.rows, slot.cols)

    @contextmanager
    def _frozen(self, except_for: list[str] | None = None) -> Iterator[None]:
        """Let no parameter of the model require a gradient, but for the named ones, and no other thread in."""
        if torch.is_inference_mode_enabled():
            raise RuntimeError("gradients cannot be measured inside torch.inference_mode(); leave it, or use no_grad()")
        if torch.is_autocast_enabled(next(iter(self.parameters.values())).device.type):
            raise RuntimeError(
                "gradients cannot be measured inside torch.autocast, whose layers differ in dtype from their weights; "
                "leave it, and convert the model instead, as with model.to(torch.bfloat16)"
            )
        with exclusively(self.model):
            before = {p: p.requires_grad for p in self.model.parameters()}
            kept = {id(self.parameters[name]) for name in except_for or ()}
            try:
                for p in before:
                    p.requires_grad_(id(p) in kept)
                yield
            finally:
                for p, required in before.items():
                    p.requires_grad_(required)

    @torch.no_grad()
    def _contributions(
        self, module: nn.Module, x: Tensor, g: Tensor, num_groups: int
    ) -> Iterator[tuple[ParameterSlot, Contribution]]:
        """What a call of a layer gives to each of its measured parameters."""
        for contribution in self._rules[module](module, x, g, num_groups):
            slot = self._slot_of.get(id(getattr(module, contribution.parameter)))
            if slot is not None:  # trainable and selected
                yield slot, contribution

    @torch.no_grad()
    def _add_layer_(self, features: Tensor, projector: Projector, module: nn.Module, x: Tensor, g: Tensor) -> None:
        for slot, contribution in self._contributions(module, x, g, features.shape[0]):
            if isinstance(contribution, Outer):
                projector.add_outer_(features, slot, contribution.a, contribution.g, contribution.conv)
            elif contribution.grads.numel() > _DEFERRED_ENTRIES:
                projector.add_(features, slot, contribution.grads, contribution.row_begin)
            else:
                self._deferred.append((slot, contribution.grads, contribution.row_begin))


def parameter_slots(parameters: dict[str, nn.Parameter]) -> dict[str, ParameterSlot]:
    """Return where each of some named parameters stands among them, by name."""
    slots, offset = {}, 0
    for name, p in parameters.items():
        rows = p.shape[0] if p.dim() > 1 else 1
        slots[name] = ParameterSlot(name, rows, p.numel() // max(rows, 1), offset)
        offset += p.numel()
    return slots
