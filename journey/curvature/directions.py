"""Coordinates in which scores are plain inner products, and of which few say nearly all: short rows for exports.

With ``M + damping I = L L^T`` a score is the inner product of ``z = L^-1 row`` and ``L^-1 query``. Rows, and queries
that are spread as rows are, lose least by keeping the principal components of the z (docs/results/choices.md). What the
Gram matrix M knows of other gradients decides where rows do not: a store of few images says nothing of most directions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from journey import ops
from journey.curvature.gram import DEFAULT_DAMPING, LARGEST_GRAM, GramMatrix
from journey.files.paths import GivenPath
from journey.files.tensors import read_tensors, write_tensors

# Of M in the second moment whose principal components are kept: enough to rank what no row reaches.
_GRAM_SHARE = 1e-3
_TENSORS = ("of_rows", "of_queries")


@dataclass(frozen=True, eq=False)
class Directions:
    """Two matrices that shorten rows and solved queries so that their inner products stay the scores, nearly.

    Rows and queries must be cut by the same object, kept in a file where they are not by one process: the signs of
    principal components, and all of those that are equally long, are others on another machine.

    Attributes:
        of_rows: ``L^-T U`` with the principal components U, the longest first, float32. [proj_dim, dims]
        of_queries: ``L U``, float32. [proj_dim, dims]
    """

    of_rows: Tensor
    of_queries: Tensor

    @property
    def dims(self) -> int:
        """Length of what is cut."""
        return self.of_rows.shape[1]

    @staticmethod
    def of(
        gram: GramMatrix, blocks: Iterable[tuple[object, Tensor]], dims: int, *, damping: float = DEFAULT_DAMPING
    ) -> Directions:
        """Find the directions, by an eigendecomposition in float64, in the memory of about six Gram matrices.

        Args:
            gram: The Gram matrix of the fit, ``features.fit.gram(checkpoint)``.
            blocks: Ids and rows, block after block, ``features.blocks(checkpoint)``; each float32 [n, proj_dim].
            dims: How many. As many as a row has numbers lose nothing, as many as there are rows next to nothing.
            damping: In mean diagonals, that of the queries; with another one they are right, but lose more.

        Returns:
            The directions, on the CPU.

        Raises:
            ValueError: If ``dims`` is out of range, ``damping`` is not positive, rows have another length than the
                Gram matrix or more than 8,192 numbers, are not finite or all zero.
        """
        proj_dim = gram.factor.shape[1]
        if proj_dim**2 > LARGEST_GRAM:
            raise ValueError(f"gram must be of rows of at most 8,192 numbers to be cut, got {proj_dim:,}")
        if isinstance(dims, bool) or not isinstance(dims, int) or not 1 <= dims <= proj_dim:
            raise ValueError(f"dims must be an integer between 1 and {proj_dim}, the length of a row, got {dims!r}")
        if isinstance(damping, bool) or not (isinstance(damping, int | float) and 0 < damping < float("inf")):
            raise ValueError(f"damping must be a positive number, got {damping!r}")
        damped = gram.matrix.double()
        moment = _second_moment(blocks, proj_dim)
        moment.add_(damped, alpha=_GRAM_SHARE / damped.trace().item())
        damped.diagonal().add_(damping)
        root = torch.linalg.cholesky(damped)
        inner = torch.linalg.solve_triangular(root, moment, upper=False)
        inner = torch.linalg.solve_triangular(root, inner.T, upper=False)
        components = torch.linalg.eigh(inner).eigenvectors[:, -dims:].flip(1)
        of_rows = torch.linalg.solve_triangular(root.T, components, upper=True)
        return Directions(of_rows.float().contiguous(), (root @ components).float())

    def rows(self, rows: Tensor) -> Tensor:
        """Return rows in these directions.

        Args:
            rows: As the store has them. [num_rows, proj_dim]

        Returns:
            float32. [num_rows, dims]

        Raises:
            ValueError: If they have another length.
        """
        return _times(rows, self.of_rows, "rows")

    def queries(self, solutions: Tensor) -> Tensor:
        """Return solved queries in these directions; their inner products with ``rows`` are the scores, nearly.

        Args:
            solutions: Solved queries, as ``scores.solutions`` has them. [..., proj_dim]

        Returns:
            float32. [..., dims]

        Raises:
            ValueError: If they have another length.
        """
        return _times(solutions, self.of_queries, "solutions")

    def save(self, path: GivenPath) -> None:
        """Write the directions as one safetensors file, whole or not at all; equal ones give equal bytes."""
        write_tensors(path, "directions", {name: getattr(self, name) for name in _TENSORS})

    @staticmethod
    def load(path: GivenPath) -> Directions:
        """Read what ``save`` wrote.

        Args:
            path: The file.

        Returns:
            The directions.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is damaged or holds something else.
        """
        found = read_tensors(path, "directions", _TENSORS)
        return Directions(*(found[name] for name in _TENSORS))


def _second_moment(blocks: Iterable[tuple[object, Tensor]], proj_dim: int) -> Tensor:
    """The sum of outer products of rows, of trace one, float64. [proj_dim, proj_dim]"""
    moment = torch.zeros(proj_dim, proj_dim, dtype=torch.float64, device="cpu")
    for _, rows in blocks:
        if rows.dim() != 2 or rows.shape[1] != proj_dim:
            raise ValueError(f"blocks must have rows [n, proj_dim] = [n, {proj_dim}], got {list(rows.shape)}")
        ops.accumulate_gram_(moment, rows.float().contiguous())
    trace = moment.trace().item()
    if not 0 < trace < float("inf"):
        raise ValueError("blocks must have rows that are finite and not all zero")
    return moment.triu_().add_(moment.triu(1).T).div_(trace)


def _times(given: Tensor, matrix: Tensor, name: str) -> Tensor:
    if given.shape[-1] != len(matrix):
        raise ValueError(f"{name} must be [..., proj_dim] = [..., {len(matrix)}], got {list(given.shape)}")
    return given.float() @ matrix
