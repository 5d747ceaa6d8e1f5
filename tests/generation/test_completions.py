"""Completions are samples of what the model makes of a latent, each the same whatever else is computed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cases import randn
from diffusers import DDIMScheduler, DDPMScheduler
from models import IMAGE, SmallDenoiser, make_scheduler
from score_runs import NUM_QUERIES, STEPS, assert_near, featurize, make_noise, make_trajectory, score
from torch import Tensor, nn

from journey.generation.completions import Completer
from journey.generation.trajectory import Trajectory
from journey.models.denoiser import Denoiser
from journey.ops.keys import derive_key

STEPS_OF_TEN = 10  # the sampler's timesteps are 90, 80, ... 0


def at(latent: Tensor, *timesteps: int, num_queries: int = 1) -> Trajectory:
    """A trajectory with one latent at every step of every query."""
    x_t = latent.expand(num_queries, len(timesteps), *latent.shape)
    return Trajectory(torch.tensor(timesteps), x_t, x_t, x_t[:, 0], num_inference_steps=STEPS_OF_TEN)


def test_a_completion_is_the_schedulers_own_loop_from_the_latent_on() -> None:
    network, scheduler = SmallDenoiser(), make_scheduler()
    latent = randn(*IMAGE, seed=3)
    (found,) = Completer(Denoiser(network, scheduler), at(latent, 40, num_queries=3), seed=5).complete(2, 40, [7])
    scheduler = make_scheduler()
    scheduler.set_timesteps(STEPS_OF_TEN)
    generator = torch.Generator().manual_seed(derive_key(5, "completion", 2, 40, 7))
    x = latent[None]
    with torch.no_grad():
        for t in scheduler.timesteps:
            if t <= 40:
                x = scheduler.step(network(x, t[None]), t, x, generator=generator).prev_sample
    torch.testing.assert_close(found[None], x, rtol=1e-5, atol=1e-5)


def test_a_completion_does_not_depend_on_what_else_is_computed() -> None:
    denoiser = Denoiser(SmallDenoiser(), make_scheduler())
    trajectory = at(randn(*IMAGE, seed=3), 50, 40, num_queries=2)
    whole = Completer(denoiser, trajectory, seed=0).complete(0, 40, range(6))
    part = Completer(denoiser, trajectory, seed=0, batch_size=2).complete(0, 40, [4, 1, 5])
    torch.testing.assert_close(part, whole[[4, 1, 5]], rtol=1e-5, atol=1e-5)
    others = [
        Completer(denoiser, trajectory, seed=seed).complete(query, t, [0])
        for seed, t, query in ((1, 40, 0), (0, 50, 0), (0, 40, 1))
    ]
    for other in others:
        assert (other[0] - whole[0]).abs().max() > 0.01, "seed, step and query must each give other noise"


FINE = DDPMScheduler(clip_sample=False)  # a thousand timesteps, so that a sampler's steps are small


class GaussianDenoiser(nn.Module):
    """The best denoiser where pixels are independent normals of standard deviation ``scale``."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.config = SimpleNamespace(in_channels=1, sample_size=8)
        self.scale = nn.Parameter(torch.tensor(scale))
        self.alphas = FINE.alphas_cumprod
        self.eval()

    def forward(self, x_t: Tensor, timesteps: Tensor) -> Tensor:
        alpha = self.alphas[timesteps].view(-1, 1, 1, 1)
        return (1 - alpha).sqrt() * x_t / (alpha * self.scale**2 + 1 - alpha)


@pytest.mark.parametrize("scheduler", [FINE, DDIMScheduler.from_config(FINE.config)])
def test_completions_have_the_distribution_of_images_given_the_latent(scheduler: Any) -> None:
    """Normal data have a closed form for p(image | x_t); a deterministic sampler would have no spread at all."""
    scale, t, count = 0.3, 300, 40
    latent = randn(1, 8, 8, seed=1)
    denoiser = Denoiser(GaussianDenoiser(scale), scheduler)
    images = Completer(denoiser, at(latent, t), seed=0, num_inference_steps=1000).complete(0, t, range(count))
    alpha = FINE.alphas_cumprod[t]
    total = alpha * scale**2 + 1 - alpha
    mean, variance = alpha.sqrt() * scale**2 / total * latent, scale**2 * (1 - alpha) / total
    # 2,560 samples: a standard error of 2.8 % for the variance; 300 small steps are off by a few percent more.
    assert ((images - mean).square().mean() / variance - 1).abs() < 0.12
    assert (images.mean(0) - mean).abs().mean() < 1.4 * (variance / count).sqrt() * (2 / torch.pi) ** 0.5


def test_a_step_that_the_sampler_does_not_visit_is_refused() -> None:
    denoiser, trajectory = Denoiser(SmallDenoiser(), make_scheduler()), at(randn(*IMAGE), 45, 40, 30)
    completer = Completer(denoiser, trajectory, seed=0)
    assert completer.timesteps == [40, 30]
    for t in (45, 50):  # not one of the sampler's, not recorded
        with pytest.raises(ValueError, match=rf"that their sampler visits, \[40, 30\], not at \[{t}\]"):
            completer.complete(0, t, [0])
    with pytest.raises(ValueError, match="batch_size must be positive, got 0"):
        Completer(denoiser, trajectory, seed=0, batch_size=0)


def test_scores_of_completions_are_the_average_over_the_completed_images(tmp_path: Path) -> None:
    features, trajectory = featurize(tmp_path / "f"), make_trajectory()
    found = score(features, completions=3, num_inference_steps=STEPS_OF_TEN, seed=4)
    completer = Completer(features.featurizer.denoiser, trajectory, seed=4, num_inference_steps=STEPS_OF_TEN)
    images = torch.stack([torch.stack([completer.complete(q, t, range(3)) for t in STEPS]) for q in range(NUM_QUERIES)])
    alone = [
        score(features, Trajectory(trajectory.timesteps, trajectory.x_t, images[:, :, j], trajectory.images)).values
        for j in range(3)
    ]
    assert_near(found.values, (sum(alone) / 3).numpy(), 1e-5)
    assert_near(score(features, completions=0).values, score(features).values.numpy(), 0.0)


def test_keyed_noise_of_completions_is_their_own_and_the_first_has_the_predictions(tmp_path: Path) -> None:
    features = featurize(tmp_path / "f")
    options = {"noise": None, "num_draws": 4, "num_inference_steps": STEPS_OF_TEN, "steps": [40]}
    one = score(features, completions=1, **options).values
    trajectory = make_trajectory()
    completer = Completer(features.featurizer.denoiser, trajectory, seed=0, num_inference_steps=STEPS_OF_TEN)
    images = torch.stack([completer.complete(q, 40, [0]) for q in range(NUM_QUERIES)])
    replaced = Trajectory(torch.tensor([40]), trajectory.x_t[:, 1:2], images, trajectory.images)
    assert_near(one, score(features, replaced, noise=None, num_draws=4).values.numpy(), 1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"completions": -1}, "completions must be 0, for the predicted image, or positive, got -1"),
        ({"completions": 1, "num_inference_steps": 3}, "completions can begin at"),
    ],
)
def test_completions_that_cannot_be_made_are_refused(tmp_path: Path, options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score(featurize(tmp_path / "f"), noise=make_noise(), **options)
