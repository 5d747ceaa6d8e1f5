"""The main job on real data with nothing to download: digits, from training to a report.

Trains a small DDPM on scikit-learn's 1,797 handwritten digits, samples images recording their trajectories, featurizes
every training image, scores them at several steps, and writes a page and a picture.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

from diffusers import DDIMScheduler
from torch import Tensor

from journey.denoiser import Denoiser
from journey.digits import DigitsDataset, knn_labels, load_digits_dataset, train
from journey.draws import StratifiedDraws
from journey.featurize import featurize
from journey.projectors import CountSketch
from journey.report import write_png, write_report
from journey.scoring import Scores, score
from journey.trajectory import record

_SAMPLER_STEPS = 50
_TOP = 10
# Which steps of the sampler are scored, as fractions of the way: from nearly pure noise to nearly done.
_SCORED = (0.1, 0.3, 0.45, 0.6, 0.75, 0.85, 0.95)


@dataclass(frozen=True)
class DemoResult:
    """What the demo found.

    Attributes:
        timesteps: The scored steps. [num_steps]
        same_class: Fraction of the top proponents that show the generated image's digit, per step. [num_steps]
        chance: Fraction of all training images that do, averaged over the generated images.
        seconds: How long each part took.
    """

    timesteps: list[int]
    same_class: list[float]
    chance: float
    seconds: dict[str, float]


def run_demo(
    out: Path, *, seed: int = 0, num_images: int = 8, train_steps: int = 1200, num_draws: int = 8, progress: bool = True
) -> DemoResult:
    """Run the demo.

    Args:
        out: Folder for the model, the features, the scores, ``report.html`` and ``report.png``.
        seed: Names everything random; the same seed repeats the run.
        num_images: Images to generate and attribute.
        train_steps: Optimiser steps of the DDPM.
        num_draws: Timesteps per training image.
        progress: Show progress bars.

    Returns:
        How often proponents share the generated image's class, and the time each part took.
    """
    out.mkdir(parents=True, exist_ok=True)
    seconds: dict[str, float] = {}
    clock = _Clock(seconds)
    dataset = load_digits_dataset()
    unet, noise_scheduler = train(dataset, steps=train_steps, seed=seed, progress=progress)
    clock.lap("train")

    # The deterministic sampler, on the schedule that the model was trained for.
    denoiser = Denoiser(unet, DDIMScheduler.from_config(noise_scheduler.config))
    trajectory = record(
        denoiser, seed=seed, num_images=num_images, num_inference_steps=_SAMPLER_STEPS, progress=progress
    )
    trajectory.save(out / "trajectory.safetensors")
    clock.lap("record")

    features = featurize(
        denoiser,
        dataset,
        out / "features",
        draws=StratifiedDraws(num_draws=num_draws, seed=seed),
        projector=CountSketch(4096, seed=seed),
        progress=progress,
    )
    clock.lap("featurize")

    steps = [int(trajectory.timesteps[int(fraction * _SAMPLER_STEPS)]) for fraction in _SCORED]
    scores = score(features, trajectory, steps=steps, seed=seed, progress=progress)
    scores.save(out / "scores.safetensors")
    clock.lap("score")

    labels = knn_labels(trajectory.images, dataset)
    same_class, chance = _same_class(scores, labels, dataset)
    notes = [
        f"Model: a DDPM with {sum(p.numel() for p in unet.parameters()):,} parameters, trained for {train_steps:,} "
        f"steps on {len(dataset):,} handwritten digits (scikit-learn).",
        f"Top {_TOP} proponents with the digit of the generated image: {same_class[-1]:.0%} at the last scored step, "
        f"{same_class[0]:.0%} at the first; {chance:.0%} by chance.",
    ]
    captions = [f"a {int(label)}" for label in dataset.labels]
    looks = [f"looks like a {int(label)}" for label in labels]
    write_report(out / "report.html", trajectory, scores, dataset, notes=notes, labels=captions, query_captions=looks)
    write_png(out / "report.png", trajectory, scores, dataset, query=0, labels=captions, query_captions=looks)
    clock.lap("report")
    result = DemoResult(steps, same_class, chance, seconds)
    (out / "result.json").write_text(json.dumps(result.__dict__, indent=2) + "\n")
    return result


def _same_class(scores: Scores, labels: Tensor, dataset: DigitsDataset) -> tuple[list[float], float]:
    """Fraction of the top proponents that share the query's label, per step, and what chance would give."""
    proponents = dataset.labels[scores.top(_TOP).proponents.ids]  # [num_queries, num_steps, _TOP]
    shared = (proponents == labels[:, None, None]).float().mean((0, 2))
    chance = (dataset.labels[None] == labels[:, None]).float().mean()
    return shared.tolist(), float(chance)


class _Clock:
    """Writes down how long each part took."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds = seconds
        self._last = time.perf_counter()

    def lap(self, part: str) -> None:
        """End a part."""
        now = time.perf_counter()
        self._seconds[part] = round(now - self._last, 1)
        self._last = now


def format_result(result: DemoResult) -> str:
    """Return the demo's findings as a small table."""
    lines = [
        f"How often the top {_TOP} proponents show the generated image's digit (k-nearest-neighbour label in pixels):",
        "  step      " + "".join(f"{t:>7d}" for t in result.timesteps),
        "  same digit" + "".join(f"{value:>7.0%}" for value in result.same_class),
        f"  chance    {result.chance:>7.0%}",
        "Seconds: " + ", ".join(f"{part} {value:.0f}" for part, value in result.seconds.items()),
    ]
    return "\n".join(lines)
