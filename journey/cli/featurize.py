"""``journey featurize``: measure every image of a folder."""

from __future__ import annotations

import argparse
from os import environ

from journey.cli.arguments import (
    Commands,
    add_command,
    add_data,
    add_measured,
    add_measuring,
    add_model,
    add_running,
    place,
)
from journey.cli.inputs import load_data, load_denoiser, load_measuring
from journey.features.featurize import featurize

EXAMPLES = """
journey featurize --model ./ddpm-cifar10 --data ./images --out features
journey featurize --model ./ddpm-cifar10 --data ./images --out features-by-time --bins 10
RANK=0 WORLD_SIZE=2 journey featurize --model ./ddpm-cifar10 --data ./images --out features
journey featurize --model ./stable-diffusion --lora ./lora --data ./captioned --out lora-features --batch-size auto
"""


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
    add_measuring(parser)
    add_running(parser)


def _from_environment(name: str, default: int) -> int:
    """What ``torchrun`` or a job array says about the processes that share the work."""
    try:
        return int(environ.get(name, default))
    except ValueError:
        raise ValueError(f"environment variable {name} must be a number, got {environ[name]!r}") from None


def _run(options: argparse.Namespace) -> None:
    denoiser = load_denoiser(options)
    featurize(
        denoiser,
        load_data(options, denoiser),
        options.out,
        **load_measuring(options),
        rank=_from_environment("RANK", 0),
        world_size=_from_environment("WORLD_SIZE", 1),
        progress=not options.quiet,
    )
