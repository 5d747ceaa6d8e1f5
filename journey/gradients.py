"""Per-sample gradients of a whole model in one backward pass, handed to a projector layer by layer.

Hooks keep each layer's input and receive the gradient of its output; the layer's rule (``journey.layer_rules``) turns
the pair into parameter gradients per group of rows, and the projector adds them to the features at once. Measured
parameters have ``requires_grad=False`` meanwhile, so autograd computes no weight gradient a second time, and no vmap is
involved, so fused attention stays in use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from journey.errors import CoverageError, GradientCheckError, InPlaceError
from journey.layer_rules import Outer, Rule, find_rule
from journey.projectors import ParameterSlot, Projector

# values(rows) -> the measurement of each of these rows of the current batch. [num_rows]
Values = Callable[[slice], Tensor]


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
        self._parameters = {
            name: p for name, p in model.named_parameters() if p.requires_grad and (select is None or select(name))
        }
        if not self._parameters:
            raise CoverageError("model has no trainable parameter among the selected ones: nothing to measure")
        self.slots = parameter_slots(self._parameters)
        self.num_parameters = sum(p.numel() for p in self._parameters.values())
        self._slot_of = {id(p): self.slots[name] for name, p in self._parameters.items()}
        self._rules = {module: rule for module in model.modules() if (rule := self._rule_for(module)) is not None}
        self._small: list[tuple[ParameterSlot, Tensor, int]] = []
        # A weight that is not a parameter itself, as under weight normalisation, leaves what it is made of uncovered.
        covered = {id(getattr(module, name, None)) for module in self._rules for name in ("weight", "bias")}
        self._uncovered = {name: p for name, p in self._parameters.items() if id(p) not in covered}
        if self._uncovered and uncovered == "error":
            raise CoverageError(_describe_uncovered(model, list(self._uncovered)))

    def _rule_for(self, module: nn.Module) -> Rule | None:
        if any(id(p) in self._slot_of for p in module.parameters(recurse=False)):
            return find_rule(module)
        return None

    def add_gradients_(self, features: Tensor, values: Values, *, num_rows: int, projector: Projector) -> Tensor:
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
        with self._frozen(), self._hooks(features, num_rows, projector), torch.enable_grad():
            measured = values(slice(0, num_rows))
            self._small = []
            if measured.requires_grad:
                (measured.sum() / rows_per_group).backward()
            projector.add_many_(features, self._small)
            self._small = []
        for group in range(num_groups if self._uncovered else 0):
            rows = slice(group * rows_per_group, (group + 1) * rows_per_group)
            for slot, grad in self._autograd(values, rows, rows_per_group, list(self._uncovered)):
                projector.add_(features[group : group + 1], slot, grad)
        return measured.detach()

    def check(self, features: Tensor, values: Values, *, num_rows: int, projector: Projector) -> None:
        """Compare freshly computed features of a batch with autograd's gradient of the whole batch.

        Every per-sample gradient enters a sum with a weight of its own, so a layer that is called in a way its rule
        does not know (through a functional, with rows in another dimension, sharing statistics between rows) is found.
        Costs one training step.

        Args:
            features: What ``add_gradients_`` added to zeros. [num_groups, proj_dim]
            values: As for ``add_gradients_``.
            num_rows: Rows of the batch.
            projector: As for ``add_gradients_``.

        Raises:
            GradientCheckError: If they differ, naming the parameters.
        """
        num_groups = features.shape[0]
        expected = features.new_zeros(1, features.shape[1])
        # With equal weights a gradient that is ascribed to the wrong sample would still be in the sum. All are
        # positive, so that they do not cancel gradients that are alike.
        weights = torch.linspace(0.5, 1.5, num_groups, device=features.device)
        row_weights = weights.repeat_interleave(num_rows // num_groups)

        def weighted(rows: slice) -> Tensor:
            return values(rows) * row_weights[rows]

        whole = self._autograd(weighted, slice(0, num_rows), num_rows // num_groups, list(self._parameters))
        grads = {slot.name: grad for slot, grad in whole}
        for name, grad in grads.items():
            projector.add_(expected, self.slots[name], grad)
        tolerance = _CHECK_TOLERANCE[next(iter(self._parameters.values())).dtype]
        scale = expected.norm()
        if (weights @ features - expected[0]).norm() <= tolerance * scale:
            return
        sums = _ParameterSums()
        self.add_gradients_(weights[:, None], values, num_rows=num_rows, projector=sums)
        total = torch.stack([grad.norm() for grad in grads.values()]).norm().item()
        wrong = [name for name in self.slots if _difference(sums.of, grads, name) > tolerance * total]
        raise GradientCheckError(
            "per-sample gradients do not add up to autograd's gradient of the batch for "
            f"{_some(wrong) or 'a sum of many small differences'}. Likely causes: the layer is used through a "
            "functional or with samples in another dimension than the first, or rows of a batch influence each other. "
            'Leave these parameters out with select=..., or measure them with uncovered="autograd" in a layer class of '
            "their own"
        )

    def _autograd(
        self, values: Values, rows: slice, rows_per_group: int, names: list[str]
    ) -> Iterator[tuple[ParameterSlot, Tensor]]:
        """Gradients of the summed values over ``rows_per_group`` by autograd, as [1, rows, cols]."""
        with self._frozen(except_for=names), torch.enable_grad():
            loss = values(rows).sum() / rows_per_group
            parameters = [self._parameters[name] for name in names]
            grads = (
                torch.autograd.grad(loss, parameters, allow_unused=True) if loss.requires_grad else [None] * len(names)
            )
        for name, grad in zip(names, grads, strict=True):
            if grad is not None:
                slot = self.slots[name]
                yield slot, grad.reshape(1, slot.rows, slot.cols)

    @contextmanager
    def _frozen(self, except_for: list[str] | None = None) -> Iterator[None]:
        """Let no parameter of the model require a gradient, but for the named ones."""
        before = {p: p.requires_grad for p in self.model.parameters()}
        kept = {id(self._parameters[name]) for name in except_for or ()}
        try:
            for p in before:
                p.requires_grad_(id(p) in kept)
            yield
        finally:
            for p, required in before.items():
                p.requires_grad_(required)

    @contextmanager
    def _hooks(self, features: Tensor, num_rows: int, projector: Projector) -> Iterator[None]:
        names = {module: name for name, module in self.model.named_modules()}

        def capture(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
            if not torch.is_grad_enabled():
                return output
            x = args[0] if args else next(iter(kwargs.values()))
            if x.dim() == 0 or x.shape[0] != num_rows:
                raise CoverageError(
                    f"layer {names[module]!r} got an input of shape {list(x.shape)} in a batch of {num_rows} rows: its "
                    "first dimension must be the batch for per-sample gradients. Leave its parameters out with "
                    "select=..., or make the model pass it one row per sample"
                )
            if not output.requires_grad:
                # Nothing before this layer requires a gradient: the graph of this branch begins here. The clone makes
                # the output an ordinary tensor that may be modified in place.
                output = output.detach().requires_grad_().clone()
            # Given up when used: the hook itself lives until the whole graph is freed. Detached, it still shares the
            # version counter.
            kept = [x.detach()]
            version = x._version

            def receive(g: Tensor) -> None:
                x = kept.pop()
                if x._version != version:
                    raise InPlaceError(
                        f"the input of layer {names[module]!r} was modified in place between forward and backward; its "
                        "gradient would be wrong. Use the out-of-place form of the operation that follows the layer"
                    )
                self._add_layer_(features, module, x, g, projector)

            output.register_hook(receive)
            return output

        handles = [module.register_forward_hook(capture, with_kwargs=True) for module in self._rules]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def _add_layer_(self, features: Tensor, module: nn.Module, x: Tensor, g: Tensor, projector: Projector) -> None:
        for contribution in self._rules[module](module, x, g, features.shape[0]):
            slot = self._slot_of.get(id(getattr(module, contribution.parameter)))
            if slot is None:  # not trainable, or not selected
                continue
            if isinstance(contribution, Outer):
                projector.add_outer_(features, slot, contribution.a, contribution.g, contribution.conv)
            elif contribution.grads.numel() > _SMALL:
                projector.add_(features, slot, contribution.grads, contribution.row_begin)
            else:
                self._small.append((slot, contribution.grads, contribution.row_begin))


# Gradients of up to so many entries, biases and norms, are kept until the end of the backward pass and projected
# together: on a GPU a launch each would cost more than the work.
_SMALL = 1 << 16

# Relative difference between the sum of per-sample gradients and autograd's batch gradient that rounding explains, with
# a wide margin: a missing layer or a wrong rule is off by far more.
_CHECK_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3, torch.bfloat16: 1e-1, torch.float16: 3e-2}


class _ParameterSums(Projector):
    """Sums each parameter's gradient over all groups, weighted by ``features``, to find out which one is wrong."""

    def __init__(self) -> None:
        self.of: dict[str, Tensor] = {}

    def features_dim(self, num_parameters: int) -> int:
        return 1

    def add_(self, features: Tensor, slot: ParameterSlot, grads: Tensor, row_begin: int = 0) -> None:
        total = self.of.setdefault(slot.name, torch.zeros(1, slot.rows, slot.cols, device=grads.device))
        total[:, row_begin : row_begin + grads.shape[1]] += torch.einsum("g,grc->rc", features[:, 0], grads.float())


def _difference(left: dict[str, Tensor], right: dict[str, Tensor], name: str) -> float:
    """Norm of the difference of two gradients, either of which may be missing, which is zero."""
    if name in left and name in right:
        return float((left[name] - right[name]).norm())
    present = left.get(name, right.get(name))
    return 0.0 if present is None else float(present.norm())


def parameter_slots(parameters: dict[str, nn.Parameter]) -> dict[str, ParameterSlot]:
    """Return where each of some named parameters stands among them, by name."""
    slots, offset = {}, 0
    for name, p in parameters.items():
        rows = p.shape[0] if p.dim() > 1 else 1
        slots[name] = ParameterSlot(name, rows, p.numel() // max(rows, 1), offset)
        offset += p.numel()
    return slots


def _describe_uncovered(model: nn.Module, names: list[str]) -> str:
    owners = sorted({type(model.get_submodule(name.rpartition(".")[0])).__name__ for name in names})
    return (
        f"no gradient rule for {_some(names)} (in {', '.join(owners)}). Leave them out with select=..., or measure "
        'them with uncovered="autograd" (one forward and backward pass per sample)'
    )


def _some(names: list[str], most: int = 8) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
