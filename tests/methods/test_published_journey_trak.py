"""Features and scores are those of the published implementation of Journey-TRAK on the same tensors.

Its formula is stated here again in plain torch and float64, one gradient at a time: for every set of weights m, every
training image i and query q at step t,

    f_i = sum over draws of grad mse(model(add_noise(x_i, noise, t_d), t_d), target) @ P / sqrt(number of parameters)
    f_q = the same sum over the noises of the query, of the image predicted at t, all at t
    score[i, q] = mean over m of f_i inv(F^T F) f_q / mean |inv(F^T F)|
"""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import randn
from families import make_conditional_unet
from models import SmallDenoiser, make_images, make_scheduler, make_unet
from score_runs import published_scores as library_scores
from torch import Tensor, nn

import journey
from journey.evaluate.ranks import spearman
from journey.measure.draws import ExplicitDraws, UniformDraws
from journey.methods import journey_trak
from journey.projectors.exact import ExplicitMatrix

STORED = {"measurement": journey.TrainingLoss(), "row": "float32", "progress": False}
NUM_TRAIN, NUM_QUERIES, NUM_DRAWS, NUM_NOISES, PROJ_DIM, STEP = 12, 3, 2, 3, 6, 40
IMAGES, X0_HAT = make_images(NUM_TRAIN), make_images(NUM_QUERIES, seed=8)
TIMESTEPS = torch.randint(0, 100, (NUM_TRAIN, NUM_DRAWS), generator=torch.Generator().manual_seed(1))
NOISE = randn(NUM_TRAIN, NUM_DRAWS, 1, 8, 8, seed=2)
QUERY_NOISE = randn(NUM_QUERIES, NUM_NOISES, 1, 8, 8, seed=3)
TOLD, QUERY_TOLD = randn(NUM_TRAIN, 3, 6, seed=4), randn(NUM_QUERIES, 3, 6, seed=5)


def _make_told(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return make_conditional_unet(channels=1, width=6, sample_size=8)


CASES = {
    "unet, noise": (make_unet, "epsilon"),
    "small net, image": (SmallDenoiser, "sample"),
    "small net, velocity": (SmallDenoiser, "v_prediction"),
    "told, velocity": (_make_told, "v_prediction"),
}
each_case = pytest.mark.parametrize("case", CASES)


def published_feature(
    net: nn.Module, scheduler: Any, image: Tensor, timesteps: Tensor, noise: Tensor, told: Tensor, matrix: Tensor | None
) -> Tensor:
    """Of one image, float64. [proj_dim], or [grad_dim] without a matrix."""
    total = None
    for t, e in zip(timesteps, noise.double(), strict=True):
        x0, e, time = image.double()[None], e[None], t[None]
        x_t = scheduler.add_noise(x0, e, time)
        options = {"encoder_hidden_states": told.double()[None]} if "Condition" in type(net).__name__ else {}
        output = net(x_t, time, **options)
        output = output if isinstance(output, Tensor) else output.sample
        kind = scheduler.config.prediction_type
        velocity = scheduler.get_velocity(x0, e, time)
        target = {"epsilon": e, "sample": x0, "v_prediction": velocity}[kind]
        net.zero_grad()
        F.mse_loss(output, target).backward()
        # A parameter that is not used, such as an attention that is not reached, has no gradient.
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in net.parameters()])
        total = flat if total is None else total + flat
    assert total is not None
    return (total if matrix is None else total @ matrix) / len(total) ** 0.5


@cache
def published_features(case: str, seed: int, gain: float = 1.0) -> tuple[Tensor, Tensor]:
    """Of training images and of queries. [num_train, proj_dim], [num_queries, proj_dim]."""
    given = Case(case)
    net, matrix = given.nets[seed].double(), given.matrix.double()
    if gain != 1.0:
        net.outward.weight.data *= gain
    at_step = torch.full((NUM_NOISES,), STEP)
    train = zip(IMAGES, TIMESTEPS, NOISE, TOLD, strict=True)
    queries = zip(X0_HAT, [at_step] * NUM_QUERIES, QUERY_NOISE, QUERY_TOLD, strict=True)
    one, other = (
        torch.stack([published_feature(net, given.scheduler, *r, matrix) for r in rows]) for rows in (train, queries)
    )
    return one, other


def published_scores(features: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Scores from the features under every set of weights. [num_train, num_queries]."""
    total = torch.zeros(NUM_TRAIN, NUM_QUERIES, dtype=torch.float64)
    for train, query in features:
        inverse = torch.linalg.inv(train.T @ train)
        total += train @ (inverse / inverse.abs().mean()) @ query.T
    return total / len(features)


class Case:
    """What the public interface is given."""

    def __init__(self, name: str) -> None:
        make, prediction_type = CASES[name]
        self.scheduler = make_scheduler(prediction_type)
        self.nets = [make(seed) for seed in (0, 1)]
        self.model = (make(2), self.scheduler)
        self.grad_dim = sum(p.numel() for p in self.nets[0].parameters())
        self.matrix = randn(self.grad_dim, PROJ_DIM, seed=6)
        told = name.startswith("told")
        self.dataset = [
            {"image": x, "encoder_hidden_states": c} if told else x for x, c in zip(IMAGES, TOLD, strict=True)
        ]
        condition = journey.Condition({"encoder_hidden_states": QUERY_TOLD}) if told else None
        x0_hat = X0_HAT[:, None]
        self.trajectory = journey.Trajectory(torch.tensor([STEP]), x0_hat, x0_hat, X0_HAT, condition)
        self.options = {
            "draws": ExplicitDraws(TIMESTEPS, NOISE),
            "projector": ExplicitMatrix(self.matrix),
        }


@each_case
def test_scores_of_the_preset_are_the_published_ones(case: str) -> None:
    given = Case(case)
    expected = published_scores([published_features(case, seed) for seed in (0, 1)])
    found = (
        journey_trak()
        .change(**given.options)
        .run(
            given.model,
            given.dataset,
            given.trajectory,
            steps=[STEP],
            noise=QUERY_NOISE[:, None],
            checkpoints=given.nets,
            progress=False,
        )
    )
    # Sums over draws and the root of the number of parameters are in the published scores.
    scaled = found.values[:, 0].double() * NUM_DRAWS * NUM_NOISES / given.grad_dim
    assert spearman(scaled, expected.T).min() >= 0.999
    # float32 features to 1e-6, times the condition of a Gram matrix of eight directions.
    assert (scaled - expected.T).norm() <= 1e-3 * expected.norm()


@each_case
def test_stored_features_and_their_scores_are_the_published_ones(case: str, tmp_path: Path) -> None:
    given = Case(case)
    expected = [published_features(case, seed) for seed in (0, 1)]
    both = journey.featurize(
        given.model, given.dataset, tmp_path / "both", checkpoints=given.nets, **STORED, **given.options
    )
    for number, (train, _) in enumerate(expected):
        found = both.matrix(number).double() * NUM_DRAWS / given.grad_dim**0.5
        assert (found - train).norm() <= 1e-4 * train.norm()
    one = journey.featurize(
        given.model, given.dataset, tmp_path / "one", checkpoints=given.nets[1:], **STORED, **given.options
    )
    found = library_scores(one, given.trajectory, damping=0.0, noise=QUERY_NOISE[:, None])[:, 0]
    assert spearman(found, published_scores(expected[1:]).T).min() >= 0.999


@pytest.mark.parametrize("case", ["unet, noise", "told, velocity"])
def test_gradients_without_a_projection_are_the_published_ones_entry_by_entry(case: str, tmp_path: Path) -> None:
    given = Case(case)
    stored = journey.featurize(
        (given.nets[0], given.scheduler),
        given.dataset,
        tmp_path,
        draws=ExplicitDraws(TIMESTEPS, NOISE),
        projector=journey.Identity(),
        **STORED,
    )
    net = copy.deepcopy(given.nets[0]).double()
    found = stored.matrix().double() * NUM_DRAWS / given.grad_dim**0.5
    for i in (0, NUM_TRAIN - 1):
        row = (IMAGES[i], TIMESTEPS[i], NOISE[i], TOLD[i])
        expected = published_feature(net, given.scheduler, *row, None)
        assert (found[i] - expected).norm() <= 1e-4 * expected.norm()


def test_without_the_published_rescaling_checkpoints_count_alike_and_scores_differ(tmp_path: Path) -> None:
    given, gain = Case("small net, image"), 10.0
    with torch.no_grad():  # a network whose gradients are of another size
        given.nets[1].outward.weight *= gain
    method = journey_trak(rescaled=False).change(**given.options)
    options: dict[str, Any] = {"noise": QUERY_NOISE[:, None], "checkpoints": given.nets, "progress": False}
    alike = method.run(given.model, given.dataset, given.trajectory, **options).values
    stored = journey.featurize(given.model, given.dataset, tmp_path, checkpoints=given.nets, **STORED, **given.options)
    scores = library_scores(stored, given.trajectory, damping=0.0, noise=QUERY_NOISE[:, None])
    assert (alike - scores).norm() <= 1e-3 * scores.norm()
    features = [published_features("small net, image", seed, gain**seed) for seed in (0, 1)]
    expected = published_scores(features)
    assert spearman(alike[:, 0], expected.T).min() < 0.999


def test_a_single_set_of_weights_is_scored_as_published_up_to_a_constant() -> None:
    given = Case("small net, velocity")
    found = (
        journey_trak()
        .change(**given.options)
        .run(
            (given.nets[0], given.scheduler),
            given.dataset,
            given.trajectory,
            noise=QUERY_NOISE[:, None],
            progress=False,
        )
    )
    expected = published_scores([published_features("small net, velocity", 0)]).T
    scaled = found.values[:, 0] * expected.norm() / found.values.norm()
    assert spearman(scaled, expected).min() >= 0.999
    assert (scaled - expected).norm() <= 1e-3 * expected.norm()


def test_noise_of_queries_is_refused_in_another_shape_and_where_queries_are_finished_images() -> None:
    given = Case("small net, image")
    method = journey_trak().change(**given.options)
    with pytest.raises(ValueError, match=r"noise must be .* = \[3, 1, 1, 1, 8, 8\], got \[3, 3, 1, 8, 8\]"):
        method.run(given.model, given.dataset, given.trajectory, noise=QUERY_NOISE, progress=False)
    with pytest.raises(ValueError, match="noise is for methods that ask at_steps"):
        method.change(at_steps=False, draws=UniformDraws(2)).run(
            given.model, given.dataset, given.trajectory, noise=QUERY_NOISE[:, None], progress=False
        )
