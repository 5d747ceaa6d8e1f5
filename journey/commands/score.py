"""``journey score``: generate images and rank the training images for each of their steps."""

from __future__ import annotations

import argparse
from pathlib import Path

from journey.commands.common import Commands, add_command, add_model, add_running, parse_damping
from journey.datasets import ImageFolder
from journey.denoiser import as_denoiser
from journey.features import open_features
from journey.regions import Region
from journey.run import Run
from journey.scoring import score
from journey.trajectory import Trajectory, record

EXAMPLES = """
journey score --model ./ddpm-cifar10 --data ./images --features features --out attribution --num-images 4
journey score --model ./ddpm-cifar10 --data ./images --features features --out early --interval 600 1000
journey score --model ./ddpm-cifar10 --data ./images --features features --out corner --region 0 0 16 16
"""


def add(commands: Commands) -> None:
    """Declare the command."""
    text = "generate images and rank the training images for each of their steps"
    parser = add_command(commands, "score", text, EXAMPLES, _run)
    add_model(parser)
    parser.add_argument("--features", type=Path, required=True, help="folder that featurize wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder for the run, report.html and report.png")
    parser.add_argument("--num-images", type=int, default=1, help="images to generate (default 1)")
    parser.add_argument("--num-inference-steps", type=int, default=50, help="steps of the sampler (default 50)")
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
        help="count training at timesteps T0 ... T1 - 1 alone; featurize with --bins 10 for it",
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
    parser.add_argument("--damping", default="1", help='fraction of the mean eigenvalue (default 1), or "auto"')
    parser.add_argument("--query-draws", type=int, default=16, help="noises per query and step (default 16)")
    parser.add_argument("--top", type=int, default=8, help="proponents and opponents in the report (default 8)")
    add_running(parser)


def _run(options: argparse.Namespace) -> None:
    damping = parse_damping(options.damping)
    region = None if options.region is None else _region(options.region)
    denoiser = as_denoiser(options.model)
    denoiser.network.to(options.device)
    features = open_features(options.features, denoiser)
    progress = not options.quiet
    trajectory = record(
        denoiser,
        seed=options.seed,
        num_images=options.num_images,
        num_inference_steps=options.num_inference_steps,
        progress=progress,
    )
    scores = score(
        features,
        trajectory,
        steps=None if options.interval else options.steps or _spread(trajectory, options.num_scored),
        interval=_pair(options.interval),
        train_interval=_pair(options.train_interval),
        region=region,
        completions=options.completions,
        damping=damping,
        num_draws=options.query_draws,
        seed=options.seed,
        progress=progress,
    )
    dataset = ImageFolder(options.data, size=denoiser.sample_size, channels=denoiser.in_channels or 3)
    labels = [path.relative_to(options.data).as_posix() for path in dataset.paths]
    top = min(options.top, len(dataset))
    run = Run(trajectory, scores, dataset, labels=labels)
    run.save(options.out, top=max(top, 16))
    run.write_report(options.out / "report.html", top=top)
    run.write_png(options.out / "report.png", top=min(top, 6))
    print(f"Scores: {options.out / 'scores.safetensors'} {list(scores.values.shape)}, damping {scores.damping:.3g}")
    print(f"Report: {options.out / 'report.html'}")


def _spread(trajectory: Trajectory, count: int) -> list[int]:
    """The middles of equal parts of the trajectory."""
    total = len(trajectory.timesteps)
    count = min(count, total)
    return [int(trajectory.timesteps[(2 * i + 1) * total // (2 * count)]) for i in range(count)]


def _pair(numbers: list[int] | None) -> tuple[int, int] | None:
    return None if numbers is None else (numbers[0], numbers[1])


def _region(words: list[str]) -> Region:
    """Four numbers are a box, one word is the path of a mask."""
    if len(words) == 1:
        return words[0]
    try:
        top, left, bottom, right = map(int, words)
    except ValueError:
        raise ValueError(
            f"region must be a box TOP LEFT BOTTOM RIGHT or the path of a mask image, got {' '.join(words)}"
        ) from None
    return top, left, bottom, right
