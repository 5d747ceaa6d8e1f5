"""A small scored run that the tests of scoring share: recorded steps, featurized images, and gradients by autograd."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases import randn
from models import IMAGE, Images, SmallDenoiser, make_images, make_scheduler
from torch import Tensor, nn

import journey
from journey.generation.trajectory import Trajectory
from journey.measure.draws import ExplicitDraws
from journey.methods.preconditioners import Gram
from journey.projectors.exact import Identity
from journey.scores.queries import plan_queries
from journey.scores.scores import Scores

# All different, so that no two axes can be swapped unnoticed.
NUM_QUERIES, NUM_STEPS, NUM_DRAWS, NUM_TRAIN = 2, 3, 4, 5
STEPS = [80, 40, 10]
SCHEDULER = make_scheduler()


def make_trajectory(seed: int = 20) -> Trajectory:
    """Recorded steps that no model made: every latent and every prediction is another image."""
    x_t, x0_hat = (randn(NUM_QUERIES, NUM_STEPS, *IMAGE, seed=seed + i) for i in range(2))
    return Trajectory(
        torch.tensor(STEPS), x_t, torch.tanh(x0_hat), torch.tanh(randn(NUM_QUERIES, *IMAGE, seed=seed + 2))
    )


def make_noise(num_steps: int = NUM_STEPS) -> Tensor:
    """The caller's noise for queries. [num_queries, num_steps, num_draws, *IMAGE]."""
    return randn(NUM_QUERIES, num_steps, NUM_DRAWS, *IMAGE, seed=30)


def make_explicit() -> tuple[Tensor, Tensor]:
    """Timesteps and noise of the training images. [num_train, num_draws], [num_train, num_draws, *IMAGE]."""
    generator = torch.Generator().manual_seed(1)
    timesteps = torch.randint(0, 100, (NUM_TRAIN, NUM_DRAWS), generator=generator)
    return timesteps, randn(NUM_TRAIN, NUM_DRAWS, *IMAGE, seed=40)


def featurize(out: Path, network: nn.Module | None = None, **options: Any) -> journey.Features:
    """Exact gradients of the training loss of five images with explicit draws, unless told otherwise."""
    model = (SmallDenoiser() if network is None else network, SCHEDULER)
    dataset = Images(make_images(NUM_TRAIN))
    defaults = {"projector": Identity(), "draws": ExplicitDraws(*make_explicit()), "shard_size": 2, "progress": False}
    defaults |= {"measurement": journey.TrainingLoss(), "row": "float32", "dataset": dataset} | options
    return journey.featurize(model, defaults.pop("dataset"), out, **defaults)


def score(features: journey.Features, trajectory: Trajectory | None = None, **options: Any) -> Scores:
    """Score quietly with the noise of ``make_noise``, unless told otherwise."""
    defaults = {"damping": 0.1, "noise": make_noise(), "progress": False}
    return journey.score(features, make_trajectory() if trajectory is None else trajectory, **{**defaults, **options})


def mean_gradient(network: nn.Module, image: Tensor, times: Tensor, noise: Tensor) -> Tensor:
    """Gradient of the training loss, mean over draws, by autograd and diffusers alone, in float64. [grad_dim]."""
    network = copy.deepcopy(network).double()
    x_t = SCHEDULER.add_noise(image.double().expand(len(times), *IMAGE), noise.double(), times)
    loss = torch.nn.functional.mse_loss(network(x_t, times), noise.double())
    return torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, list(network.parameters()))])


def inverse(features: journey.Features, damping: float, checkpoint: int = 0) -> np.ndarray:
    """What stands between the gradients of queries and training images. [grad_dim, grad_dim]."""
    matrix = features.fit.gram(checkpoint).matrix.double().numpy()
    return np.linalg.inv(matrix + damping * np.eye(len(matrix)))


def published_scores(
    features: journey.Features, trajectory: Trajectory, *, damping: float, num_draws: int = 16, noise: Any = None
) -> Tensor:
    """Scores of stored features with TRAK's kernel, the damped Gram matrix of the features, mean over checkpoints."""
    plan = plan_queries(
        features, trajectory, steps=None, interval=None, region=None, num_draws=num_draws, seed=0, noise=noise
    )
    total = []
    for number, checkpoint in enumerate(features.checkpoints):
        query, train = plan.measure(features, checkpoint, False).mean(2), features.matrix(number)
        found, _ = Gram(damping).scores(query.flatten(0, 1), train, torch.zeros(len(train)), [train.shape[1]])
        total.append(found.unflatten(0, query.shape[:2]))
    return torch.stack(total).mean(0)


def assert_near(found: Tensor, expected: np.ndarray, tolerance: float = 1e-4) -> None:
    """Every entry within a fraction of the largest."""
    assert tuple(found.shape) == expected.shape
    error = np.abs(found.numpy() - expected).max() / np.abs(expected).max()
    assert error <= tolerance, f"scores are off by {error:.1e} of the largest"
