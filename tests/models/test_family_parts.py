"""Intervals, regions, completions and transitions work for every family of models, latent ones too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, LATENT, SIZE, Captioned, make_family
from models import need_stochastic_flow
from torch import Tensor

import journey
from journey.generation.trajectory import Trajectory
from journey.measure.draws import StratifiedDraws
from journey.projectors.random import CountSketch
from journey.scores.regions import resample_masks


def record(name: str, pipeline: Any, num_steps: int = 2) -> Trajectory:
    told = {"class_labels": 5} if name == "DiT" else {"prompt": "a red apple"}
    return journey.record(pipeline, num_inference_steps=num_steps, progress=False, **told)


def assert_sum(parts: list[Tensor], whole: Tensor) -> None:
    """Parts add up to the whole, to rounding of its largest entry."""
    torch.testing.assert_close(sum(parts), whole, rtol=0, atol=1e-5 * whole.abs().max().item())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_stored_run_scores_steps_an_interval_and_a_patch_that_add_up(name: str, tmp_path: Path) -> None:
    pipeline = make_family(name)
    draws = StratifiedDraws(num_draws=2, bins=2)
    options = {"draws": draws, "projector": CountSketch(64), "check": False, "progress": False}
    features = journey.featurize(pipeline, Captioned(3), tmp_path / "f", **options)
    trajectory = record(name, pipeline)

    def score(**parts: Any) -> Tensor:
        return journey.score(features, trajectory, damping=0.1, num_draws=2, progress=False, **parts).values

    steps = score()
    assert steps.shape == (1, 2, 3)
    assert_sum([steps.mean(1, keepdim=True)], score(interval=(0, 1000)))
    assert_sum([score(train_interval=(0, 500)), score(train_interval=(500, 1000))], steps)
    box = torch.zeros(SIZE)
    box[2 : SIZE[0] // 2, 1:5] = 1  # in pixels, not in latents
    assert_sum([score(region=box), score(region=1 - box)], steps)
    assert (score(region=box) - steps).abs().max() > 1e-3 * steps.abs().max()
    assert resample_masks(box[None], (LATENT, LATENT)).mean().item() == pytest.approx(box.mean().item())


def test_completions_of_a_latent_model_are_decoded_for_the_classifier_and_measured_as_latents(tmp_path: Path) -> None:
    need_stochastic_flow()
    pipeline = make_family("Stable Diffusion 3")
    trajectory = record("Stable Diffusion 3", pipeline, 4)
    shapes = []

    def classifier(images: Tensor) -> Tensor:
        shapes.append(tuple(images.shape))
        assert images.abs().max() <= 1
        return images.mean((1, 2, 3)) > 0

    found = journey.transitions(pipeline, trajectory, classifier, completions=3, refine=0, progress=False)
    assert found.timesteps.tolist() == trajectory.timesteps.tolist()
    assert set(shapes) == {(3, 3, *SIZE)}
    options = {"projector": CountSketch(64), "draws": StratifiedDraws(num_draws=2), "check": False, "progress": False}
    features = journey.featurize(pipeline, Captioned(2), tmp_path / "f", **options)
    steps = trajectory.timesteps[1:3].tolist()
    scores = journey.score(features, trajectory, steps=steps, completions=2, num_draws=2, damping=0.1, progress=False)
    assert scores.values.shape == (1, 2, 2)
    assert scores.values.isfinite().all()
