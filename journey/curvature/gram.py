"""The Gram matrix that scores are solved with: half own gradients, half pseudo-gradients.

Removing an image changes a model by the inverse of the curvature of its loss. Outer products of the images' own
gradients (the empirical Fisher matrix F) and of pseudo-gradients (the Gauss-Newton matrix G) both estimate it, and
each alone predicts retraining worse on some data than half of each (docs/results/choices.md):

``M = 1/2 F / mean diag F + 1/2 G / mean diag G``

in sketch coordinates; its mean diagonal is one, the unit of the damping.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from journey import ops
from journey.files.paths import GivenPath
from journey.files.tensors import read_tensors, write_tensors

# Damping of scores in mean diagonals: agrees best with retraining (docs/results/choices.md).
DEFAULT_DAMPING = 1.0
_TENSORS = ("factor", "noise", "parts")
# Numbers of the kept matrix, at most: 256 MiB.
LARGEST_GRAM = 1 << 26
_KEPT_FACTORS = 2


@dataclass(frozen=True, eq=False)
class GramMatrix:
    """The Gram matrix of a fit under one set of weights, M, of mean diagonal one.

    Attributes:
        factor: M itself, [proj_dim, proj_dim], or fewer rows R with ``M = R^T R``, float32. [num_rows, proj_dim]
        noise: Half the difference of two disjoint halves of the draws of some images: its second moment is the
            covariance of the noise of a row. float32. [num_images, proj_dim]
        parts: What F and G are made of, float64: number of rows, share of the whole, mean diagonal. [2, 3]
    """

    factor: Tensor
    noise: Tensor
    parts: Tensor
    _factors: dict[tuple[float, torch.device], Tensor] = field(default_factory=dict, init=False, repr=False)

    @property
    def is_whole(self) -> bool:
        """Whether ``factor`` is M itself."""
        return self.factor.shape[0] == self.factor.shape[1]

    @property
    def matrix(self) -> Tensor:
        """M, float32. [proj_dim, proj_dim]"""
        return self.factor if self.is_whole else self.factor.T @ self.factor

    def eigenvalues(self) -> Tensor:
        """Return the eigenvalues of M, ascending, none negative, float64. [proj_dim]"""
        factor = self.factor.double()
        found = torch.linalg.eigvalsh(factor if self.is_whole else factor @ factor.T).clamp(min=0)
        return F.pad(found, (factor.shape[1] - len(found), 0))

    def solve(self, query: Tensor, damping: float) -> Tensor:
        """Return ``query (M + damping I)^-1``, by a Cholesky factor in float64 that is kept for the next call.

        With fewer rows than numbers ``(R^T R + d I)^-1 = (I - R^T (R R^T + d I)^-1 R) / d``.

        Args:
            query: [num_queries, proj_dim]
            damping: In mean diagonals.

        Returns:
            float64, on the device of the query. [num_queries, proj_dim]

        Raises:
            ValueError: If the damped matrix is not positive definite.
        """
        key, query = (float(damping), query.device), query.double()
        rows = self.factor.to(query.device).double() if key not in self._factors or not self.is_whole else None
        if key not in self._factors:
            assert rows is not None
            damped = rows.clone() if self.is_whole else rows @ rows.T
            damped.diagonal().add_(damping)
            cholesky, failed = torch.linalg.cholesky_ex(damped)
            if failed.item() or not (damping > 0 or self.is_whole):
                raise ValueError(
                    f"damping must be large enough for the Gram matrix to be positive definite, got {damping:g}; some "
                    "directions hold no gradient at all"
                )
            while len(self._factors) >= _KEPT_FACTORS:
                self._factors.pop(next(iter(self._factors)))
            self._factors[key] = cholesky
        if self.is_whole:
            return torch.cholesky_solve(query.T, self._factors[key]).T
        assert rows is not None
        inside = torch.cholesky_solve(rows @ query.T, self._factors[key])
        return (query - inside.T @ rows) / damping

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

    def save(self, path: GivenPath, *, fit: str) -> None:
        """Write the matrix as one safetensors file, whole or not at all; equal ones give equal bytes.

        Args:
            path: The file.
            fit: Fingerprint of what the rows were measured with.
        """
        tensors = {name: getattr(self, name) for name in _TENSORS}
        write_tensors(path, "gram", {**tensors, "fit": _as_bytes(fit)})

    @staticmethod
    def load(path: GivenPath, *, fit: str) -> GramMatrix:
        """Read what ``save`` wrote.

        Args:
            path: The file.
            fit: As for ``save``.

        Returns:
            The matrix, on the CPU.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is damaged, holds something else, or is of another fit.
        """
        found = read_tensors(path, "gram", (*_TENSORS, "fit"))
        if not torch.equal(found["fit"], _as_bytes(fit)):
            raise ValueError(f"{path} is the Gram matrix of another fit")
        return GramMatrix(**{name: found[name] for name in _TENSORS})


def _as_bytes(text: str) -> Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8, device="cpu")


Blocks = Callable[[], Iterator[Tensor]]


def mix(own: Blocks, pseudo: Blocks, own_share: float, noise: Tensor, device: torch.device) -> GramMatrix:
    """Return ``share F / mean diag F + (1 - share) G / mean diag G``.

    Args:
        own: The rows of which F is the mean outer product, in blocks; each float32. [num_rows, proj_dim]
        pseudo: Those of G, likewise.
        own_share: The share of F.
        noise: See ``GramMatrix``.
        device: Where to compute.

    Returns:
        The Gram matrix, on the CPU.

    Raises:
        ValueError: If all gradients are zero.
    """
    proj_dim, counts, means = noise.shape[1], [], []
    for blocks in (own, pseudo):
        squares = [(len(block), block.double().square().sum().item()) for block in blocks()]
        counts.append(sum(count for count, _ in squares))
        means.append(sum(square for _, square in squares) / max(1, counts[-1]) / proj_dim)
    shares = [share if mean > 0 else 0.0 for share, mean in zip((own_share, 1 - own_share), means, strict=True)]
    if not sum(shares):
        raise ValueError("all gradients are zero: there is nothing to score with")
    shares = [share / sum(shares) for share in shares]  # one of the two may be zero
    weights = [
        (share / mean / count) ** 0.5 if share else 0.0
        for share, mean, count in zip(shares, means, counts, strict=True)
    ]

    def rows() -> Iterator[Tensor]:
        for blocks, weight in zip((own, pseudo), weights, strict=True):
            yield from (block * weight for block in blocks() if weight)

    used = sum(count for count, weight in zip(counts, weights, strict=True) if weight)
    if used < proj_dim:
        factor = torch.cat(list(rows()))
    else:
        gram = torch.zeros(proj_dim, proj_dim, dtype=torch.float64, device=device)
        for block in rows():
            ops.accumulate_gram_(gram, block.to(device).contiguous())
        factor = gram.triu_().add_(gram.triu(1).T).float().cpu()
    table = [list(part) for part in zip(counts, shares, means, strict=True)]
    return GramMatrix(factor, noise.float().cpu(), torch.tensor(table, dtype=torch.float64, device="cpu"))
