"""``journey featurize``: measure every image of a folder."""

from __future__ import annotations

import argparse
from os import environ
from typing import Literal, get_args

from journey.cli.arguments import (
    Commands,
    add_command,
    add_data,
    add_measured,
    add_model,
    add_projection,
    add_running,
    place,
)
from journey.cli.inputs import load_data, load_denoiser, load_projection
from journey.features.featurize import featurize
from journey.measure.draws import Draws, GridDraws, StratifiedDraws, UniformDraws
from journey.store.rows import RowFormat

EXAMPLES = """
journey featurize --model ./ddpm-cifar10 --data ./images --out features
journey featurize --model ./ddpm-cifar10 --data ./images --out features-by-time --bins 10
RANK=0 WORLD_SIZE=2 journey featurize --model ./ddpm-cifar10 --data ./images --out features
journey featurize --model ./stable-diffusion --lora ./lora --data ./captioned --out lora-features --batch-size auto
"""

_DRAWS: dict[str, type[StratifiedDraws] | type[UniformDraws] | type[GridDraws]] = {
    "stratified": StratifiedDraws,
    "uniform": UniformDraws,
    "grid": GridDraws,
}


def add(commands: Commands) -> None:
    """Declare the command."""
    text = "measure every image of a folder and store its projected gradient"
    parser = add_command(commands, "featurize", text, EXAMPLES, _run)
    add_model(parser)
    add_data(parser)
    add_measured(parser)
    parser.add_argument(
        "--out", type=place, required=True, help="folder of the store, or s3://...; continues what is there"
    )
    parser.add_argument(
        "--batch-size", type=_batch_size, help="images per batch (default: 64 draws, or what keeps 4 GiB), or auto"
    )
    parser.add_argument("--memory", type=float, help="GiB that a batch may take with --batch-size auto (default: half)")
    parser.add_argument("--shard-size", type=int, help="images per file (default: a 128th, 16 to 1,024)")
    parser.add_argument("--workers", type=int, default=0, help="processes that read images ahead (default 0)")
    parser.add_argument(
        "--on-error", choices=("error", "skip"), default="error", help="what becomes of images that cannot be read"
    )
    add_projection(parser)
    parser.add_argument("--draws", choices=_DRAWS, default="stratified", help="how timesteps are chosen")
    parser.add_argument("--num-draws", type=int, help="timesteps per image and bin (default 20, with several bins 2)")
    parser.add_argument(
        "--bins", type=int, default=1, help="ranges of timesteps whose features are kept apart (default 1)"
    )
    parser.add_argument("--row", choices=get_args(RowFormat), default="int8", help="how features are kept")
    parser.add_argument("--fit", type=place, help="folder that fit wrote (default: made inside the store)")
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
    num_draws = options.num_draws if options.num_draws is not None else 20 if options.bins == 1 else 2
    draws: Draws = _DRAWS[options.draws](num_draws=num_draws, bins=options.bins, seed=options.seed)
    measurement, projector = load_projection(options)
    featurize(
        denoiser,
        load_data(options, denoiser),
        options.out,
        fit=options.fit,
        measurement=measurement,
        draws=draws,
        projector=projector,
        checkpoints=options.checkpoints,
        select=options.select,
        batch_size=options.batch_size,
        memory=None if options.memory is None else int(options.memory * 2**30),
        row=options.row,
        shard_size=options.shard_size,
        workers=options.workers,
        on_error=options.on_error,
        rank=_from_environment("RANK", 0),
        world_size=_from_environment("WORLD_SIZE", 1),
        progress=not options.quiet,
    )
