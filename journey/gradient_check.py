"""Which parameters the engine does not cover, and which have a wrong gradient: what its errors name."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from journey.projectors.base import ParameterSlot, Projector


class ParameterSums(Projector):
    """Sums each parameter's gradient over all groups, weighted by ``features``, to find out which one is wrong."""

    def __init__(self) -> None:
        self.of: dict[str, Tensor] = {}

    def features_dim(self, num_parameters: int) -> int:
        """Return 1: the weight of a group."""
        return 1

    def add_(self, features: Tensor, slot: ParameterSlot, grads: Tensor, row_begin: int = 0) -> None:
        """Add the gradients, weighted by ``features`` [num_groups, 1], to the parameter's sum."""
        total = self.of.setdefault(slot.name, torch.zeros(1, slot.rows, slot.cols, device=grads.device))
        total[:, row_begin : row_begin + grads.shape[1]] += torch.einsum("g,grc->rc", features[:, 0], grads.float())


def difference(left: dict[str, Tensor], right: dict[str, Tensor], name: str) -> float:
    """Norm of the difference of two gradients, either of which may be missing, which is zero."""
    if name in left and name in right:
        return float((left[name] - right[name]).norm())
    present = left.get(name, right.get(name))
    return 0.0 if present is None else float(present.norm())


def describe_uncovered(model: nn.Module, names: list[str]) -> str:
    """Say that parameters have no rule, and whose they are."""
    owners = sorted({type(model.get_submodule(name.rpartition(".")[0])).__name__ for name in names})
    return (
        f"no gradient rule for {some(names)} (in {', '.join(owners)}). Leave them out with select=..., or measure "
        'them with uncovered="autograd" (one forward and backward pass per sample)'
    )


def some(names: list[str], most: int = 8) -> str:
    """Write the first few names of a list."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
