"""The predicted effect of removing a set is what fitting again without it does, on models that are linear."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import pytest
import torch
from cases import randn
from torch import Tensor

from journey.curvature.downdates import Downdates

NUM_TRAIN, OUTPUTS, DIM, RIDGE = 12, 3, 7, 0.5


class Problem(NamedTuple):
    """Ridge regression of several outputs per image, whose Jacobians are the rows of ``jacobians``."""

    jacobians: Tensor  # [NUM_TRAIN, OUTPUTS, DIM]
    targets: Tensor  # [NUM_TRAIN, OUTPUTS]
    query: Tensor  # [DIM]

    def fit(self, without: list[int]) -> Tensor:
        """Parameters fitted to the other images. [DIM]."""
        kept = [i for i in range(NUM_TRAIN) if i not in without]
        x, y = self.jacobians[kept].flatten(0, 1), self.targets[kept].flatten()
        return torch.linalg.solve(x.T @ x + RIDGE * torch.eye(DIM, dtype=x.dtype), x.T @ y)

    def change(self, without: list[int]) -> float:
        """What leaving images out does to the query's output, with the sign of a loss that falls with it."""
        return (self.query @ (self.fit([]) - self.fit(without))).item()

    def downdates(self, *, left_out: bool) -> Downdates:
        residuals = []
        for i in range(NUM_TRAIN):
            fitted = self.fit([i] if left_out else [])
            residuals.append(self.targets[i] - self.jacobians[i] @ fitted)
        gradients = torch.einsum("nok,no->nk", self.jacobians, torch.stack(residuals))
        x = self.jacobians.flatten(0, 1)
        curvature = x.T @ x + RIDGE * torch.eye(DIM, dtype=x.dtype)
        return Downdates(curvature, self.jacobians, gradients, self.query, left_out=left_out)


def make_problem(seed: int = 0) -> Problem:
    shapes = ((NUM_TRAIN, OUTPUTS, DIM), (NUM_TRAIN, OUTPUTS), (DIM,))
    return Problem(*(randn(*shape, seed=seed + i).double() for i, shape in enumerate(shapes)))


@pytest.mark.parametrize("left_out", [False, True], ids=["residuals", "left-out residuals"])
def test_every_set_is_predicted_exactly(left_out: bool) -> None:
    problem = make_problem()
    model, chosen = problem.downdates(left_out=left_out), []
    for i in (4, 0, 11, 7, 2, 9):
        expected = torch.tensor([problem.change([*chosen, j]) for j in range(NUM_TRAIN) if j not in chosen])
        found = model.totals()[[j for j in range(NUM_TRAIN) if j not in chosen]].float()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        model.add(i)
        chosen.append(i)
        assert model.total == pytest.approx(problem.change(chosen), rel=1e-9)


def test_mistakes_would_be_seen() -> None:
    problem = make_problem()
    exact = problem.change([4, 0])
    model = problem.downdates(left_out=False)
    singles = model.totals()
    assert abs(singles[[4, 0]].sum().item() - exact) > 0.02 * abs(exact), "a sum of single effects"
    swapped = Problem(problem.jacobians, problem.targets, -problem.query).downdates(left_out=False)
    for i in (4, 0):
        model.add(i)
        swapped.add(i)
    assert swapped.total == pytest.approx(-exact, rel=1e-9), "another sign of the query"


def test_a_left_out_gradient_alone_gives_its_score() -> None:
    problem = make_problem()
    model = problem.downdates(left_out=True)
    x = problem.jacobians.flatten(0, 1)
    kernel = torch.linalg.inv(x.T @ x + RIDGE * torch.eye(DIM, dtype=x.dtype))
    for i in range(NUM_TRAIN):
        residual = problem.targets[i] - problem.jacobians[i] @ problem.fit([i])
        score = problem.query @ kernel @ (problem.jacobians[i].T @ residual)
        assert model.totals()[i].item() == pytest.approx(score.item(), rel=1e-9)


def test_a_block_that_holds_all_curvature_is_refused() -> None:
    query, gradients = randn(DIM, seed=1).double(), randn(2, DIM, seed=2).double()
    blocks = torch.zeros(2, 1, DIM, dtype=torch.float64)
    blocks[:, 0, 0] = 0.8  # a leverage of 0.64 each
    model = Downdates(torch.eye(DIM).double(), blocks, gradients, query, left_out=False)
    assert not model.totals().isnan().any()
    model.add(0)
    assert model.totals().isnan().all()
    with pytest.raises(ValueError, match="candidate 1 holds all curvature that the set has left"):
        model.add(1)


def test_a_curvature_that_is_not_positive_definite_is_refused() -> None:
    flat = torch.diag(torch.tensor([1.0] * (DIM - 1) + [-1.0])).double()
    with pytest.raises(ValueError, match="curvature must be positive definite"):
        Downdates(flat, torch.zeros(1, 1, DIM), torch.zeros(1, DIM), torch.zeros(DIM), left_out=False)


def test_adding_images_in_another_order_gives_the_same_total() -> None:
    totals = []
    for order in ((1, 5, 8), (8, 1, 5), (5, 8, 1)):
        model = make_problem(seed=10).downdates(left_out=True)
        for i in order:
            model.add(i)
        totals.append(model.total)
    assert all(a == pytest.approx(b, rel=1e-9) for a, b in pairwise(totals))
