"""``journey fit``: learn from some images of a folder what measuring and scoring need."""

from __future__ import annotations

import argparse

from journey.cli.arguments import (
    Commands,
    add_command,
    add_measured,
    add_model,
    add_on_error,
    add_projection,
    add_running,
    add_source,
    place,
)
from journey.cli.inputs import load_denoiser, load_projection
from journey.features.fit import fit

EXAMPLES = """
journey fit --model ./ddpm-cifar10 --data ./images --out fit
"""


def add(commands: Commands) -> None:
    """Declare the command."""
    text = "learn from some images what measuring and scoring need; featurize does it if nobody did"
    parser = add_command(commands, "fit", text, EXAMPLES, _run)
    add_model(parser)
    add_source(parser)
    add_measured(parser)
    parser.add_argument(
        "--out", type=place, required=True, help="folder of the fit, or s3://...; continues what is there"
    )
    add_projection(parser)
    parser.add_argument(
        "--pseudo-gradients",
        type=int,
        metavar="N",
        help="of the Gram matrix (default: at most 4096)",
    )
    add_on_error(parser)
    add_running(parser)


def _run(options: argparse.Namespace) -> None:
    measurement, projector = load_projection(options)
    fit(
        load_denoiser(options),
        options.data,
        options.out,
        measurement=measurement,
        projector=projector,
        checkpoints=options.checkpoints,
        select=options.select,
        pseudo_gradients=options.pseudo_gradients,
        on_error=options.on_error,
        progress=not options.quiet,
    )
