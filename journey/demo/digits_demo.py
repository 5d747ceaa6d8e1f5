"""The main job on real data with nothing to download: digits, from training to a report.

Trains a small DDPM on scikit-learn's 1,797 handwritten digits, samples images recording their trajectories, featurizes
every training image, scores them along the steps, finds the steps in which each image's digit is decided, and writes a
page and a picture.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from diffusers import DDIMScheduler
from torch import Tensor
from tqdm.auto import tqdm

from journey.demo.digits import DigitsDataset, knn_labels, load_digits_dataset, train
from journey.features.featurize import featurize
from journey.generation.likelihood import chance_of_more
from journey.generation.record import record
from journey.generation.transitions import Transition, transitions
from journey.measure.draws import StratifiedDraws
from journey.models.denoiser import Denoiser
from journey.projectors.random import CountSketch
from journey.projectors.scaled import Scaled
from journey.report.run import Run
from journey.scores.score import score
from journey.scores.scores import Scores
from journey.scores.top import TopCollector

SAMPLER_STEPS = 50
TOP = 10
# Which steps of the sampler are shown, as fractions of the way: from nearly pure noise to nearly done.
SHOWN = (0.1, 0.3, 0.45, 0.6, 0.75, 0.85, 0.95)
_COMPLETIONS = 24
_COMPLETION_STEPS = 25  # every second step of the sampler


@dataclass(frozen=True)
class Decision:
    """When the digit of one image is decided, and what its proponents show then.

    Attributes:
        digit: What the image shows.
        interval: Timesteps (t0, t1) in which the likelihood of the digit rises; None if no rise was found.
        timesteps: Steps from which completions were drawn. [num_steps]
        likelihood: Fraction of the completions with the digit. [num_steps]
        lower: Its confidence band. [num_steps]
        upper: Likewise. [num_steps]
        inside: How many of the top proponents, scored over the interval, show the digit.
        before: How many of those scored over all steps before it do.
    """

    digit: int
    interval: tuple[int, int] | None
    timesteps: list[int]
    likelihood: list[float]
    lower: list[float]
    upper: list[float]
    inside: int = 0
    before: int = 0


@dataclass(frozen=True)
class DemoResult:
    """What the demo found.

    Attributes:
        timesteps: The shown steps. [num_steps]
        same_class: Fraction of the top proponents that show the generated image's digit, per step. [num_steps]
        chance: Fraction of all training images that do, averaged over the generated images.
        decisions: When each image's digit is decided. [num_images]
        p_value: Of Fisher's exact test that proponents show the digit more often inside the intervals than before.
        seconds: How long each part took.
    """

    timesteps: list[int]
    same_class: list[float]
    chance: float
    decisions: list[Decision]
    p_value: float
    seconds: dict[str, float]


def run_demo(
    out: Path,
    *,
    seed: int = 0,
    num_images: int = 16,
    train_steps: int = 1200,
    num_draws: int = 20,
    progress: bool = True,
) -> DemoResult:
    """Run the demo.

    Args:
        out: Folder for the features, the run, ``report.html`` and ``report.png``.
        seed: Names everything random; the same seed repeats the run.
        num_images: Images to generate and attribute.
        train_steps: Optimiser steps of the DDPM.
        num_draws: Timesteps per training image.
        progress: Show progress bars.

    Returns:
        How often proponents share the generated image's class, when it is decided, and the time each part took.
    """
    out.mkdir(parents=True, exist_ok=True)
    seconds: dict[str, float] = {}
    clock = Clock(seconds)
    dataset = load_digits_dataset()
    unet, noise_scheduler = train(dataset, steps=train_steps, seed=seed, progress=progress)
    clock.lap("train")

    # The deterministic sampler, on the schedule that the model was trained for.
    denoiser = Denoiser(unet, DDIMScheduler.from_config(noise_scheduler.config))
    trajectory = record(
        denoiser, seed=seed, num_images=num_images, num_inference_steps=SAMPLER_STEPS, progress=progress
    )
    clock.lap("record")

    features = featurize(
        denoiser,
        dataset,
        out / "features",
        draws=StratifiedDraws(num_draws, seed=seed),
        projector=Scaled(CountSketch(seed=seed)),
        progress=progress,
    )
    clock.lap("featurize")

    shown = [int(trajectory.timesteps[int(fraction * SAMPLER_STEPS)]) for fraction in SHOWN]
    steps = sorted({*shown, int(trajectory.timesteps[0]), *trajectory.timesteps[1::2].tolist()}, reverse=True)
    every = score(features, trajectory, steps=steps, seed=seed, progress=progress)
    rows = [steps.index(t) for t in shown]
    scores = replace(every, values=every.values[:, rows], timesteps=every.timesteps[rows], errors=None)
    height, width = trajectory.images.shape[-2:]
    upper = score(features, trajectory, steps=steps, region=(0, 0, height // 2, width), seed=seed, progress=progress)
    assert upper.region is not None
    # A region and its complement have scores that add up to those of the whole image.
    lower = replace(upper, values=every.values - upper.values, region=1 - upper.region, errors=None)
    clock.lap("score")

    labels = knn_labels(trajectory.images, dataset)
    decisions = []
    decided_by: dict[tuple[int, str], Transition] = {}
    for query in tqdm(range(num_images), unit="image", desc="transitions", disable=not progress):
        digit = int(labels[query])
        found = transitions(
            denoiser,
            trajectory,
            _shows(digit, dataset),
            query=query,
            completions=_COMPLETIONS,
            num_inference_steps=_COMPLETION_STEPS,
            seed=seed,
            progress=False,
        )
        decided_by[query, f"a {digit}"] = found
        decisions.append(_decide(found, every, query, digit, dataset))
    clock.lap("transitions")

    same_class, chance = _same_class(scores, labels, dataset)
    decided = [decision for decision in decisions if decision.interval is not None]
    counts = (sum(decision.inside for decision in decided), sum(decision.before for decision in decided))
    p_value = chance_of_more(counts, (TOP * len(decided),) * 2)
    notes = [
        f"Model: a DDPM with {sum(p.numel() for p in unet.parameters()):,} parameters, trained for {train_steps:,} "
        f"steps on {len(dataset):,} handwritten digits (scikit-learn).",
        f"Top {TOP} proponents with the digit of the generated image: {same_class[-1]:.0%} at the last scored step, "
        f"{same_class[0]:.0%} at the first; {chance:.0%} by chance.",
    ]
    run = Run(
        trajectory,
        every,
        dataset,
        labels=[f"a {int(label)}" for label in dataset.labels],
        query_captions=[f"looks like a {int(label)}" for label in labels],
        regions={"upper half": upper, "lower half": lower},
        transitions=decided_by,
        groups={f"a {digit}": (dataset.labels == digit).nonzero().flatten().tolist() for digit in range(10)},
        notes=notes,
    )
    run.save(out)
    run.write_report(out / "report.html")
    run.write_png(out / "report.png", timesteps=shown)
    clock.lap("report")
    result = DemoResult(shown, same_class, chance, decisions, p_value, seconds)
    (out / "result.json").write_text(json.dumps(asdict(result), indent=2) + "\n")
    return result


def _same_class(scores: Scores, labels: Tensor, dataset: DigitsDataset) -> tuple[list[float], float]:
    """Fraction of the top proponents that share the query's label, per step, and what chance would give."""
    proponents = dataset.labels[scores.top(TOP).proponents.ids]  # [num_queries, num_steps, TOP]
    shared = (proponents == labels[:, None, None]).float().mean((0, 2))
    chance = (dataset.labels[None] == labels[:, None]).float().mean()
    return shared.tolist(), float(chance)


def _shows(digit: int, dataset: DigitsDataset) -> Callable[[Tensor], Tensor]:
    """A classifier of images: whether they show a digit."""
    return lambda images: knn_labels(images, dataset) == digit


def _decide(found: Transition, scores: Scores, query: int, digit: int, dataset: DigitsDataset) -> Decision:
    """Compare the proponents of one image inside its transition with those before it."""
    lower, upper = found.band
    curve = (found.timesteps.tolist(), found.likelihood.tolist(), lower.tolist(), upper.tolist())
    if not found.found:
        return Decision(digit, None, *curve)
    first, end = found.interval
    counts = []
    for chosen in ((first <= scores.timesteps) & (scores.timesteps < end), scores.timesteps >= end):
        average = scores.values[query, chosen].mean(0)  # the score of an interval is the mean over its steps
        top, _ = TopCollector(TOP).add(scores.train_ids, average[None, None]).top()
        counts.append(int((dataset.labels[top.ids] == digit).sum()))
    return Decision(digit, (first, end), *curve, *counts)


class Clock:
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
    decided = [decision for decision in result.decisions if decision.interval is not None]
    total = TOP * len(decided)
    inside, before = sum(d.inside for d in decided), sum(d.before for d in decided)
    more = sum(d.inside > d.before for d in decided)
    return "\n".join(
        [
            f"How often the top {TOP} proponents show the generated image's digit (its nearest neighbours' label):",
            "  step      " + "".join(f"{t:>7d}" for t in result.timesteps),
            "  same digit" + "".join(f"{value:>7.0%}" for value in result.same_class),
            f"  chance    {result.chance:>7.0%}",
            "",
            f"When the digit is decided: fraction of {_COMPLETIONS} completions from each step that show it, 95 % band",
            *(line for decision in result.decisions for line in _format_decision(decision)),
            "",
            f"Proponents with the digit, over the {len(decided)} images whose digit is decided in an interval:",
            f"  inside the interval {inside} of {total}, over the steps before it {before} of {total}; more inside for "
            f"{more} images",
            f"  Fisher's exact test, one-sided, as if proponents were independent: p = {result.p_value:.2g}",
            "",
            "Seconds: " + ", ".join(f"{part} {value:.0f}" for part, value in result.seconds.items()),
        ]
    )


def _format_decision(decision: Decision) -> list[str]:
    when = "no rise found" if decision.interval is None else f"{decision.interval[1] - 1} to {decision.interval[0]}"
    bands = [f"{lower:.0%}-{upper:.0%}" for lower, upper in zip(decision.lower, decision.upper, strict=True)]
    return [
        f"  a {decision.digit}: {when}",
        "    step     " + "".join(f"{t:>9d}" for t in decision.timesteps),
        "    fraction " + "".join(f"{p:>9.0%}" for p in decision.likelihood),
        "    band     " + "".join(f"{band:>9}" for band in bands),
    ]
