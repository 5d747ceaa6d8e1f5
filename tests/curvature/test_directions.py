"""Cut rows and queries have the scores of the kernel, of as much of it as their directions hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cases import randn
from torch import Tensor

from journey.curvature import directions as module
from journey.curvature.directions import Directions
from journey.curvature.gram import GramMatrix

DIM, COUNT, QUERIES, DAMPING = 48, 200, 6, 0.7


def make_gram(num_rows: int = 3 * DIM, *, whole: bool = True) -> GramMatrix:
    """A Gram matrix of mean diagonal one, as itself or as the rows that it is made of."""
    rows = randn(num_rows, DIM, seed=1) @ (randn(DIM, DIM, seed=2) / DIM**0.5)
    rows = rows * (DIM / rows.square().sum()) ** 0.5
    return GramMatrix(rows.T @ rows if whole else rows, torch.zeros(1, DIM), torch.zeros(2, 3))


GRAM = make_gram()
# Rows that lie mostly in a few directions, which are not those of the Gram matrix.
ROWS = randn(COUNT, DIM, seed=3) * torch.linspace(2, 0, DIM).exp() @ torch.linalg.qr(randn(DIM, DIM, seed=4)).Q
BLOCKS = [(list(range(120)), ROWS[:120]), (list(range(120, COUNT)), ROWS[120:])]
QUERY = randn(QUERIES, DIM, seed=5) @ ROWS[:DIM] / DIM


def solved(damping: float = DAMPING) -> Tensor:
    return GRAM.solve(QUERY, damping).float()


def exact(damping: float = DAMPING) -> Tensor:
    """``query (M + damping I)^-1 row``, float64, from the first principles. [QUERIES, COUNT]"""
    damped = GRAM.factor.double() + damping * torch.eye(DIM, dtype=torch.float64)
    inverse: Tensor = torch.linalg.inv(damped)
    return QUERY.double() @ inverse @ ROWS.double().T


def cut_exactly(dims: int) -> Tensor:
    """Scores of the principal components of rows in the damped coordinates, by another root: V (w + d)^-1/2."""
    eigenvalues, vectors = np.linalg.eigh(GRAM.factor.double().numpy())
    root = vectors / np.sqrt(eigenvalues + DAMPING)
    rows, queries = ROWS.double().numpy() @ root, QUERY.double().numpy() @ root
    _, _, components = np.linalg.svd(rows, full_matrices=False)
    return torch.from_numpy(queries @ components[:dims].T @ components[:dims] @ rows.T)


def off(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def products(cut: Directions, solutions: Tensor) -> Tensor:
    return (cut.queries(solutions) @ cut.rows(ROWS).T).double()


def test_all_directions_lose_nothing_whatever_the_damping_of_the_query() -> None:
    cut = Directions.of(GRAM, BLOCKS, DIM, damping=DAMPING)
    assert cut.dims == DIM
    for damping in (DAMPING, 0.01, 30.0):
        assert off(products(cut, solved(damping)), exact(damping)) < 1e-5


@pytest.mark.parametrize("dims", [1, 5, 20])
def test_cut_scores_are_those_of_the_principal_components_in_damped_coordinates(
    dims: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_GRAM_SHARE", 0.0)
    cut = Directions.of(GRAM, BLOCKS, dims, damping=DAMPING)
    assert off(products(cut, solved()), cut_exactly(dims)) < 1e-5
    assert off(products(cut, solved()), exact()) > 1e-3


def test_rows_say_more_along_them_than_along_the_eigenvectors_of_the_gram_matrix() -> None:
    found = products(Directions.of(GRAM, BLOCKS, 12, damping=DAMPING), solved())
    vectors = torch.linalg.eigh(GRAM.factor.double()).eigenvectors[:, -12:]
    strongest = (solved().double() @ vectors) @ (ROWS.double() @ vectors).T
    assert off(found, exact()) < 0.5 * off(strongest, exact())


def test_as_many_directions_as_rows_lose_next_to_nothing_and_the_gram_matrix_ranks_the_others() -> None:
    few = ROWS[:8]
    cut = Directions.of(GRAM, [(list(range(8)), few)], 16, damping=DAMPING)
    assert off((cut.queries(solved()) @ cut.rows(few).T).double(), exact()[:, :8]) < 0.02
    damped = GRAM.factor.double() + DAMPING * torch.eye(DIM, dtype=torch.float64)
    # What rows do not reach is spanned by orthonormal directions in which M is largest.
    kept, inverse = cut.of_queries.double(), torch.linalg.inv(damped)
    torch.testing.assert_close(kept.T @ inverse @ kept, torch.eye(16, dtype=torch.float64), rtol=0, atol=1e-5)
    shares = (cut.of_rows.double().T @ GRAM.factor.double() @ cut.of_rows.double()).trace()
    random = torch.linalg.cholesky(damped) @ torch.linalg.qr(randn(DIM, 16, seed=9).double()).Q
    other = torch.linalg.solve(damped, random)
    assert shares > 1.1 * (other.T @ GRAM.factor.double() @ other).trace()


def test_a_gram_matrix_that_is_kept_as_rows_gives_the_same_scores() -> None:
    rows, whole = (make_gram(20, whole=kept) for kept in (False, True))
    assert not rows.is_whole
    solutions = rows.solve(QUERY, DAMPING).float()
    found = [products(Directions.of(gram, BLOCKS, 30, damping=DAMPING), solutions) for gram in (rows, whole)]
    assert off(found[0], found[1]) < 1e-4


def test_directions_are_kept_in_a_file(tmp_path: Path) -> None:
    cut = Directions.of(GRAM, BLOCKS, 7)
    cut.save(tmp_path / "a")
    found = Directions.load(tmp_path / "a")
    assert torch.equal(found.rows(ROWS), cut.rows(ROWS))
    assert torch.equal(found.queries(solved()[:, None]), cut.queries(solved()[:, None]))
    assert found.queries(solved()[:, None]).shape == (QUERIES, 1, 7)
    with (tmp_path / "a").open("r+b") as file:
        file.seek(-3, 2)
        file.write(b"x")
    with pytest.raises(ValueError, match="damaged"):
        Directions.load(tmp_path / "a")


def test_wrong_arguments_are_refused() -> None:
    for dims in (0, DIM + 1, 2.0, True):
        with pytest.raises(ValueError, match=f"dims must be an integer between 1 and {DIM}"):
            Directions.of(GRAM, BLOCKS, dims)  # type: ignore[arg-type]
    for damping in (0, -1, float("nan"), float("inf"), True):
        with pytest.raises(ValueError, match="damping must be a positive number"):
            Directions.of(GRAM, BLOCKS, 3, damping=damping)
    for blocks in ([], [([1], torch.zeros(1, DIM))], [([1], torch.full((1, DIM), torch.nan))]):
        with pytest.raises(ValueError, match="rows that are finite and not all zero"):
            Directions.of(GRAM, blocks, 3)
    with pytest.raises(ValueError, match=rf"blocks must have rows \[n, proj_dim\] = \[n, {DIM}\], got \[200, 40\]"):
        Directions.of(GRAM, [([], ROWS[:, :40])], 3)
    cut = Directions.of(GRAM, BLOCKS, 3)
    with pytest.raises(ValueError, match=rf"rows must be \[..., proj_dim\] = \[..., {DIM}\], got \[200, 40\]"):
        cut.rows(ROWS[:, :40])
    with pytest.raises(ValueError, match="solutions must be"):
        cut.queries(cut.queries(solved()))  # cut already
    long = GramMatrix(torch.zeros(1, 10_000), torch.zeros(1, 10_000), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="rows of at most 8,192 numbers to be cut, got 10,000"):
        Directions.of(long, [], 3)
