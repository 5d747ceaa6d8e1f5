"""The command line: ``journey info | featurize | score | demo``."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from os import environ
from pathlib import Path

import torch

from journey import __version__
from journey.datasets import ImageFolder
from journey.demo import format_result, run_demo
from journey.denoiser import as_denoiser
from journey.draws import Draws, GridDraws, StratifiedDraws, UniformDraws
from journey.features import open_features
from journey.featurize import featurize
from journey.info import describe_installation
from journey.measurements import Measurement, SquaredNorm, TrainingLoss
from journey.projectors import CountSketch, Gaussian, Projector, Rademacher
from journey.report import write_png, write_report
from journey.scoring import score
from journey.trajectory import record

_MEASUREMENTS: dict[str, type[Measurement]] = {"loss": TrainingLoss, "squared-norm": SquaredNorm}
_DRAWS: dict[str, type[StratifiedDraws] | type[UniformDraws] | type[GridDraws]] = {
    "stratified": StratifiedDraws,
    "uniform": UniformDraws,
    "grid": GridDraws,
}
_PROJECTORS: dict[str, type[CountSketch] | type[Rademacher] | type[Gaussian]] = {
    "count-sketch": CountSketch,
    "rademacher": Rademacher,
    "gaussian": Gaussian,
}

_EXAMPLES = """examples:
  journey info
  journey demo --out demo
  journey featurize --model ./ddpm-cifar10 --data ./images --out features
  journey score --model ./ddpm-cifar10 --data ./images --features features --out attribution --num-images 4
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments; those of the process by default.

    Returns:
        The exit status: 0, or 1 after an error that was explained.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = _parser().parse_args(arguments)
    if getattr(options, "threads", None):
        torch.set_num_threads(options.threads)
    out: Path | None = getattr(options, "out", None)
    try:
        options.run(options)
        if out is not None:
            _echo(out, arguments)
    except KeyboardInterrupt:
        if out is not None and (out / "manifest.json").exists():
            _echo(out, arguments)
        print("journey: interrupted; finished shards are kept, the same command continues", file=sys.stderr)
        return 130
    except (OSError, ValueError, TypeError, RuntimeError, ImportError) as error:
        print(f"journey: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="journey",
        description="Which training images steered a diffusion model, at each step of the generation.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"journey {__version__}")
    commands = parser.add_subparsers(required=True, metavar="{info,featurize,score,demo}")

    info = _command(commands, "info", "print versions, build options, architectures and devices")
    info.set_defaults(run=_info)

    demo = _command(commands, "demo", "train a small DDPM on handwritten digits and attribute its samples")
    demo.add_argument("--out", type=Path, required=True, help="folder for the report and everything else")
    demo.add_argument("--seed", type=int, default=0, help="names everything random (default 0)")
    demo.add_argument("--num-images", type=int, default=8, help="images to generate (default 8)")
    demo.add_argument("--train-steps", type=int, default=1200, help="optimiser steps (default 1200)")
    demo.add_argument("--num-draws", type=int, default=8, help="timesteps per training image (default 8)")
    _common(demo)
    demo.set_defaults(run=_demo)

    featurizing = _command(commands, "featurize", "measure every image of a folder and store its projected gradient")
    _model(featurizing)
    featurizing.add_argument("--out", type=Path, required=True, help="folder of the store; continues what is there")
    featurizing.add_argument("--batch-size", type=int, help="images per batch (default: 64 rows with their draws)")
    featurizing.add_argument("--shard-size", type=int, default=256, help="images per file (default 256)")
    _measurement(featurizing)
    _common(featurizing)
    featurizing.set_defaults(run=_featurize)

    scoring = _command(commands, "score", "generate images and rank the training images for each of their steps")
    _model(scoring)
    scoring.add_argument("--features", type=Path, required=True, help="folder that featurize wrote")
    scoring.add_argument("--out", type=Path, required=True, help="folder for scores, report.html and report.png")
    scoring.add_argument("--num-images", type=int, default=1, help="images to generate (default 1)")
    scoring.add_argument("--num-inference-steps", type=int, default=50, help="steps of the sampler (default 50)")
    scoring.add_argument("--num-scored", type=int, default=8, help="steps to score, evenly spread (default 8)")
    scoring.add_argument("--damping", default="auto", help='fraction of the mean eigenvalue, or "auto" (default)')
    scoring.add_argument("--query-draws", type=int, default=16, help="noises per query and step (default 16)")
    scoring.add_argument("--top", type=int, default=8, help="proponents and opponents in the report (default 8)")
    _common(scoring)
    scoring.set_defaults(run=_score)
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name, help=text, description=text, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="show no progress bars")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")


def _model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="path or repo id of a saved DDPM or DDIM pipeline")
    parser.add_argument("--data", type=Path, required=True, help="folder of training images")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    parser.add_argument("--seed", type=int, default=0, help="names everything random (default 0)")


def _measurement(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--measurement", choices=_MEASUREMENTS, default="loss", help="what is differentiated")
    parser.add_argument("--draws", choices=_DRAWS, default="stratified", help="how timesteps are chosen")
    parser.add_argument("--num-draws", type=int, default=8, help="timesteps per image and bin (default 8)")
    parser.add_argument("--bins", type=int, default=1, help="ranges of timesteps with a feature each (default 1)")
    parser.add_argument("--projector", choices=_PROJECTORS, default="count-sketch", help="how gradients are projected")
    parser.add_argument("--proj-dim", type=int, default=4096, help="features per image and bin (default 4096)")


def _info(options: argparse.Namespace) -> None:
    info = describe_installation()
    width = max(map(len, info))
    for name, value in info.items():
        print(f"{name:<{width}}  {value}")


def _demo(options: argparse.Namespace) -> None:
    result = run_demo(
        options.out,
        seed=options.seed,
        num_images=options.num_images,
        train_steps=options.train_steps,
        num_draws=options.num_draws,
        progress=not options.quiet,
    )
    print(format_result(result))
    print(f"Report: {options.out / 'report.html'}")


def _featurize(options: argparse.Namespace) -> None:
    denoiser = as_denoiser(options.model)
    denoiser.network.to(options.device)
    draws: Draws = _DRAWS[options.draws](num_draws=options.num_draws, bins=options.bins, seed=options.seed)
    projector: Projector = _PROJECTORS[options.projector](options.proj_dim, seed=options.seed)
    featurize(
        denoiser,
        options.data,
        options.out,
        measurement=_MEASUREMENTS[options.measurement](),
        draws=draws,
        projector=projector,
        batch_size=options.batch_size,
        shard_size=options.shard_size,
        rank=int(environ.get("RANK", 0)),
        world_size=int(environ.get("WORLD_SIZE", 1)),
        progress=not options.quiet,
    )


def _score(options: argparse.Namespace) -> None:
    damping = options.damping if options.damping == "auto" else _number(options.damping)
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
    # The middles of equal parts of the trajectory.
    count = min(options.num_scored, len(trajectory.timesteps))
    steps = [int(trajectory.timesteps[(2 * i + 1) * len(trajectory.timesteps) // (2 * count)]) for i in range(count)]
    scores = score(
        features,
        trajectory,
        steps=steps,
        damping=damping,
        num_draws=options.query_draws,
        seed=options.seed,
        progress=progress,
    )
    options.out.mkdir(parents=True, exist_ok=True)
    trajectory.save(options.out / "trajectory.safetensors")
    scores.save(options.out / "scores.safetensors")
    dataset = ImageFolder(options.data, size=denoiser.sample_size, channels=denoiser.in_channels or 3)
    labels = [path.relative_to(options.data).as_posix() for path in dataset.paths]
    top = min(options.top, len(dataset))
    write_report(options.out / "report.html", trajectory, scores, dataset, top=top, labels=labels)
    write_png(options.out / "report.png", trajectory, scores, dataset, query=0, top=min(top, 6), labels=labels)
    print(f"Scores: {options.out / 'scores.safetensors'} {list(scores.values.shape)}, damping {scores.damping:.3g}")
    print(f"Report: {options.out / 'report.html'}")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f'damping must be "auto" or a number >= 0, got {text!r}') from None


def _echo(out: Path, arguments: list[str]) -> None:
    """Leave the command in the output folder, so that the run can be repeated."""
    (out / "command.txt").write_text("journey " + shlex.join(arguments) + "\n")
