"""Transitions find a planted step, spend completions on it, know what they do not know, and repeat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from models import IMAGE, SmallDenoiser, make_scheduler
from safetensors.torch import save_file
from score_runs import featurize, make_trajectory, score
from torch import Tensor

import journey
from journey.generation.completions import Completer
from journey.generation.trajectory import Trajectory
from journey.generation.transitions import Transition
from journey.ops.keys import derive_key

STEPS = list(range(98, -1, -2))
MODEL = (SmallDenoiser(), make_scheduler())


def make_long_trajectory() -> Trajectory:
    """Fifty recorded steps, as of a sampler of fifty steps; the latents are zeros."""
    zeros = torch.zeros(2, len(STEPS), *IMAGE)
    return Trajectory(torch.tensor(STEPS), zeros, zeros, zeros[:, 0])


def plant(monkeypatch: pytest.MonkeyPatch, likelihood: Any, computed: list[tuple[int, int]] | None = None) -> None:
    """Replace sampling by coins: a completion from step t is an image of ones with ``likelihood(t)``, else of zeros."""

    class Coins(Completer):
        def complete(self, query: int, timestep: int, numbers: Sequence[int]) -> Tensor:
            if computed is not None:
                computed.append((timestep, len(numbers)))
            coins = torch.tensor([derive_key(self._seed, query, timestep, j) / 2**64 for j in numbers])
            return (coins < likelihood(timestep)).float()[:, None, None, None].expand(-1, *IMAGE)

    monkeypatch.setattr(import_module("journey.generation.transitions"), "Completer", Coins)


def shines(images: Tensor) -> Tensor:
    """The feature: the image is bright."""
    return images.mean((1, 2, 3)) > 0.5


def find(classifier: Any = shines, **options: Any) -> Transition:
    return journey.transitions(MODEL, make_long_trajectory(), classifier, progress=False, **options)


@pytest.mark.parametrize("at", [17, 41, 75])
def test_a_sharp_step_is_found_between_neighbouring_steps(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    computed: list[tuple[int, int]] = []
    plant(monkeypatch, lambda t: float(t < at), computed)
    found = find(refine=10, completions=8)
    assert found.found
    # The step is between the latents at at + 1 (undecided) and at - 1 (decided): the model acted at at + 1.
    assert found.interval == (at, at + 2)
    assert found.midpoint == at
    assert len(computed) == len(set(computed)) <= 6 + 5, "fifty steps between six take at most log2(10) halvings more"
    later = [t for t, _ in computed[6:]]
    assert all(abs(t - at) <= 20 for t in later), f"completions were spent away from the step: {later}"


def test_the_interval_can_be_scored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plant(monkeypatch, lambda t: float(t < 30))
    trajectory = replace(make_trajectory(), num_inference_steps=100)  # recorded at 80, 40 and 10
    found = journey.transitions(MODEL, trajectory, shines, progress=False)
    assert found.interval == (11, 41)
    scores = score(featurize(tmp_path / "f"), trajectory, interval=found.interval, noise=None, num_draws=2)
    assert (scores.timesteps.tolist(), scores.interval) == ([40], (11, 41))


def test_bands_of_the_midpoint_cover_a_planted_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ramp from 60 to 40 has its middle at 50; twenty searches may miss 95 % bands at most six times (P < 1e-4)."""
    plant(monkeypatch, lambda t: min(1.0, max(0.0, (60 - t) / 20)))
    missed = 0
    for seed in range(20):
        found = find(steps=STEPS[::3], refine=0, completions=24, seed=seed)
        lower, upper = found.uncertainty
        missed += not lower[2] <= 50 <= upper[2]
        assert (lower <= upper).all()
        assert upper[2] - lower[2] < 25
    assert missed <= 6, f"{missed} of 20 bands miss the middle"


def test_equal_seeds_repeat_and_a_completion_is_the_same_whatever_the_refinement(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plant(monkeypatch, lambda t: min(1.0, max(0.0, (80 - t) / 60)))
    first, second, other = find(), find(), find(seed=1)
    assert torch.equal(first.outcomes, second.outcomes)
    assert torch.equal(first.bootstrap, second.bootstrap)
    assert not torch.equal(first.outcomes, other.outcomes)
    finer = find(refine=7)
    rows = [finer.timesteps.tolist().index(t) for t in first.timesteps.tolist()]
    assert torch.equal(finer.outcomes[rows], first.outcomes)


def test_a_likelihood_that_does_not_rise_is_said_to_have_no_transition(monkeypatch: pytest.MonkeyPatch) -> None:
    for likelihood in (lambda t: 1.0, lambda t: 0.0, lambda t: float(t > 50)):
        plant(monkeypatch, likelihood)
        found = find()
        assert not found.found
        with pytest.raises(
            ValueError, match=r"there is no transition: the likelihood goes from \d\.\d\d at timestep 98"
        ):
            _ = found.interval
        with pytest.raises(ValueError, match="there is no transition"):
            _ = found.midpoint


def test_probabilities_are_averaged_and_arrays_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, lambda t: float(t < 50))
    found = find(lambda images: (0.25 + 0.5 * images[:, 0, 0, 0]).numpy(), steps=[98, 0], refine=0)
    assert found.likelihood.tolist() == [0.25, 0.75]
    lower, upper = found.band
    assert bool((lower < found.likelihood).all())
    assert bool((found.likelihood < upper).all())


def test_the_classifier_sees_real_completions_in_the_range_of_images() -> None:
    seen = []

    def classifier(images: Tensor) -> Tensor:
        seen.append(images)
        return images.mean((1, 2, 3)) > 0

    trajectory = journey.record(MODEL, num_inference_steps=10, progress=False)
    options = {"num_inference_steps": 5, "steps": [80, 40, 0], "refine": 0, "completions": 5, "progress": False}
    found = journey.transitions(MODEL, trajectory, classifier, **options)
    assert found.timesteps.tolist() == [80, 40, 0]
    assert all(images.shape == (5, *IMAGE) and images.abs().max() <= 1 for images in seen)
    assert (seen[0][0] - seen[0][1]).abs().max() > 0.01, "completions from one latent must differ"


def test_a_saved_transition_is_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plant(monkeypatch, lambda t: float(t < 41))
    saved = find()
    saved.save(tmp_path / "transition")
    found = Transition.load(tmp_path / "transition")
    assert all(
        torch.equal(getattr(found, name), getattr(saved, name)) for name in ("timesteps", "outcomes", "bootstrap")
    )
    assert (found.confidence, found.interval) == (saved.confidence, saved.interval)
    save_file({"values": torch.ones(1)}, tmp_path / "other")
    with pytest.raises(ValueError, match="holds no saved transition"):
        Transition.load(tmp_path / "other")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"query": 2}, r"query must be in 0\.\.1, got 2"),
        ({"steps": [98, 33]}, r"completions can begin at the recorded timesteps .* not at \[33\]"),
        ({"steps": [98]}, r"steps must be two or more, got \[98\]"),
        ({"completions": 1}, "completions must be at least 2 and refine at least 0, got 1 and 4"),
        ({"refine": -1}, "completions must be at least 2 and refine at least 0"),
        ({"confidence": 95}, "confidence must be between 0 and 1, got 95"),
        ({"num_inference_steps": 10, "steps": [98, 0]}, r"their sampler visits, \[90, 80, .* not at \[98\]"),
        ({"classifier": lambda images: torch.ones(3)}, r"classifier must return .* each of 16 images, got \[3\]"),
        ({"classifier": lambda images: 2 * torch.ones(len(images))}, r"got \[16\] from 2 to 2"),
        ({"classifier": lambda images: torch.full((len(images),), float("nan"))}, "classifier must return one bool"),
    ],
)
def test_what_cannot_be_looked_for_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find(**options)
