"""Exact retraining of a tiny MLP: summed scores rank the losses after retraining, and mistakes are noticed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from cases import randn
from models import NUM_TRAIN_TIMESTEPS, SmallDenoiser, make_images, make_scheduler
from torch import Tensor, nn

from journey.errors import GradientCheckError
from journey.evaluate.lds import lds
from journey.evaluate.responses import measure_responses
from journey.evaluate.retrain import Run, retrain
from journey.evaluate.subsets import Subsets, random_subsets
from journey.gradients import rules as layer_rules
from journey.measure.draws import StratifiedDraws
from journey.measure.featurizer import Featurizer
from journey.measure.measurements import Measurement, Prediction, TrainingLoss
from journey.methods.method import Method
from journey.methods.preconditioners import Gram
from journey.models.denoiser import Denoiser
from journey.projectors.exact import Identity

NUM_TRAIN, NUM_QUERIES, NUM_SUBSETS = 24, 8, 12
SCHEDULER = make_scheduler()
DRAWS = StratifiedDraws(num_draws=8)


class TinyMLP(nn.Module):
    """Two pixels and the time to two pixels, through sixteen units."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.outward = nn.Linear(4, 16), nn.Linear(16, 2)

    def forward(self, x_t: Tensor, timesteps: Tensor) -> Tensor:
        angle = timesteps.to(x_t)[:, None] / NUM_TRAIN_TIMESTEPS
        hidden = torch.tanh(self.inward(torch.cat([x_t.flatten(1), angle, 1 - angle], 1)))
        return self.outward(hidden).view_as(x_t)


def images() -> Tensor:
    """Training images, then queries: points near four corners. [NUM_TRAIN + NUM_QUERIES, 1, 1, 2]."""
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    which = torch.arange(NUM_TRAIN + NUM_QUERIES) % 4
    return (0.7 * corners[which] + 0.25 * randn(len(which), 2, seed=5)).view(-1, 1, 1, 2)


def train(indices: Sequence[int], seed: int) -> nn.Module:
    """Minimise the mean loss of some images at their own draws, all at once, so that nothing else is random."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = TinyMLP()
    denoiser = Denoiser(network.eval(), SCHEDULER)
    x0 = images()[list(indices)].repeat_interleave(DRAWS.num_draws, 0)
    times = DRAWS.timesteps(indices, NUM_TRAIN_TIMESTEPS).flatten()
    noise = DRAWS.noise(indices, (1, 1, 2), torch.device("cpu")).flatten(0, 2)
    x_t, target = denoiser.add_noise(x0, noise, times), denoiser.target(x0, noise, times)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(200):
        optimizer.zero_grad()
        torch.autograd.backward(F.mse_loss(denoiser.predict(x_t, times), target))
        optimizer.step()
    return network.eval()


class Experiment(NamedTuple):
    """What retraining said, and the model of all images."""

    denoiser: Denoiser
    subsets: Subsets
    losses: Tensor


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    subsets = random_subsets(NUM_TRAIN, NUM_SUBSETS)
    runs = [Run(subsets.indices(j), 0) for j in range(NUM_SUBSETS)]
    out = tmp_path_factory.mktemp("models")
    paths = retrain(train, runs, out, fingerprint="tiny MLP", progress=False)
    denoiser = Denoiser(train(range(NUM_TRAIN), 0), SCHEDULER)
    queries = images()[NUM_TRAIN:]
    draws = StratifiedDraws(num_draws=32, seed=1)
    losses = measure_responses(denoiser, paths, queries, draws=draws, progress=False)[:, :, 0]
    return Experiment(denoiser, subsets, losses.unsqueeze(1))


def quality(experiment: Experiment, method: Method, train_images: Tensor | None = None) -> float:
    """LDS of a method on the experiment."""
    train_images = images()[:NUM_TRAIN] if train_images is None else train_images
    scores = method.run(experiment.denoiser, train_images, images()[NUM_TRAIN:], progress=False)
    table = lds({"scores": scores.values[:, 0]}, experiment.losses, experiment.subsets, num_bootstrap=10)
    return table.rows["scores"].lds.value


LOSS = Method("loss", "", draws=DRAWS, projector=Identity(), preconditioner=Gram(1.0))


def test_scores_rank_retrained_models(experiment: Experiment) -> None:
    # Chance has standard deviation 1 / sqrt(11) for one query and, since queries share subsets, hardly less for their
    # mean: 0.3 at most. Above 0.5 is no chance.
    assert quality(experiment, LOSS) > 0.5


class Negative(Measurement):
    """The loss with the wrong sign."""

    def __call__(self, p: Prediction) -> Tensor:
        return -TrainingLoss()(p)


@pytest.mark.parametrize("mistake", ["sign of the query", "training images in another order"])
def test_a_mistake_is_noticed_by_retraining(experiment: Experiment, mistake: str) -> None:
    right = quality(experiment, LOSS)
    if mistake == "sign of the query":
        measured, _ = LOSS.measure(experiment.denoiser, images()[:NUM_TRAIN], images()[NUM_TRAIN:], progress=False)
        negative = LOSS.change(measurement=Negative())
        turned, _ = negative.measure(experiment.denoiser, images()[:1], images()[NUM_TRAIN:], progress=False)
        scores, _ = LOSS.compare(experiment.denoiser, images()[:NUM_TRAIN], measured._replace(query=turned.query))
        table = lds({"scores": scores[:, 0]}, experiment.losses, experiment.subsets, num_bootstrap=10)
        wrong = table.rows["scores"].lds.value
        assert wrong < -0.3
    else:
        wrong = quality(experiment, LOSS, images()[:NUM_TRAIN].flip(0))
    assert wrong < right - 0.3


def test_a_dropped_time_embedding_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook engine that overlooks the branch that sees only the time must fail its own check."""
    denoiser = Denoiser(SmallDenoiser(), SCHEDULER)
    rule = layer_rules._RULES[nn.Linear]
    monkeypatch.setitem(layer_rules._RULES, nn.Linear, lambda *arguments: iter(()))
    blind = Featurizer(denoiser, measurement=TrainingLoss(), projector=Identity())
    monkeypatch.setitem(layer_rules._RULES, nn.Linear, rule)
    seeing = Featurizer(denoiser, measurement=TrainingLoss(), projector=Identity())
    batch = make_images(3)
    draws = DRAWS.timesteps(range(3), NUM_TRAIN_TIMESTEPS), DRAWS.noise(range(3), (1, 8, 8), torch.device("cpu"))
    seeing.features(batch, *draws, check=True)
    with pytest.raises(GradientCheckError, match=r"time\.weight"):
        blind.features(batch, *draws, check=True)
