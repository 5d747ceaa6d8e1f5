"""``journey influence``: which timesteps of training count at which steps of a generation."""

from __future__ import annotations

import argparse
import csv
from itertools import pairwise
from pathlib import Path

from journey.cli.arguments import (
    Commands,
    add_command,
    add_damping,
    add_features,
    add_model,
    add_running,
    add_trajectory,
    parse_region,
)
from journey.cli.inputs import load_denoiser, load_features, load_trajectory, parse_ids
from journey.cli.outputs import prepare_file
from journey.scores.influence import influence_matrix

EXAMPLES = """
journey influence --model ./ddpm-cifar10 --features features --trajectory generated --ids 17.png
journey influence --model ./ddpm-cifar10 --features features --trajectory generated --ids 1.png 2.png --csv table.csv
"""


def add(commands: Commands) -> None:
    """Declare the command."""
    text = "split the scores of training images by the bins of timesteps that featurize kept"
    parser = add_command(commands, "influence", text, EXAMPLES, _run)
    add_model(parser)
    add_features(parser)
    add_trajectory(parser)
    parser.add_argument("--ids", nargs="+", required=True, metavar="ID", help="training images whose scores are summed")
    parser.add_argument("--query", type=int, default=0, help="which generated image (default 0)")
    parser.add_argument("--steps", type=int, nargs="+", metavar="T", help="which of its timesteps (default: all)")
    parser.add_argument("--region", nargs="+", metavar="REGION", help="as for score")
    add_damping(parser)
    parser.add_argument("--query-draws", type=int, default=16, help="noises per step (default 16)")
    parser.add_argument("--csv", type=Path, help="file for the table")
    add_running(parser)


def _run(options: argparse.Namespace) -> None:
    prepare_file(options.csv, "csv")
    region = parse_region(options.region)
    denoiser = load_denoiser(options)
    features = load_features(options, denoiser)
    found = influence_matrix(
        features,
        load_trajectory(options),
        parse_ids(options.ids, features.ids),
        query=options.query,
        steps=options.steps,
        region=region,
        damping=options.damping,
        num_draws=options.query_draws,
        seed=options.seed,
        progress=not options.quiet,
    )
    edges, steps = found.edges.tolist(), found.timesteps.tolist()
    bins = [f"{first}-{end - 1}" for first, end in pairwise(edges)]
    rows = [["trained at", *map(str, steps)]]
    rows += [[name, *(f"{value:.3g}" for value in row)] for name, row in zip(bins, found.values.tolist(), strict=True)]
    for row in rows:
        print("".join(f"{cell:>11}" for cell in row))
    if options.csv is not None:
        with options.csv.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(rows)
