"""Figures for the claims of "How Training Data Guides Diffusion Models": ``python -m bench.seeds``.

A small DDPM learns scikit-learn's digits, as in the demo, and makes sixteen images, whose every second step is scored.
Then: how completions narrow down; training images that help at one step and hurt at another; a digit's likelihood with
the proponents before, inside and after its rise; and the proponents of two halves of an image. Numbers go to
``bench/results/seeds.json``, pictures to ``docs/results/``. Takes some minutes on two cores; needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor

import journey
from bench.machine import describe
from journey.demo.digits import DigitsDataset, knn_labels, load_digits_dataset, train
from journey.generation.completions import Completer
from journey.generation.transitions import Transition, transitions
from journey.models.denoiser import Denoiser
from journey.scores.scores import Scores

STEPS, QUERIES, COMPLETIONS, TOP = 50, 16, 24, 10
# Steps from which completions are shown, as fractions of the way.
SHOWN = (0.0, 0.3, 0.5, 0.6, 0.7, 0.9)
# Standard errors that a score is away from zero, on both sides, before an image counts as helping and hurting.
SURE = 2.0


@dataclass(frozen=True)
class Demo:
    """A trained model with its images and their scores.

    Attributes:
        dataset: The training images.
        denoiser: The model.
        features: Of the training images.
        trajectory: The generated images.
        scores: At every second step.
        labels: The digit that each generated image shows, by its neighbours.
    """

    dataset: DigitsDataset
    denoiser: Denoiser
    features: journey.Features
    trajectory: journey.Trajectory
    scores: Scores
    labels: Tensor


def make(folder: Path, train_steps: int) -> Demo:
    """Train, generate, measure and score."""
    dataset = load_digits_dataset()
    unet, scheduler = train(dataset, steps=train_steps, seed=0)
    denoiser = Denoiser(unet, DDIMScheduler.from_config(scheduler.config))
    trajectory = journey.record(denoiser, seed=0, num_images=QUERIES, num_inference_steps=STEPS)
    features = journey.featurize(denoiser, dataset, folder / "features")
    steps = [int(trajectory.timesteps[0]), *trajectory.timesteps[1::2].tolist()]
    scores = journey.score(features, trajectory, steps=steps)
    return Demo(dataset, denoiser, features, trajectory, scores, knn_labels(trajectory.images, dataset))


def narrowing(demo: Demo, query: int) -> tuple[list[int], list[Tensor], list[float]]:
    """Completions from some steps, and how far they lie apart: the mean distance of two, over that at the first."""
    completer = Completer(demo.denoiser, demo.trajectory, seed=0, num_inference_steps=STEPS // 2)
    steps = [completer.timesteps[int(fraction * len(completer.timesteps))] for fraction in SHOWN]
    images = [completer.complete(query, step, range(COMPLETIONS)).clamp(-1, 1) for step in steps]
    apart = [float(torch.pdist(some.flatten(1)).mean()) for some in images]
    return steps, images, [distance / apart[0] for distance in apart]


def turned(scores: Scores) -> tuple[list[int], tuple[int, int]]:
    """Count, for each image, training images that surely help at one step and surely hurt at a later one.

    Returns:
        The counts; and the query and the training image for which the smaller of the two is surest.
    """
    sure = scores.values / scores.standard_errors()  # steps descend: earlier ones of the generation first
    before = sure.cummax(1).values
    both = torch.minimum(before, -sure).amax(1)  # [num_queries, num_train]
    best = int(both.argmax())
    return (both > SURE).sum(1).tolist(), divmod(best, both.shape[1])


def decided(demo: Demo) -> dict[int, Transition]:
    """The rise of the likelihood of its digit, of the images for which there is one."""
    found = {}
    for query in range(QUERIES):
        digit = int(demo.labels[query])
        one = transitions(
            demo.denoiser,
            demo.trajectory,
            lambda images, digit=digit: knn_labels(images, demo.dataset) == digit,  # type: ignore[misc]
            query=query,
            completions=COMPLETIONS,
            num_inference_steps=STEPS // 2,
            progress=False,
        )
        if one.found:
            found[query] = one
    return found


def phases(demo: Demo, query: int, transition: Transition) -> dict[str, tuple[Tensor, Tensor]]:
    """Training images that count most before, inside and after the rise: positions of proponents and opponents."""
    first, end = transition.interval
    times = demo.scores.timesteps
    chosen = {"before": times >= end, "inside": (first <= times) & (times < end), "after": times < first}
    found = {}
    for name, steps in chosen.items():
        if steps.any():
            mean = demo.scores.values[query, steps].mean(0)
            found[name] = (mean.topk(TOP).indices, (-mean).topk(TOP).indices)
    return found


def halves(demo: Demo) -> dict[str, Any]:
    """Whether proponents of one half of an image resemble it there: distance in that half, over the other half's."""
    height, width = demo.trajectory.images.shape[-2:]
    boxes = {"upper": (0, 0, height // 2, width), "lower": (height // 2, 0, height, width)}
    interval = (0, demo.denoiser.num_train_timesteps)
    tops = {
        name: journey.score(demo.features, demo.trajectory, interval=interval, region=box, progress=False)
        .top(TOP)
        .proponents.ids[:, 0]
        for name, box in boxes.items()
    }
    ratios = []
    for name, (top, left, bottom, right) in boxes.items():
        other = tops["lower" if name == "upper" else "upper"]
        part = demo.trajectory.images[:, :, top:bottom, left:right].flatten(1)
        rows = demo.dataset.images[:, :, top:bottom, left:right].flatten(1)
        own, theirs = (
            torch.stack([(rows[ids.tolist()] - x).norm(dim=1).mean() for ids, x in zip(found, part, strict=True)])
            for found in (tops[name], other)
        )
        ratios.append(own / theirs)
    ratio = torch.cat(ratios)
    return {"tops": tops, "ratio": float(ratio.mean()), "nearer": int((ratio < 1).sum()), "of": len(ratio)}


def main() -> int:
    """Make the numbers and the pictures."""
    parser = argparse.ArgumentParser(prog="python -m bench.seeds", description=__doc__)
    parser.add_argument("--train-steps", type=int, default=1200)
    parser.add_argument("--pictures", type=Path, default=Path("docs/results"))
    parser.add_argument("--json", type=Path, default=Path("bench/results/seeds.json"))
    options = parser.parse_args()
    from bench.seeds import figures  # matplotlib, before the work

    with tempfile.TemporaryDirectory(prefix="journey-seeds-") as folder:
        demo = make(Path(folder), options.train_steps)
        rises = decided(demo)
        counts, (query, image) = turned(demo.scores)
        shown = min(rises, key=lambda q: rises[q].interval[1] - rises[q].interval[0])  # the sharpest
        steps, completions, apart = narrowing(demo, shown)
        ranked = phases(demo, shown, rises[shown])
        parts = halves(demo)
    digit = {name: [0, 0, 0] for name in ("before", "inside", "after")}
    for q, rise in rises.items():
        for name, (proponents, opponents) in phases(demo, q, rise).items():
            same = [int((demo.dataset.labels[some] == demo.labels[q]).sum()) for some in (proponents, opponents)]
            digit[name] = [a + b for a, b in zip(digit[name], (*same, TOP), strict=True)]
    document = {
        "machine": describe(torch.get_num_threads()),
        "train_steps": options.train_steps,
        "narrowing": {"steps": steps, "apart": apart},
        "turned": counts,
        "rises": {q: [*rise.interval, float(rise.midpoint)] for q, rise in rises.items()},
        "digit": digit,
        "halves": {name: parts[name] for name in ("ratio", "nearer", "of")},
    }
    figures.completions(options.pictures / "seeds-narrowing.png", steps, completions, apart)
    figures.turned(options.pictures / "seeds-turned.png", demo.scores, query, image, demo.trajectory, demo.dataset)
    figures.transition(
        options.pictures / "seeds-transition.png", rises[shown], ranked, demo.trajectory.images[shown], demo.dataset
    )
    figures.halves(options.pictures / "seeds-halves.png", demo.trajectory.images, parts["tops"], demo.dataset)
    options.json.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
