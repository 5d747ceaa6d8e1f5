"""``journey featurize``: measure every image of a folder."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from os import environ
from pathlib import Path
from typing import Literal

from journey.cli.arguments import Commands, add_command, add_data, add_measured, add_model, add_running
from journey.cli.inputs import load_data, load_denoiser
from journey.curvature.whitened import Whitened
from journey.features.featurize import featurize
from journey.measure.draws import Draws, GridDraws, StratifiedDraws, UniformDraws
from journey.measure.left_out import LeftOutLoss
from journey.measure.measurements import MeanOutput, Measurement, SquaredNorm, TrainingLoss
from journey.projectors.base import Projector
from journey.projectors.random import CountSketch, Gaussian, Rademacher

EXAMPLES = """
journey featurize --model ./ddpm-cifar10 --data ./images --out features
journey featurize --model ./ddpm-cifar10 --data ./images --out features-whole --bins 1
RANK=0 WORLD_SIZE=2 journey featurize --model ./ddpm-cifar10 --data ./images --out features
journey featurize --model ./stable-diffusion --lora ./lora --data ./captioned --out lora-features --batch-size auto
"""

_MEASUREMENTS: dict[str, type[Measurement]] = {
    "left-out-loss": LeftOutLoss,
    "loss": TrainingLoss,
    "squared-norm": SquaredNorm,
    "mean-output": MeanOutput,
}
_DRAWS: dict[str, type[StratifiedDraws] | type[UniformDraws] | type[GridDraws]] = {
    "stratified": StratifiedDraws,
    "uniform": UniformDraws,
    "grid": GridDraws,
}
_PROJECTORS: dict[str, Callable[..., Projector]] = {
    "whitened": lambda proj_dim, seed: Whitened(CountSketch(proj_dim, seed=seed)),
    "count-sketch": CountSketch,
    "rademacher": Rademacher,
    "gaussian": Gaussian,
}


def add(commands: Commands) -> None:
    """Declare the command."""
    text = "measure every image of a folder and store its projected gradient"
    parser = add_command(commands, "featurize", text, EXAMPLES, _run)
    add_model(parser)
    add_data(parser)
    add_measured(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder of the store; continues what is there")
    parser.add_argument(
        "--batch-size", type=_batch_size, help="images per batch (default: 64 draws, or what keeps 4 GiB), or auto"
    )
    parser.add_argument("--memory", type=float, help="GiB that a batch may take with --batch-size auto (default: half)")
    parser.add_argument("--shard-size", type=int, default=256, help="images per file (default 256)")
    parser.add_argument(
        "--measurement",
        choices=_MEASUREMENTS,
        help="what is differentiated (default: left-out-loss for whitened gradients, loss for others)",
    )
    parser.add_argument("--draws", choices=_DRAWS, default="stratified", help="how timesteps are chosen")
    parser.add_argument("--num-draws", type=int, help="timesteps per image and bin (default 8, with several bins 2)")
    parser.add_argument(
        "--bins",
        type=int,
        default=10,
        help="ranges of timesteps with a feature each (default 10; 1 takes a tenth of the storage)",
    )
    parser.add_argument(
        "--projector",
        choices=_PROJECTORS,
        default="whitened",
        help="how gradients are projected (default: divided by the root of a curvature, then count-sketch)",
    )
    parser.add_argument("--proj-dim", type=int, default=4096, help="features per image and bin (default 4096)")
    add_running(parser)


def _batch_size(text: str) -> int | Literal["auto"]:
    try:
        return "auto" if text == "auto" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number of images or auto, got {text!r}") from None


def _from_environment(name: str, default: int) -> int:
    """What ``torchrun`` or a job array says about the processes that share the work."""
    try:
        return int(environ.get(name, default))
    except ValueError:
        raise ValueError(f"environment variable {name} must be a number, got {environ[name]!r}") from None


def _run(options: argparse.Namespace) -> None:
    denoiser = load_denoiser(options)
    num_draws = options.num_draws if options.num_draws is not None else 8 if options.bins == 1 else 2
    draws: Draws = _DRAWS[options.draws](num_draws=num_draws, bins=options.bins, seed=options.seed)
    projector: Projector = _PROJECTORS[options.projector](options.proj_dim, seed=options.seed)
    featurize(
        denoiser,
        load_data(options, denoiser),
        options.out,
        measurement=None if options.measurement is None else _MEASUREMENTS[options.measurement](),
        draws=draws,
        projector=projector,
        checkpoints=options.checkpoints,
        select=options.select,
        batch_size=options.batch_size,
        memory=None if options.memory is None else int(options.memory * 2**30),
        shard_size=options.shard_size,
        rank=_from_environment("RANK", 0),
        world_size=_from_environment("WORLD_SIZE", 1),
        progress=not options.quiet,
    )
