"""The damped solve behind the scores: one float64 eigendecomposition gives every damping at once.

With features Phi [num_samples, proj_dim] and gram = Phi^T Phi (the Gram matrix of the columns),

    scores = query (gram + damping I)^-1 Phi^T

is solved with the smaller of gram [proj_dim, proj_dim] (primal) and Phi Phi^T [num_samples, num_samples] (dual); both
have the same non-zero eigenvalues. Damping is relative: a fraction of the mean eigenvalue, trace / min(n, k).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from journey import ops

# Grid of the automatic choice: from far below to far above the mean eigenvalue.
_DAMPING_GRID = torch.logspace(-6, 1, 71, dtype=torch.float64, device="cpu")

Blocks = Callable[[], Iterator[Tensor]]


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of the Gram matrix with what is needed to apply its damped inverse.

    Attributes:
        eigenvalues: Of the smaller of the two Gram matrices, ascending, float64, none negative. [rank_bound]
        left: Features in the eigenbasis, ``Phi V``, float64. [num_samples, rank_bound]
        right: Eigenvectors of ``Phi^T Phi``, or in the dual form ``Phi^T U / sqrt(eigenvalues)``, float64.
            [proj_dim, rank_bound]
        num_samples: Rows of Phi.
    """

    eigenvalues: Tensor
    left: Tensor
    right: Tensor
    num_samples: int

    @property
    def mean_eigenvalue(self) -> float:
        """Mean eigenvalue, the unit of relative damping."""
        return self.eigenvalues.mean().item()

    @property
    def noise_floor(self) -> float:
        """Eigenvalues below this are rounding: features are float32, their Gram matrix float64."""
        size = max(self.num_samples, len(self.right))
        return torch.finfo(torch.float64).eps * size * self.eigenvalues[-1].item()

    def scores(self, query: Tensor, damping: float) -> Tensor:
        """Return ``query (gram + damping * mean_eigenvalue * I)^-1 Phi^T``.

        Args:
            query: Features of the queries. [num_queries, proj_dim]
            damping: Relative damping; 0 gives the pseudo-inverse.

        Returns:
            Scores, float64. [num_queries, num_samples]

        Reference:
            Park et al., "TRAK", ICML 2023, section 3; the ridge is theirs in the code and explicit here.
        """
        coefficients = query.to(self.right) @ self.right
        return (coefficients * self._inverse(damping)) @ self.left.T

    def inverse_magnitude(self, damping: float) -> float:
        """Return the mean magnitude of the entries of ``(gram + damping * mean_eigenvalue * I)^-1``.

        Time proj_dim**2 * rank_bound, in blocks of rows of 128 MiB float64.
        """
        floor, ridge = self.noise_floor, damping * self.mean_eigenvalue
        present = self.eigenvalues > floor
        basis = self.right[:, present]
        # Outside the span of Phi the inverse is 1 / ridge: V (D - 1 / ridge) V^T + I / ridge.
        outside = 1 / ridge if ridge > floor else 0.0
        inside = self._inverse(damping)[present] - outside
        proj_dim, total = len(basis), 0.0
        block = max(1, 2**24 // proj_dim)
        for number, rows in enumerate(basis.split(block)):
            entries = (rows * inside) @ basis.T
            entries.diagonal(number * block).add_(outside)
            total += entries.abs().sum().item()
        return total / proj_dim**2

    def leverages(self, damping: float) -> Tensor:
        """Return ``h_ii``, how far each sample determines its own fit, float64 in [0, 1]. [num_samples]"""
        return self.left.square() @ self._inverse(damping)

    def effective_rank(self, damping: float) -> float:
        """Return ``sum_j eigenvalue_j / (eigenvalue_j + damping)``, the number of directions that are in use."""
        return (self.eigenvalues * self._inverse(damping)).sum().item()

    def choose_damping(self, values: Tensor) -> float:
        """Return the relative damping of least generalised cross-validation error.

        The features' linear model of the measured values is ridge regression; GCV estimates its error on held-out
        samples from the training samples alone:

            gcv(damping) = mean((y - H y)^2) / (1 - trace(H) / n)^2        H = Phi (gram + damping I)^-1 Phi^T

        Args:
            values: What was measured for each sample; centred here. [num_samples]

        Returns:
            The best of 71 values between 1e-6 and 10.

        Reference:
            Golub, Heath and Wahba, "Generalized Cross-Validation as a Method for Choosing a Good Ridge Parameter",
            Technometrics 1979, Eq. 1.4.
        """
        y = values.to(self.right).flatten()
        y = y - y.mean()
        n = len(y)
        # Coordinates of y in the features' left singular vectors; the rest of y is fitted by no damping.
        present = self.eigenvalues > self.noise_floor
        z = (self.left.T @ y)[present] / self.eigenvalues[present].sqrt()
        # With a direction for each sample nothing is left, and the difference would be rounding: small, but not beside
        # the residual of the least dampings.
        rest = (y @ y - z @ z).clamp(min=0) if len(z) < n else y.new_zeros(())
        shrink = self.eigenvalues[present] / (
            self.eigenvalues[present] + self.mean_eigenvalue * _DAMPING_GRID.to(z)[:, None]
        )
        residual = ((1 - shrink) * z).square().sum(1) + rest
        freedom = 1 - shrink.sum(1) / n
        gcv = residual / n / freedom.clamp(min=1e-12).square()
        return _DAMPING_GRID[int(gcv.argmin())].item()

    def check(self, damping: float) -> None:
        """Warn of a damping that leaves the result to rounding, or of features that span few directions.

        Args:
            damping: Relative damping.

        Raises:
            ValueError: If it is negative or not finite, or all features are zero.
        """
        if not 0 <= damping < float("inf"):
            raise ValueError(f'damping must be "auto" or a number >= 0, got {damping}')
        if self.mean_eigenvalue == 0:
            raise ValueError("all features are zero: there is nothing to score with")
        floor = self.noise_floor
        if damping * self.mean_eigenvalue < floor and bool((self.eigenvalues <= floor).any()):
            warnings.warn(
                f"damping {damping:g} is below the rounding noise of the features ({floor / self.mean_eigenvalue:.1e} "
                "of the mean eigenvalue) and some eigenvalues are too; these directions are dropped",
                stacklevel=4,
            )
        rank = self.effective_rank(damping)
        if rank < 0.01 * len(self.eigenvalues):
            warnings.warn(
                f"the damped features use only {rank:.1f} of {len(self.eigenvalues)} directions (effective rank); a "
                "smaller damping would tell more samples apart",
                stacklevel=4,
            )

    def _inverse(self, damping: float) -> Tensor:
        ridge = damping * self.mean_eigenvalue
        floor = self.noise_floor
        keep = self.eigenvalues + ridge > floor
        return torch.where(keep, 1 / torch.where(keep, self.eigenvalues + ridge, 1.0), 0.0)


def decompose(blocks: Blocks, num_samples: int, proj_dim: int) -> Spectrum:
    """Decompose the Gram matrix of features that come in blocks.

    Args:
        blocks: Iterates over all features, in order; called up to two times. Each [num_rows, proj_dim]
        num_samples: Rows of all blocks together.
        proj_dim: Their columns.

    Returns:
        The spectrum, on the device of the blocks.

    Note:
        Dual form when ``num_samples <= proj_dim``: memory 3 * num_samples * proj_dim float64. Otherwise primal: blocks
        are streamed, memory (2 * proj_dim + num_samples) * proj_dim float64.
    """
    if num_samples <= proj_dim:
        phi = torch.cat([block.double() for block in blocks()])
        eigenvalues, u = torch.linalg.eigh(phi @ phi.T)
        eigenvalues = eigenvalues.clamp(min=0)
        root = eigenvalues.sqrt()
        safe = torch.where(root > 0, root, 1.0)
        return Spectrum(eigenvalues, u * root, (phi.T @ u) / safe, num_samples)
    gram = None
    for block in blocks():
        if gram is None:
            gram = torch.zeros(proj_dim, proj_dim, dtype=torch.float64, device=block.device)
        ops.accumulate_gram_(gram, block)
    assert gram is not None
    eigenvalues, v = torch.linalg.eigh(gram, UPLO="U")
    left = torch.cat([block.double() @ v for block in blocks()])
    return Spectrum(eigenvalues.clamp(min=0), left, v, num_samples)
