"""Standard errors of scores and of their sums, from the draws of the training images and of the query.

A score is an inner product of two means over draws. The noise of row i has the norm ``noise_i``, measured as half the
difference of two halves of its draws, and the directions of that noise of some images, which the fit keeps: its part
of the error is ``noise_i * row_gain``. The query's draws are split in groups, whose scores of some rows differ by
``query_gain`` for a row of unit norm: their part is ``norm_i * query_gain``. Halves of a row's draws are of other
timesteps too, so that its part is an upper bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class ScoreErrors:
    """What standard errors of scores are made of.

    Attributes:
        noise: Of each row, float32; NaN if unknown. [num_checkpoints, num_train]
        norm: Of each row, float32. [num_checkpoints, num_train]
        row_gain: float32. [num_checkpoints, num_queries, num_steps]
        query_gain: float32; NaN for a query of a single draw. [num_checkpoints, num_queries, num_steps]
    """

    noise: Tensor
    norm: Tensor
    row_gain: Tensor
    query_gain: Tensor

    @property
    def shape(self) -> torch.Size:
        """Shape of the scores that they are of. [num_queries, num_steps, num_train]"""
        return torch.Size([*self.row_gain.shape[1:], self.noise.shape[1]])

    def of_scores(self) -> Tensor:
        """Return the standard error of each score, float32. [num_queries, num_steps, num_train]"""
        return _hypot(_mean(self.row_gain, self.noise), _mean(self.query_gain, self.norm))

    def of_query(self, query: int) -> Tensor:
        """Return the standard errors of one query's scores, float32. [num_steps, num_train]"""
        gains = (gain[:, query : query + 1] for gain in (self.row_gain, self.query_gain))
        return ScoreErrors(self.noise, self.norm, *gains).of_scores()[0]

    def of_sum(self, columns: Sequence[int]) -> Tensor:
        """Return the standard error of the sum of some columns, at most, float32. [num_queries, num_steps]

        Rows have draws of their own, the query's are common to all: those errors are added up as if they had one sign.
        """
        members = torch.ones(self.noise.shape[1], dtype=torch.int64, device="cpu")
        members[list(columns)] = 0
        return self.of_sums(members, 2)[..., 0].float()

    def of_sums(self, members: Tensor, count: int) -> Tensor:
        """Return the standard error of the sum of each group of columns, at most; see ``of_sum``.

        Args:
            members: The group of each column, int64 in [0, count). [num_train]
            count: Number of groups.

        Returns:
            float64. [num_queries, num_steps, count]
        """
        squares = torch.stack([sums(noise.double().square(), members, count) for noise in self.noise])
        norms = torch.stack([sums(norm.double(), members, count) for norm in self.norm])
        return _hypot(_mean(self.row_gain.double(), squares.sqrt()), _mean(self.query_gain.double(), norms))

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name, as they are saved."""
        return {f"errors.{part.name}": getattr(self, part.name) for part in fields(self)}

    @staticmethod
    def of_tensors(saved: dict[str, Tensor]) -> ScoreErrors | None:
        """Return what ``tensors`` gave, or None if there is none among those."""
        names = [part.name for part in fields(ScoreErrors)]
        if not all(f"errors.{name}" in saved for name in names):
            return None
        return ScoreErrors(*(saved[f"errors.{name}"] for name in names))


def sums(values: Tensor, members: Tensor, count: int) -> Tensor:
    """Return the sum of the values of each group, in the order of the columns.

    Args:
        values: float64. [num_train]
        members: The group of each column, int64 in [0, count). [num_train]
        count: Number of groups.

    Returns:
        float64. [count]
    """
    return torch.zeros(count, dtype=torch.float64, device="cpu").index_add_(0, members, values)


def _mean(gain: Tensor, rows: Tensor) -> Tensor:
    """Mean over checkpoints of the products: their draws are the same, and so is the sign of their errors."""
    # No matrix product: its rounding depends on the number of columns.
    products = (each[..., None] * row for each, row in zip(gain, rows, strict=True))
    total: Tensor = next(products)
    for product in products:
        total += product
    return total / len(rows)


def _hypot(first: Tensor, second: Tensor) -> Tensor:
    """The root of the sum of two squares; unlike ``torch.hypot`` the same at any place of a tensor."""
    larger = torch.maximum(first, second)
    ratio = torch.minimum(first, second) / torch.where(larger > 0, larger, torch.ones_like(larger))
    return larger * (1 + ratio * ratio).sqrt()
