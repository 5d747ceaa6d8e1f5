"""Per-sample gradients of a whole model in one backward pass, handed to a projector layer by layer.

Hooks keep each layer's input and receive the gradient of its output; the layer's rule
(``journey.gradients.rules``) turns the pair into parameter gradients per group of rows, and the projector adds them to
the features at once. Measured parameters have ``requires_grad=False`` meanwhile, so no weight gradient is computed
twice, and no vmap is involved, so fused attention stays in use.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from journey.errors import CoverageError
from journey.gradients.collect import Collected
from journey.gradients.compare import ParameterSums, group_weights, tolerance
from journey.gradients.coverage import Coverage
from journey.gradients.hooks import UnservedLayer, captured
from journey.gradients.names import describe_uncovered, describe_unreached
from journey.gradients.per_row import UnservedParameters, expanded
from journey.gradients.rules import Contribution, Direct, Summed, of_groups
from journey.gradients.storage import modules_of, weights_as_computed
from journey.locks import exclusively
from journey.ops.geometry import tap_major
from journey.projectors.base import ParameterSlot, Projector

_Contributions = Iterable[tuple[ParameterSlot, Contribution | Summed]]

RowValues = Callable[[slice], Tensor]
"""A batch's measurement: takes a slice of rows, runs the model on them, returns differentiable values. [num_rows]"""

Receive = Callable[[ParameterSlot, list[Contribution]], None]
"""Takes a parameter and what its gradient is made of: one contribution for each call of its layers."""


class GradientEngine:
    """Adds projected per-sample gradients of a model's trainable parameters to features.

    Args:
        model: The module to differentiate, in eval mode.
        select: Which of the trainable parameters to measure, by name; all by default.
        uncovered: What to do about parameters whose rows cannot be told apart: ``"error"`` names them, ``"autograd"``
            differentiates them one group at a time, which costs a forward and a backward pass per group. So it does
            with those whose rule does not apply, as the first batch shows, compared with autograd's gradient of it.

    Raises:
        CoverageError: If no parameter is left, one is complex, or some are not covered and ``uncovered`` is
            ``"error"``.
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
        self._coverage = Coverage(model, self.parameters)
        self.slots = self._coverage.slots
        self.num_parameters = sum(p.numel() for p in self.parameters.values())
        if self._coverage.uncovered and uncovered == "error":
            raise CoverageError(describe_uncovered(model, self._coverage.uncovered))
        self._reaches_all = uncovered == "autograd"
        self.may_miss = False  # whether a batch may reach no measured parameter: its gradient is zero then
        self._settled = 0  # rows of the batch that showed which rules apply

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy is made from: its parameters are others, so all that looks them up is made anew."""
        names = list(self.parameters)
        return {"model": self.model, "names": names, "reaches_all": self._reaches_all, "may_miss": self.may_miss}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make the engine again for the copied model; what is not covered was accepted before."""
        uncovered = "autograd" if state["reaches_all"] else "error"
        self.__init__(state["model"], select=set(state["names"]).__contains__, uncovered=uncovered)  # type: ignore[misc]
        self.may_miss = state["may_miss"]

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
            CoverageError: If no parameter reaches the output.
            UnservedLayer: If a layer's input does not have ``num_rows`` as its first dimension.
            UnservedParameters: If a parameter outside of layers meets the batch in an unknown way.
            InPlaceError: If a layer's input was modified between forward and backward.
        """
        self._settle(values, num_rows)
        num_groups = features.shape[0]
        before = features.clone() if self._reaches_all else features
        while True:
            try:
                measured = self._add_covered_(features, values, num_rows, projector)
                break
            except (UnservedLayer, UnservedParameters) as error:  # later than in the first batch
                if not self._reaches_all:
                    raise
                self._coverage.leave_unserved(error)
                features.copy_(before)
        for group, slot, grad in self._left(values, num_groups, num_rows // num_groups):
            projector.add_(features[group : group + 1], slot, grad)
        return measured.detach()

    def _add_covered_(self, features: Tensor, values: RowValues, num_rows: int, projector: Projector) -> Tensor:
        """Add the gradients of what rules cover, see ``add_gradients_``."""
        collected, num_groups = Collected(features, projector), features.shape[0]

        def take(contributions: _Contributions) -> None:
            for slot, contribution in contributions:
                collected.add(slot, contribution)
            collected.hand_on()

        with self._watched(num_rows, num_groups, take) as called:
            measured = values(slice(0, num_rows))
            if measured.requires_grad:
                (measured.sum() / (num_rows // num_groups)).backward()
            elif not called and not self._coverage.uncovered and not self.may_miss:
                raise CoverageError(describe_unreached(list(self.parameters)))
            with torch.no_grad():
                collected.finish()
        self._find_strays(values, num_rows)
        return measured.detach()

    def for_each_parameter(self, values: RowValues, *, num_rows: int, num_groups: int, receive: Receive) -> None:
        """Hand on what each parameter's gradient is made of, group by group, without projecting it.

        A parameter comes once, with the contributions of all calls of its layers, as soon as the backward pass has left
        the last behind: only inputs and output gradients of layers that are called several times are kept, and what
        autograd must give. A gradient of zero has no contribution and does not come.

        Args:
            values: As for ``add_gradients_``.
            num_rows: Rows of the batch.
            num_groups: Groups of consecutive rows; the gradient of each is that of its mean value.
            receive: Takes a parameter and its contributions (``journey.gradients.rows`` knows what to do with
                them).

        Raises:
            CoverageError: If no parameter reaches the output.
            UnservedLayer: If a layer's input does not have ``num_rows`` as its first dimension.
            UnservedParameters: If a parameter outside of layers meets the batch in an unknown way.
            InPlaceError: If a layer's input was modified between forward and backward.
        """
        self._settle(values, num_rows)
        found: dict[str, list[Contribution]] = {}
        rows_per_group = num_rows // num_groups

        def keep(contributions: _Contributions) -> None:
            for slot, contribution in contributions:
                found.setdefault(slot.name, []).append(of_groups(contribution, num_groups))
            for name in [name for name in found if not any(waiting[layer] for layer in self._coverage.layers_of[name])]:
                receive(self.slots[name], found.pop(name))

        with self._watched(num_rows, num_groups, keep) as waiting:
            measured = values(slice(0, num_rows))
            if measured.requires_grad:
                (measured.sum() / rows_per_group).backward()
            elif not waiting and not self._coverage.uncovered and not self.may_miss:
                raise CoverageError(describe_unreached(list(self.parameters)))
        self._find_strays(values, num_rows)
        whole: dict[str, Tensor] = {}
        for group, slot, grad in self._left(values, num_groups, rows_per_group):
            if slot.name not in whole:
                whole[slot.name] = grad.new_zeros(num_groups, slot.rows, slot.cols)
            whole[slot.name][group] = grad[0]
        found |= {name: [Direct(name, grads)] for name, grads in whole.items()}
        for name in list(found):
            receive(self.slots[name], found.pop(name))

    def _settle(self, values: RowValues, num_rows: int) -> None:
        """Leave to autograd what rules do not give, as its gradient of the first batch shows, if it is to reach all."""
        if not self._reaches_all or self._settled >= min(num_rows, 2):
            return
        weights = group_weights(num_rows, next(iter(self.parameters.values())).device)

        def weighted(rows: slice) -> Tensor:
            return values(rows) * weights[rows]

        whole = self.by_autograd(weighted, slice(0, num_rows), 1, list(self.parameters))
        grads = {slot.name: grad for slot, grad in whole}
        if not grads:
            raise CoverageError(describe_unreached(list(self.parameters)))
        while True:
            sums = ParameterSums()
            try:
                self._add_covered_(weights[:, None], values, num_rows, sums)
                break
            except (UnservedLayer, UnservedParameters) as error:
                self._coverage.leave_unserved(error)
        covered = self._coverage.covered
        # What no call of a layer gave is left whatever its size.
        unseen = [name for name in covered if name in grads and name not in sums.of]
        self._coverage.leave([*unseen, *sums.differ_from(grads, covered, tolerance(self.model))])
        self._settled = num_rows

    def _find_strays(self, values: RowValues, num_rows: int) -> None:
        """Refuse parameters that the network's code finds elsewhere than in their modules; seen once, in autograd."""
        names = self._coverage.not_reached()
        found = [slot.name for slot, _ in self.by_autograd(values, slice(0, num_rows), 1, names)] if names else []
        if found:
            raise UnservedParameters(frozenset(found), "the network's code does not take them from their modules")

    def _left(self, values: RowValues, num_groups: int, each: int) -> Iterator[tuple[int, ParameterSlot, Tensor]]:
        """Yield what is left to autograd, group by group of ``each`` rows. Each [1, rows, cols]"""
        for group in range(num_groups if self._coverage.uncovered else 0):
            rows = slice(group * each, (group + 1) * each)
            for slot, grad in self.by_autograd(values, rows, each, self._coverage.uncovered):
                yield group, slot, grad

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
                yield slot, tap_major(grad.reshape(1, slot.rows, slot.cols), slot.taps)

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
        modules = modules_of(self.model)
        with exclusively(self.model), weights_as_computed(self.model, modules, except_for or ()):
            parameters = [p for module in modules for p in module._parameters.values() if p is not None]
            kept = {id(self.parameters[name]) for name in except_for or ()}
            changed = [p for p in parameters if p.requires_grad != (id(p) in kept)]
            before = [p.requires_grad for p in changed]
            try:
                for p in changed:
                    p.requires_grad_(id(p) in kept)
                yield
            finally:
                for p, required in zip(changed, before, strict=True):
                    p.requires_grad_(required)

    @contextmanager
    def _watched(
        self, num_rows: int, num_groups: int, take: Callable[[_Contributions], None]
    ) -> Iterator[Counter[nn.Module]]:
        """Hand on what each call of a layer gives, and what each row gives to parameters that it has its own of."""

        # Hooks of a backward pass run without gradients.
        def of_layer(module: nn.Module, x: Tensor, g: Tensor) -> None:
            take(self._coverage.contributions(module, x, g, num_groups))

        def of_rows(name: str, grads: Tensor) -> None:
            take([self._coverage.of_rows(name, grads, num_groups)])

        with (
            self._frozen(),
            captured(self.model, self._coverage.rules, num_rows, of_layer) as waiting,
            expanded(self.model, self._coverage.per_row, self._coverage.meetings, num_rows, of_rows),
            torch.enable_grad(),
        ):
            yield waiting
