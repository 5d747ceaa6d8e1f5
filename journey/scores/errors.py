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

    def of_scores(self) -> Tensor:
        """Return the standard error of each score, float32. [num_queries, num_steps, num_train]"""
        return torch.hypot(self._mean(self.row_gain, self.noise), self._mean(self.query_gain, self.norm))

    def of_sum(self, columns: Sequence[int]) -> Tensor:
        """Return the standard error of the sum of some columns, at most, float32. [num_queries, num_steps]

        Rows have draws of their own, the query's are common to all: those errors are added up as if they had one sign.
        """
        chosen = torch.tensor(list(columns), dtype=torch.int64, device="cpu")
        rows = self._mean(self.row_gain, self.noise[:, chosen].square().sum(1, keepdim=True).sqrt())
        query = self._mean(self.query_gain, self.norm[:, chosen].sum(1, keepdim=True))
        return torch.hypot(rows, query)[..., 0]

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

    def _mean(self, gain: Tensor, rows: Tensor) -> Tensor:
        """Mean over checkpoints of the products: their draws are the same, and so is the sign of their errors."""
        return torch.einsum("cqs,cn->qsn", gain, rows) / len(rows)
