"""The sum of per-sample gradients beside autograd's gradient of the whole batch, parameter by parameter."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from journey.projectors.base import ParameterSlot, Projector

# Relative difference between the sum of per-sample gradients and autograd's batch gradient that rounding explains, with
# a wide margin: a missing layer or a wrong rule is off by far more.
_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3, torch.bfloat16: 1e-1, torch.float16: 3e-2}

_INTEGER_INPUTS = 3e-2


def tolerance(network: nn.Module) -> float:
    """Return the relative difference that rounding explains: that of the coarsest dtype among a network's parameters.

    A float32 adapter on a bfloat16 base gets its gradients through the base's bfloat16.

    Args:
        network: The network.

    Returns:
        The tolerance. Stored integers and eight-bit floats do not count: layers compute in what they convert them to.
    """
    return max((_TOLERANCE[p.dtype] for p in network.parameters() if p.dtype in _TOLERANCE), default=1e-3)


def row_tolerance(network: nn.Module) -> float:
    """Return how far a row's gradient may be from the one that it has alone.

    Layers in integers round their inputs, too, and bitsandbytes keeps out of it the columns in which any row is large.

    Args:
        network: The network.

    Returns:
        The relative difference.
    """
    rounds_inputs = any(p.dtype == torch.int8 for p in network.parameters())
    return max(tolerance(network), _INTEGER_INPUTS if rounds_inputs else 0.0)


def group_weights(num_groups: int, device: torch.device) -> Tensor:
    """Return a weight for each group, float32. [num_groups]

    With equal weights a gradient that is ascribed to the wrong sample would still be in the sum. All are positive, so
    that they do not cancel gradients that are alike.
    """
    return torch.linspace(0.5, 1.5, num_groups, device=device, dtype=torch.float32)


class ParameterSums(Projector):
    """Sums each parameter's gradient over all groups, weighted by ``features``, to find out which one is wrong."""

    def __init__(self) -> None:
        self.of: dict[str, Tensor] = {}

    def features_dim(self, num_parameters: int) -> int:
        """Return 1: the weight of a group."""
        return 1

    def add_(self, features: Tensor, slot: ParameterSlot, grads: Tensor, row_begin: int = 0) -> None:
        """Add the gradients, weighted by ``features`` [num_groups, 1], to the parameter's sum."""
        total = self.of.get(slot.name)
        if total is None:
            total = torch.zeros(1, slot.rows, slot.cols, device=grads.device, dtype=torch.float32)
            self.of[slot.name] = total
        total[:, row_begin : row_begin + grads.shape[1]] += torch.einsum("g,grc->rc", features[:, 0], grads.float())

    def differ_from(self, grads: dict[str, Tensor], names: list[str], tolerance: float) -> list[str]:
        """Return the parameters whose sums are not these gradients.

        Args:
            grads: Autograd's, of those that have one. Each [1, rows, cols]
            names: Which parameters to compare.
            tolerance: Largest difference, relative to the gradient of all.

        Returns:
            Their names.
        """
        total = sum(float(grad.float().norm()) ** 2 for grad in grads.values()) ** 0.5
        return [name for name in names if self._difference(grads, name) > tolerance * total]

    def distance(self, grads: dict[str, Tensor]) -> float:
        """Return the norm of the difference between the sums and some gradients, over all parameters."""
        names = self.of.keys() | grads.keys()
        return math.hypot(*(self._difference(grads, name) for name in names))

    def _difference(self, grads: dict[str, Tensor], name: str) -> float:
        """Norm of the difference of two gradients, either of which may be missing, which is zero."""
        if name in self.of and name in grads:
            return float((self.of[name] - grads[name]).norm())
        present = self.of.get(name, grads.get(name))
        return 0.0 if present is None else float(present.norm())
