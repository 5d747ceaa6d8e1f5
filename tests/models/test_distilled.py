"""Images of a distilled network, made in a few steps, are scored with the features of the model behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cases import randn
from diffusers import FlowMatchEulerDiscreteScheduler, LCMScheduler
from families import Captioned, flux, make_family
from torch import nn

import journey
from journey.measure.draws import StratifiedDraws
from journey.models.load import as_denoiser

OPTIONS: dict[str, Any] = {"draws": StratifiedDraws(num_draws=2), "progress": False}
PROMPT: dict[str, Any] = {"prompt": "a red apple", "num_inference_steps": 3, "progress": False}


def disturb(network: nn.Module) -> None:
    """Other weights, as distillation leaves them."""
    for i, p in enumerate(network.parameters()):
        p.data += 0.02 * randn(*p.shape, seed=i)


def test_a_sampler_of_the_same_schedule_needs_nothing(tmp_path: Path) -> None:
    features = journey.featurize(make_family("Stable Diffusion"), Captioned(3), tmp_path / "f", **OPTIONS)
    turbo = make_family("Stable Diffusion")
    disturb(turbo.unet)
    turbo.scheduler = LCMScheduler.from_config(turbo.scheduler.config)
    fast = journey.record(turbo, **PROMPT, guidance_scale=1.0)
    scores = journey.score(features, fast, num_draws=2, progress=False)
    counted = journey.score(features, fast.on(make_family("Stable Diffusion")), num_draws=2, progress=False)
    assert torch.equal(scores.values, counted.values)
    assert scores.values.abs().min() > 0


def test_a_sampler_of_another_shift_is_counted_in_the_features_timesteps(tmp_path: Path) -> None:
    pipeline = make_family("Stable Diffusion 3")
    features = journey.featurize(pipeline, Captioned(3), tmp_path / "f", **OPTIONS)
    turbo = make_family("Stable Diffusion 3")
    disturb(turbo.transformer)
    turbo.scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    fast = journey.record(turbo, **PROMPT, guidance_scale=1.0)
    with pytest.raises(ValueError, match=r"got one of another: timestep .*; trajectory\.on\(model\)"):
        journey.score(features, fast, progress=False)
    scores = journey.score(features, fast.on(pipeline), num_draws=2, progress=False)
    # By hand: the timesteps of the base with those sigmas, and the images that the distilled network predicted.
    sigmas = as_denoiser(turbo).schedule.levels(fast.timesteps)[:, 1]
    table = as_denoiser(pipeline).schedule.levels(torch.arange(1000))[:, 1]
    steps = (table[None] - sigmas[:, None]).abs().argmin(1)
    assert steps.tolist() == fast.on(pipeline).timesteps.tolist() != fast.timesteps.tolist()
    own = journey.Trajectory(steps, fast.x_t, fast.x0_hat, fast.images, fast.condition)
    assert torch.equal(scores.values, journey.score(features, own, num_draws=2, progress=False).values)
    completed = journey.score(features, fast.on(pipeline), steps=steps[1:2].tolist(), num_draws=2, progress=False)
    assert torch.equal(completed.values[:, 0], scores.values[:, 1])


def test_a_network_that_embeds_guidance_takes_its_default_where_none_was_told(tmp_path: Path) -> None:
    torch.manual_seed(0)
    pipeline, turbo = flux(), flux(guidance_embeds=False)
    features = journey.featurize(pipeline, Captioned(2), tmp_path / "f", **OPTIONS)
    fast = journey.record(turbo, **PROMPT, size=(16, 16))
    assert "guidance" not in fast.condition.tensors
    told = as_denoiser(pipeline).with_guidance(fast.condition, 3.5)[0]
    given = journey.Trajectory(fast.timesteps, fast.x_t, fast.x0_hat, fast.images, told)
    found = [journey.score(features, some, num_draws=2, progress=False).values for some in (fast, given)]
    assert torch.equal(*found)
