"""Leave-one-out in closed form: on a denoiser that is linear in its parameters, scores are what retraining does.

The network predicts one number, linear in the channels of x_t, and images, noise and timestep are chosen so that x_t
is a row of a design matrix X and the target an entry of y. Training is then (ridge) regression, and leaving image i
out has a closed form, which is computed here by solving the regression again without it. Two identities hold:

A. With the output as the measurement, ``score * r_i / (1 - h_ii)`` *is* the change of the query's output, exactly, for
   every damping (r: residual, h: leverage). Its square is what DAS computes.
B. With the loss as the measurement the kernel is weighted by squared residuals. Where all residuals have one size c,
   the score is the influence function of the loss divided by 2 c^2, and the loss after retraining differs from what it
   says by terms of second order in the leverage.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from cases import randn
from models import make_scheduler
from torch import Tensor, nn

from journey.measure.draws import ExplicitDraws
from journey.measure.measurements import Measurement, Prediction
from journey.methods import das
from journey.methods.method import Method
from journey.methods.preconditioners import Gram, Plain
from journey.models.denoiser import Denoiser
from journey.projectors.exact import Identity

NUM_TRAIN, NUM_QUERIES, DIM = 30, 4, 5
TIMESTEP = 60
SCHEDULER = make_scheduler()


class Linear(nn.Module):
    """One number, linear in the channels of a single pixel."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.mix = nn.Conv2d(DIM, 1, 1, bias=False)
        with torch.no_grad():
            self.mix.weight.copy_(weights.view(1, DIM, 1, 1))
        self.eval()

    def forward(self, x_t: Tensor, timesteps: Tensor) -> Tensor:
        return self.mix(x_t)


class Output(Measurement):
    """The one number that the network predicts."""

    def __call__(self, p: Prediction) -> Tensor:
        return p.prediction.flatten()


class Loss(Measurement):
    """Its squared difference from the first channel of the noise."""

    def __call__(self, p: Prediction) -> Tensor:
        return (p.target[:, 0].flatten() - p.prediction.flatten()).square()


LOSS = Method("loss", "", measurement=Loss(), preconditioner=Gram(0.0))


class Regression(NamedTuple):
    """Rows of training images, then of queries."""

    x: Tensor  # [NUM_TRAIN + NUM_QUERIES, DIM], float64
    y: Tensor  # [NUM_TRAIN + NUM_QUERIES], float64

    def fit(self, ridge: float, without: int | None = None) -> Tensor:
        """Ridge regression on the training rows. [DIM]."""
        kept = [i for i in range(NUM_TRAIN) if i != without]
        x, y = self.x[kept], self.y[kept]
        return torch.linalg.solve(x.T @ x + ridge * torch.eye(DIM, dtype=x.dtype), x.T @ y)

    def ridge(self, damping: float) -> float:
        """The ridge that a relative damping stands for, when features are the rows of X."""
        return damping * self.x[:NUM_TRAIN].square().sum().item() / DIM

    def problem(self, weights: Tensor) -> tuple[Denoiser, Tensor, ExplicitDraws]:
        """A denoiser with these weights, images and draws for which x_t is X and the target is y."""
        denoiser = Denoiser(Linear(weights), SCHEDULER)
        noise = randn(len(self.x), DIM, 1, 1, seed=9).double()
        noise[:, 0, 0, 0] = self.y
        abar = SCHEDULER.alphas_cumprod[TIMESTEP].double()
        images = (self.x.view(-1, DIM, 1, 1) - (1 - abar).sqrt() * noise) / abar.sqrt()
        timesteps = torch.full((len(self.x), 1), TIMESTEP)
        return denoiser, images.float(), ExplicitDraws(timesteps, noise.float().unsqueeze(1))


def random_regression() -> Regression:
    x = randn(NUM_TRAIN + NUM_QUERIES, DIM, seed=1).double()
    return Regression(x, x @ randn(DIM, seed=2).double() + 0.5 * randn(len(x), seed=3).double())


def equal_residuals(size: float = 0.3) -> Regression:
    """Residuals of the least-squares fit are +size or -size for every training image."""
    signs = torch.where(torch.arange(NUM_TRAIN) % 2 == 0, 1.0, -1.0).double()
    x = randn(NUM_TRAIN + NUM_QUERIES, DIM, seed=1).double()
    # No column knows of the signs, so that they are what no fit explains.
    x[:NUM_TRAIN] -= torch.outer(signs, signs @ x[:NUM_TRAIN]) / NUM_TRAIN
    y = x @ randn(DIM, seed=2).double() + 0.7 * randn(len(x), seed=3).double()
    y[:NUM_TRAIN] = x[:NUM_TRAIN] @ randn(DIM, seed=2).double() + size * signs
    return Regression(x, y)


def library_scores(regression: Regression, weights: Tensor, method: Method) -> Tensor:
    """Scores [NUM_QUERIES, NUM_TRAIN] of a method with exact gradients and the regression's draws."""
    denoiser, images, draws = regression.problem(weights)
    method = method.change(draws=draws, projector=Identity())
    scores = method.run(denoiser, images[:NUM_TRAIN], images[NUM_TRAIN:], progress=False)
    return scores.values[:, 0].double()


def output_changes(regression: Regression, ridge: float) -> Tensor:
    """Query output of the full fit minus that without image i, by fitting again. [NUM_QUERIES, NUM_TRAIN]."""
    full = regression.fit(ridge)
    gone = torch.stack([full - regression.fit(ridge, without=i) for i in range(NUM_TRAIN)], 1)
    return regression.x[NUM_TRAIN:] @ gone


def predicted_changes(regression: Regression, damping: float, method: Method) -> Tensor:
    """Identity A from the library's scores. [NUM_QUERIES, NUM_TRAIN]."""
    ridge = regression.ridge(damping)
    weights = regression.fit(ridge)
    scores = library_scores(regression, weights, method)
    x, y = regression.x[:NUM_TRAIN], regression.y[:NUM_TRAIN]
    kernel = torch.linalg.inv(x.T @ x + ridge * torch.eye(DIM, dtype=x.dtype))
    leverages = (x @ kernel * x).sum(1)
    return scores * (y - x @ weights) / (1 - leverages)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


# Features are float32 sums of a few products: 1e-6, times the condition number of X^T X, which is below 10.
TOLERANCE = 1e-5


@pytest.mark.parametrize("damping", [0.0, 0.01, 1.0])
def test_scores_of_the_output_are_exact_leave_one_out(damping: float) -> None:
    regression = random_regression()
    method = Method("output", "", measurement=Output(), preconditioner=Gram(damping))
    found = predicted_changes(regression, damping, method)
    assert relative_error(found, output_changes(regression, regression.ridge(damping))) < TOLERANCE


@pytest.mark.parametrize("damping", [0.01, 1.0])
def test_das_is_the_squared_leave_one_out_change_of_the_output(damping: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("journey.methods.trak_family.TrainingLoss", Loss)  # the residual of the one number
    regression = random_regression()
    ridge = regression.ridge(damping)
    method = das().change(measurement=Output(), per_draw="mean", preconditioner=Gram(damping))
    found = library_scores(regression, regression.fit(ridge), method)
    assert relative_error(found, output_changes(regression, ridge).square()) < 2 * TOLERANCE  # squaring doubles errors


def test_scores_of_the_loss_are_its_influence_function_where_residuals_are_equal() -> None:
    regression = equal_residuals(size=0.3)
    found = library_scores(regression, regression.fit(0), LOSS)
    assert relative_error(found, loss_influences(regression) / (2 * 0.3**2)) < TOLERANCE


def loss_influences(regression: Regression) -> Tensor:
    """Gradient of the query's loss, inverse Hessian of the summed loss, gradient of image i's. [queries, train]."""
    weights = regression.fit(0)
    grads = -2 * (regression.y - regression.x @ weights)[:, None] * regression.x
    x = regression.x[:NUM_TRAIN]
    return grads[NUM_TRAIN:] @ torch.linalg.inv(2 * x.T @ x) @ grads[:NUM_TRAIN].T


def test_removing_a_proponent_raises_the_loss_as_the_score_says() -> None:
    regression = equal_residuals(size=0.05)
    x, y = regression.x[NUM_TRAIN:], regression.y[NUM_TRAIN:]

    def query_losses(without: int | None) -> Tensor:
        return (y - x @ regression.fit(0, without)).square()

    risen = torch.stack([query_losses(i) - query_losses(None) for i in range(NUM_TRAIN)], 1)
    scores = library_scores(regression, regression.fit(0), LOSS)
    # Exact is a factor 1 / (1 - h_ii) for the curvature and the square of a step of the size of r_i; leverages are at
    # most 0.5 here and steps a tenth of the query's residuals.
    strong = scores.abs() > scores.abs().median()
    ratio = (risen / (2 * 0.05**2 * scores))[strong]
    assert 0.8 < ratio.median() < 1.6
    assert (ratio > 0).float().mean() > 0.95, "a positive score must say that removal raises the loss"


MUTATIONS: dict[str, Callable[[Regression, Tensor], tuple[Regression, Tensor]]] = {
    # The noise of the next image in place of one's own: x_t and the target shift against the images.
    "noise of another image": lambda r, w: (Regression(r.x.roll(1, 0), r.y.roll(1, 0)), w),
    "weights of another model": lambda r, w: (r, w.flip(0)),
    "target of another image": lambda r, w: (Regression(r.x, r.y.roll(1, 0)), w),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_wrong_measurement_breaks_the_identity(mutation: str) -> None:
    """The oracle is worth something: each of these mistakes would be seen by the test of identity B."""
    regression = equal_residuals()
    expected = loss_influences(regression) / (2 * 0.3**2)
    wrong, weights = MUTATIONS[mutation](regression, regression.fit(0))
    found = library_scores(wrong, weights, LOSS)
    assert relative_error(found, expected) > 1000 * TOLERANCE


def unpreconditioned(regression: Regression, expected: Tensor) -> Tensor:
    """Inner products of gradients, at the scale that fits best."""
    plain = Method("plain", "", measurement=Loss(), preconditioner=Plain())
    scores = library_scores(regression, regression.fit(0), plain)
    return scores * (scores * expected).sum() / scores.square().sum()


@pytest.mark.parametrize("change", ["sign", "swapped axes", "no preconditioner"])
def test_a_wrong_score_breaks_the_identity(change: str) -> None:
    regression = equal_residuals()
    expected = loss_influences(regression) / (2 * 0.3**2)
    if change == "no preconditioner":
        wrong = unpreconditioned(regression, expected)
    else:
        scores = library_scores(regression, regression.fit(0), LOSS)
        wrong = -scores if change == "sign" else scores.T.reshape(scores.shape)
    assert relative_error(wrong, expected) > 1000 * TOLERANCE
