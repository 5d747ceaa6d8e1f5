"""Rank correlation of many rows at once."""

from __future__ import annotations

import torch
from torch import Tensor


def ranks(values: Tensor) -> Tensor:
    """Rank the entries of every row, from 1; equal entries share the mean of their ranks, float64. [..., num]"""
    values = values.double().contiguous()
    ordered = values.sort(dim=-1).values
    below = torch.searchsorted(ordered, values, right=False)
    upto = torch.searchsorted(ordered, values, right=True)
    return (below + upto + 1).double() / 2


def spearman(left: Tensor, right: Tensor) -> Tensor:
    """Return the rank correlation of every pair of rows; 0 where a row is constant, which predicts nothing.

    Args:
        left: Any shape. [..., num]
        right: The same, or one that broadcasts to it. [..., num]

    Returns:
        float64, in [-1, 1]. [...]

    Raises:
        ValueError: If an entry is NaN.
    """
    for name, values in (("left", left), ("right", right)):
        if torch.isnan(values).any():
            raise ValueError(f"{name} has NaN entries, which have no rank")
    a, b = (x - x.mean(-1, keepdim=True) for x in (ranks(left), ranks(right)))
    norm = a.norm(dim=-1) * b.norm(dim=-1)
    return torch.where(norm > 0, (a * b).sum(-1) / torch.where(norm > 0, norm, 1.0), 0.0)
