"""Find what was planted in the training set: ``python -m bench.retraining.planted --tier laptop``.

Two trainings. *Duplicates*: eight training images appear twice, and each is asked about. *Mark*: sixteen training
images carry a bright patch in a corner; asked about are held-out images with the patch, the same without it, and
generated images that show it. A patch can be asked about by itself, through ``region=``.

Models and features are kept in ``--work``; results are ``planted-NAME.json`` and ``.md``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file
from torch import Tensor

import journey
from bench.retraining.arguments import make_parser, write_into, write_results
from bench.retraining.library import DEFAULT, WHOLE_IMAGE
from bench.retraining.tiers import TIERS, Tier
from journey.evaluate.detection import detect
from journey.evaluate.retrain import Run, retrain
from journey.features.features import Features
from journey.generation.noised import noised_trajectory
from journey.generation.trajectory import Trajectory
from journey.methods import baselines, journey_trak
from journey.methods.preconditioners import Gram
from journey.models.denoiser import Denoiser
from journey.projectors.random import CountSketch
from journey.scores.regions import Box

NUM_DUPLICATES = 8
NUM_MARKED = 16
NUM_GENERATED = 256  # of which those are queries that show the mark
STEPS = (950, 850, 750, 650, 550, 450, 350, 250, 150, 50)  # where the per-step methods are asked, and averaged


@dataclass(frozen=True)
class Planted:
    """A model of a training set in which something is planted.

    Attributes:
        model: The model.
        train: Its images. [num_train, C, H, W]
        features: Where the library's default features are kept.
        corner: The mark's place.
    """

    model: Denoiser
    train: Tensor
    folder: Path
    corner: Box

    @property
    def features(self) -> Features:
        """Features of the library's default."""
        return journey.featurize(self.model, self.train, self.folder / "features", progress=False)

    def crop(self, images: Tensor) -> Tensor:
        """Return the mark's place alone."""
        top, left, bottom, right = self.corner
        return images[:, :, top:bottom, left:right]


# Scores [num_queries, num_train] of queries with their steps.
METHODS: dict[str, Callable[[Planted, Trajectory], Tensor]] = {
    WHOLE_IMAGE: lambda p, q: _whole(p, q),
    DEFAULT: lambda p, q: _scores(p, q),
    "journey_trak": lambda p, q: (
        journey_trak()
        .change(projector=CountSketch(4096), preconditioner=Gram(0.3))  # its damping in the comparison by LDS
        .run(p.model, p.train, q, progress=False)
        .values.mean(1)
    ),
    "optimal denoiser": lambda p, q: baselines.optimal_denoiser(p.model, p.train, q.images),
    "pixels, cosine": lambda p, q: baselines.pixels(p.train, q.images, cosine=True),
}
ON_THE_MARK: dict[str, Callable[[Planted, Trajectory], Tensor]] = {
    f"{WHOLE_IMAGE}, region": lambda p, q: _whole(p, q, region=p.corner),
    f"{DEFAULT}, region": lambda p, q: _scores(p, q, region=p.corner),
    "optimal denoiser, cropped": lambda p, q: baselines.optimal_denoiser(
        p.model, p.crop(p.train), p.crop(q.images), patch=None
    ),
    "pixels, cropped": lambda p, q: baselines.pixels(p.crop(p.train), p.crop(q.images)),
}


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for.

    Args:
        arguments: Instead of the command line's.

    Returns:
        Exit status.
    """
    parser = make_parser("bench.retraining.planted", __doc__)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    tier = TIERS[options.tier]
    train, held_out = tier.images(options.data)
    document = {
        "tier": tier.name,
        "num_train": tier.num_train,
        "rows": {**duplicates(tier, train, options.work), **marks(tier, train, held_out, options.work)},
    }
    write_results(options, f"planted-{tier.name}", document, table(document))
    write_into(options, table(document), "planted")
    return 0


def duplicates(tier: Tier, train: Tensor, work: Path) -> dict[str, Any]:
    """Ask about images that appear twice: both copies should come first."""
    images = torch.cat([train[:-NUM_DUPLICATES], train[:NUM_DUPLICATES]])
    planted = _plant(tier, images, work / tier.name / "duplicates")
    copies = torch.eye(NUM_DUPLICATES, dtype=torch.bool)
    wanted = torch.zeros(NUM_DUPLICATES, len(images), dtype=torch.bool)
    wanted[:, :NUM_DUPLICATES], wanted[:, -NUM_DUPLICATES:] = copies, copies
    queries = noised_trajectory(planted.model, images[:NUM_DUPLICATES], STEPS)
    return {"duplicated images": _detected(METHODS, planted, queries, wanted)}


def marks(tier: Tier, train: Tensor, held_out: Tensor, work: Path) -> dict[str, Any]:
    """Ask about images with the mark, and the same without it."""
    side = train.shape[-1] // 4
    height, width = train.shape[2:]
    corner = (height - side, width - side, height, width)
    images = train.clone()
    # Not the first ones: what is planted must not be what ties are broken in favour of.
    chosen = torch.arange(NUM_MARKED) * (len(train) // NUM_MARKED) + len(train) // NUM_MARKED - 1
    images[chosen] = _marked(train[chosen], corner)
    planted = _plant(tier, images, work / tier.name / "marked", corner)
    made = journey.record(planted.model, num_images=NUM_GENERATED, num_inference_steps=20, progress=False)
    shows = planted.crop(made.images).flatten(1).mean(1) > 0
    shown = Trajectory(made.timesteps, made.x_t[shows], made.x0_hat[shows], made.images[shows])
    asked = {
        "held-out images with the mark": noised_trajectory(planted.model, _marked(held_out, corner), STEPS),
        "generated images with the mark": shown,
        "control, held-out images without the mark": noised_trajectory(planted.model, held_out, STEPS),
    }
    rows = {}
    for what, queries in asked.items():
        wanted = torch.zeros(queries.num_queries, len(images), dtype=torch.bool)
        wanted[:, chosen] = True
        rows[what] = _detected({**METHODS, **ON_THE_MARK}, planted, queries, wanted)
    return rows


def table(document: dict[str, Any]) -> str:
    """Render a document as Markdown: AUC, and how many of the planted images are among the first as many."""
    parts = document["rows"]
    header = [
        "method",
        *(f"{what}: {part['num_queries']} queries, {part['num_planted']} planted" for what, part in parts.items()),
    ]
    lines = [_cells(header), _cells(["---"] * len(header))]
    for name in dict.fromkeys(name for part in parts.values() for name in part["methods"]):
        rows = [part["methods"].get(name) for part in parts.values()]
        lines.append(_cells([name, *("" if row is None else _text(row) for row in rows)]))
    return "\n".join(lines)


def _text(row: dict[str, Any]) -> str:
    value, low, high = row["auc"]
    return f"{value:.2f} [{low:.2f}, {high:.2f}], {100 * row['found']:.0f} %"


def _cells(entries: list[str]) -> str:
    return f"| {' | '.join(entries)} |"


def _plant(tier: Tier, images: Tensor, folder: Path, corner: Box = (0, 0, 1, 1)) -> Planted:
    """Train on the images, once."""
    training = tier.training(images)
    path = retrain(training, [Run(tuple(range(len(images))), 0)], folder / "models", progress=False)[0]
    network = training.build(0)
    network.load_state_dict(load_file(path))
    model = Denoiser(network, DDIMScheduler.from_config(training.scheduler.config))
    return Planted(model, images, folder, corner)


def _marked(images: Tensor, corner: Box) -> Tensor:
    marked = images.clone()
    top, left, bottom, right = corner
    marked[:, :, top:bottom, left:right] = 1
    return marked


def _whole(planted: Planted, queries: Trajectory, region: Box | None = None) -> Tensor:
    return journey.score(planted.features, images=queries, region=region, progress=False).strengths().values[:, 0]


def _scores(planted: Planted, queries: Trajectory, region: Box | None = None) -> Tensor:
    whole = (0, planted.model.num_train_timesteps)
    return journey.score(planted.features, queries, interval=whole, region=region, progress=False).values[:, 0]


def _detected(
    methods: dict[str, Callable[[Planted, Trajectory], Tensor]], planted: Planted, queries: Trajectory, wanted: Tensor
) -> dict[str, Any]:
    count = int(wanted[0].sum())
    rows = {}
    for name, scores in methods.items():
        found = detect(scores(planted, queries), wanted, k=count)
        rows[name] = {"auc": list(found.auc_interval()), "found": found.recall}
    return {"num_queries": len(wanted), "num_planted": count, "methods": rows}


if __name__ == "__main__":
    sys.exit(main())
