"""Compares per-sample gradients with autograd's gradient of the batch, and names the parameters that differ."""

from __future__ import annotations

import torch
from torch import Tensor

from journey.errors import GradientCheckError
from journey.gradients.engine import GradientEngine, RowValues
from journey.gradients.names import name_some
from journey.projectors.base import ParameterSlot, Projector

# Relative difference between the sum of per-sample gradients and autograd's batch gradient that rounding explains, with
# a wide margin: a missing layer or a wrong rule is off by far more.
_CHECK_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3, torch.bfloat16: 1e-1, torch.float16: 3e-2}


def check_gradients(
    engine: GradientEngine, features: Tensor, values: RowValues, *, num_rows: int, projector: Projector
) -> None:
    """Compare freshly computed features of a batch with autograd's gradient of the whole batch.

    Every per-sample gradient enters a sum with a weight of its own, so a layer that is called in a way its rule
    does not know (through a functional, with rows in another dimension, sharing statistics between rows) is found.
    Costs one training step.

    Args:
        engine: What added them.
        features: What ``GradientEngine.add_gradients_`` added to zeros. [num_groups, proj_dim]
        values: As for ``GradientEngine.add_gradients_``.
        num_rows: Rows of the batch.
        projector: As for ``GradientEngine.add_gradients_``.

    Raises:
        GradientCheckError: If they differ, naming the parameters.
    """
    num_groups = features.shape[0]
    expected = features.new_zeros(1, features.shape[1])
    # With equal weights a gradient that is ascribed to the wrong sample would still be in the sum. All are
    # positive, so that they do not cancel gradients that are alike.
    weights = torch.linspace(0.5, 1.5, num_groups, device=features.device, dtype=torch.float32)
    row_weights = weights.repeat_interleave(num_rows // num_groups)

    def weighted(rows: slice) -> Tensor:
        return values(rows) * row_weights[rows]

    whole = engine.by_autograd(weighted, slice(0, num_rows), num_rows // num_groups, list(engine.parameters))
    grads = {slot.name: grad for slot, grad in whole}
    for name, grad in grads.items():
        projector.add_(expected, engine.slots[name], grad)
    tolerance = _CHECK_TOLERANCE[next(iter(engine.parameters.values())).dtype]
    scale = expected.norm()
    if (weights @ features - expected[0]).norm() <= tolerance * scale:
        return
    sums = _ParameterSums()
    engine.add_gradients_(weights[:, None], values, num_rows=num_rows, projector=sums)
    total = torch.stack([grad.norm() for grad in grads.values()]).norm().item()
    wrong = [name for name in engine.slots if _difference(sums.of, grads, name) > tolerance * total]
    raise GradientCheckError(
        "per-sample gradients do not add up to autograd's gradient of the batch for "
        f"{name_some(wrong) or 'a sum of many small differences'}. Likely causes: the layer is used through a "
        "functional or with samples in another dimension than the first, or rows of a batch influence each other. "
        'Leave these parameters out with select=..., or measure them with uncovered="autograd" in a layer class of '
        "their own"
    )


class _ParameterSums(Projector):
    """Sums each parameter's gradient over all groups, weighted by ``features``, to find out which one is wrong."""

    def __init__(self) -> None:
        self.of: dict[str, Tensor] = {}

    def features_dim(self, num_parameters: int) -> int:
        """Return 1: the weight of a group."""
        return 1

    def add_(self, features: Tensor, slot: ParameterSlot, grads: Tensor, row_begin: int = 0) -> None:
        """Add the gradients, weighted by ``features`` [num_groups, 1], to the parameter's sum."""
        total = self.of.setdefault(
            slot.name, torch.zeros(1, slot.rows, slot.cols, device=grads.device, dtype=torch.float32)
        )
        total[:, row_begin : row_begin + grads.shape[1]] += torch.einsum("g,grc->rc", features[:, 0], grads.float())


def _difference(left: dict[str, Tensor], right: dict[str, Tensor], name: str) -> float:
    """Norm of the difference of two gradients, either of which may be missing, which is zero."""
    if name in left and name in right:
        return float((left[name] - right[name]).norm())
    present = left.get(name, right.get(name))
    return 0.0 if present is None else float(present.norm())
