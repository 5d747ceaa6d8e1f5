"""``journey score``: generate images and rank the training images for each of their steps."""

from __future__ import annotations

import argparse
from typing import Any

from journey.cli.arguments import (
    Commands,
    add_command,
    add_completion_steps,
    add_damping,
    add_data,
    add_features,
    add_model,
    add_recording,
    add_running,
    add_trajectory,
    folder,
    parse_region,
)
from journey.cli.inputs import load_data, load_denoiser, load_features, load_trajectory, record_images
from journey.cli.outputs import prepare_folder
from journey.cli.transitions import load_transitions
from journey.data.folder import ImageFolder
from journey.data.ids import ids_of
from journey.errors import StoreMismatchError
from journey.features.contents import check_images
from journey.features.features import Features
from journey.report.run import Run
from journey.scores.score import score

EXAMPLES = """
journey score --model ./ddpm-cifar10 --data ./images --features features --out attribution --num-images 4
journey score --model ./ddpm-cifar10 --data ./images --features features --out early --interval 600 1000
journey score --model ./ddpm-cifar10 --data ./images --features features --out corner --region 0 0 16 16
journey score --model ./stable-diffusion --data ./captioned --features features --prompt "a red apple" --out apple
journey score --model ./ddpm-cifar10 --data ./images --features features --trajectory generated --out attribution
"""


def add(commands: Commands) -> None:
    """Declare the command."""
    text = "generate images, or take recorded ones, and rank the training images for each of their steps"
    parser = add_command(commands, "score", text, EXAMPLES, _run)
    add_model(parser)
    add_data(parser)
    add_features(parser)
    add_trajectory(parser, required=False)
    add_recording(parser)
    parser.add_argument("--out", type=folder, required=True, help="folder for the run, report.html and report.png")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--num-scored", type=int, default=8, help="steps to score, evenly spread (default 8)")
    which.add_argument("--steps", type=int, nargs="+", metavar="T", help="timesteps to score, among the sampler's")
    which.add_argument(
        "--interval", type=int, nargs=2, metavar=("T0", "T1"), help="one score for all steps in timesteps T0 ... T1 - 1"
    )
    parser.add_argument(
        "--train-interval",
        type=int,
        nargs=2,
        metavar=("T0", "T1"),
        help="count training at timesteps T0 ... T1 - 1 alone, of features in several bins",
    )
    parser.add_argument(
        "--region",
        nargs="+",
        metavar="REGION",
        help="score a part of the images: a box TOP LEFT BOTTOM RIGHT in pixels, or the path of a mask image",
    )
    parser.add_argument(
        "--completions",
        type=int,
        default=0,
        help="images completed from each step that are measured instead of the predicted one (default 0)",
    )
    add_completion_steps(parser)
    add_damping(parser)
    parser.add_argument("--query-draws", type=int, default=16, help="noises per query and step (default 16)")
    parser.add_argument("--top", type=int, default=12, help="proponents and opponents in the report (default 12)")
    add_running(parser)


def _run(options: argparse.Namespace) -> None:
    region = parse_region(options.region)
    for name in ("num_scored", "top"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(options, name)}")
    prepare_folder(options.out)
    denoiser = load_denoiser(options)
    features, dataset = load_features(options, denoiser), load_data(options, denoiser)
    check_data(features, dataset)
    recorded = options.trajectory is not None
    trajectory = load_trajectory(options) if recorded else record_images(options, denoiser)
    scores = score(
        features,
        trajectory,
        steps=None if options.interval else options.steps or trajectory.spread(options.num_scored),
        interval=_pair(options.interval),
        train_interval=_pair(options.train_interval),
        region=region,
        completions=options.completions,
        num_inference_steps=options.completion_steps,
        damping=options.damping,
        num_draws=options.query_draws,
        seed=options.seed,
        progress=not options.quiet,
    )
    top = min(options.top, len(dataset))
    transitions = load_transitions(options.trajectory) if recorded else {}
    run = Run(trajectory, scores, dataset, labels=dataset.labels, transitions=transitions)
    run.save(options.out, top=max(top, 16))
    run.write_report(options.out / "report.html", top=top)
    run.write_png(options.out / "report.png", top=min(top, 6))
    print(f"Scores: {options.out / 'scores.safetensors'} {list(scores.values.shape)}, damping {scores.damping:.3g}")
    print(f"Report: {options.out / 'report.html'}")


def check_data(features: Features, dataset: ImageFolder) -> None:
    """Refuse training images that are not those of the features: the page would show others than were measured.

    Raises:
        StoreMismatchError: If an image has no file, or one that is looked at is another one than was measured.
    """
    ids = ids_of(dataset)
    absent = set(features.ids).difference(ids)
    if absent:
        raise StoreMismatchError(
            f"data must be the images that {features.store.path} was made from, got {dataset.root}, which lacks "
            f"{len(absent)} of {features.num_samples}, such as {sorted(map(str, absent))[0]!r}; what was featurized in "
            "Python from other forms is scored there too"
        )
    known = set(features.ids)  # others may have been left out, as they cannot be read
    rows = [at for at, i in enumerate(ids) if i in known]
    check_images(features.store, _Part(dataset, rows), [ids[at] for at in rows], features.featurizer.denoiser)


class _Part:
    """Some images of a folder."""

    def __init__(self, dataset: ImageFolder, rows: list[int]) -> None:
        self._dataset, self._rows = dataset, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        return self._dataset[self._rows[index]]


def _pair(numbers: list[int] | None) -> tuple[int, int] | None:
    return None if numbers is None else (numbers[0], numbers[1])
