"""The Gram matrix that scores are solved with: half own gradients, half pseudo-gradients.

Removing an image changes a model by the inverse of the curvature of its loss. Outer products of the images' own
gradients (the empirical Fisher matrix F) and of pseudo-gradients (the Gauss-Newton matrix G) both estimate it, and
each alone predicts retraining worse on some data than half of each (docs/results/choices.md):

``M = 1/2 F / mean diag F + 1/2 G / mean diag G``

in sketch coordinates; its mean diagonal is one, the unit of the damping.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from journey import ops
from journey.files.tensors import read_tensors, write_tensors

# Damping of scores in mean diagonals: agrees best with retraining (docs/results/choices.md).
DEFAULT_DAMPING = 1.0
# Longer features have no Gram matrix: it would take 4 GiB, and as many pseudo-gradients.
LARGEST_GRAM = 1 << 15
_TENSORS = ("matrix", "noise", "parts")
_KEPT_FACTORS = 2


@dataclass(frozen=True, eq=False)
class GramMatrix:
    """The Gram matrix of a fit under one set of weights.

    Attributes:
        matrix: M, symmetric, of mean diagonal one, float32. [proj_dim, proj_dim]
        noise: Half the difference of two disjoint halves of the draws of some images: its second moment is the
            covariance of the noise of a row. float32. [num_images, proj_dim]
        parts: What F and G are made of, float64: number of rows, share of the whole, mean diagonal. [2, 3]
    """

    matrix: Tensor
    noise: Tensor
    parts: Tensor
    _factors: dict[tuple[float, torch.device], Tensor] = field(default_factory=dict, init=False, repr=False)

    def solve(self, query: Tensor, damping: float) -> Tensor:
        """Return ``query (M + damping I)^-1``, by a Cholesky factor in float64 that is kept for the next call.

        Args:
            query: [num_queries, proj_dim]
            damping: In mean diagonals.

        Returns:
            float64, on the device of the query. [num_queries, proj_dim]

        Raises:
            ValueError: If the damped matrix is not positive definite.
        """
        key = (float(damping), query.device)
        if key not in self._factors:
            damped = self.matrix.to(query.device).double()
            damped.diagonal().add_(damping)
            factor, failed = torch.linalg.cholesky_ex(damped)
            if failed.item():
                raise ValueError(
                    f"damping must be large enough for the Gram matrix to be positive definite, got {damping:g}; some "
                    "directions hold no gradient at all"
                )
            while len(self._factors) >= _KEPT_FACTORS:
                self._factors.pop(next(iter(self._factors)))
            self._factors[key] = factor
        return torch.cholesky_solve(query.double().T, self._factors[key]).T

    def row_errors(self, solution: Tensor) -> Tensor:
        """Return the standard error of scores from the noise of a row of unit noise norm.

        ``sqrt(v^T C v / tr C)`` with C the covariance of rows' noise: times the noise norm of a row it is the standard
        error of its score.

        Args:
            solution: Solved queries v. [num_queries, proj_dim]

        Returns:
            float64; NaN where the fit knows no noise. [num_queries]
        """
        noise = self.noise.to(solution)
        return ((solution @ noise.T).square().sum(1) / noise.square().sum()).sqrt()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the matrix as one safetensors file, whole or not at all; equal ones give equal bytes."""
        write_tensors(path, "gram", {name: getattr(self, name) for name in _TENSORS})

    @staticmethod
    def load(path: str | os.PathLike[str]) -> GramMatrix:
        """Read what ``save`` wrote.

        Args:
            path: The file.

        Returns:
            The matrix, on the CPU.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is damaged or holds something else.
        """
        found = read_tensors(path, "gram", _TENSORS)
        return GramMatrix(**{name: found[name] for name in _TENSORS})


class Moment(NamedTuple):
    """A mean outer product of rows.

    Attributes:
        matrix: float64, of which the upper triangle counts. [proj_dim, proj_dim]
        num_rows: Of how many.
    """

    matrix: Tensor
    num_rows: int


def mix(own: Moment, pseudo: Moment, own_share: float, noise: Tensor) -> GramMatrix:
    """Return ``share F / mean diag F + (1 - share) G / mean diag G``.

    Args:
        own: F; overwritten.
        pseudo: G.
        own_share: The share of F.
        noise: See ``GramMatrix``.

    Returns:
        The Gram matrix, on the CPU.

    Raises:
        ValueError: If all gradients are zero.
    """
    means = [moment.matrix.diagonal().mean().item() for moment in (own, pseudo)]
    shares = [share if mean > 0 else 0.0 for share, mean in zip((own_share, 1 - own_share), means, strict=True)]
    if not sum(shares):
        raise ValueError("all gradients are zero: there is nothing to score with")
    shares = [share / sum(shares) for share in shares]  # one of the two may be zero
    factors = [share / mean if share else 0.0 for share, mean in zip(shares, means, strict=True)]
    upper = own.matrix.mul_(factors[0]).add_(pseudo.matrix, alpha=factors[1]).triu_()
    diagonal = upper.diagonal().clone()
    upper.add_(upper.T.clone()).diagonal().copy_(diagonal)
    rows = [[own.num_rows, shares[0], means[0]], [pseudo.num_rows, shares[1], means[1]]]
    parts = torch.tensor(rows, dtype=torch.float64, device="cpu")
    return GramMatrix(upper.float().cpu(), noise.float().cpu(), parts)


def second_moment(blocks: Iterable[Tensor], proj_dim: int, device: torch.device) -> Moment:
    """Return the mean outer product of rows.

    Args:
        blocks: The rows, in blocks, each float32. [num_rows, proj_dim]
        proj_dim: Their length.
        device: Where to compute.

    Returns:
        The mean.
    """
    gram = torch.zeros(proj_dim, proj_dim, dtype=torch.float64, device=device)
    count = 0
    for block in blocks:
        ops.accumulate_gram_(gram, block.to(device).contiguous())
        count += len(block)
    return Moment(gram.div_(max(1, count)), count)
