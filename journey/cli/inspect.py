"""``journey inspect``: what is numerically wrong with a store."""

from __future__ import annotations

import argparse
from pathlib import Path

from journey.cli.arguments import (
    Commands,
    add_command,
    add_damping,
    add_features,
    add_model,
    add_running,
    add_trajectory,
)
from journey.cli.inputs import load_denoiser, load_features, load_trajectory
from journey.cli.outputs import prepare_file
from journey.health.inspect import inspect

EXAMPLES = """
journey inspect --features features
journey inspect --features features --json health.json
journey inspect --features features --model ./ddpm-cifar10 --trajectory generated
"""


def add(commands: Commands) -> None:
    """Declare the command."""
    text = "look for what is numerically wrong with stored features, and measure the noise of their scores"
    parser = add_command(commands, "inspect", text, EXAMPLES, _run)
    add_features(parser)
    parser.add_argument("--json", type=Path, help="file for the same as JSON")
    # With both, the noise of scores is measured as well.
    add_model(parser, required=False)
    add_trajectory(parser, required=False)
    parser.add_argument("--steps", type=int, nargs="+", metavar="T", help="which of its timesteps (default: all)")
    add_damping(parser)
    parser.add_argument("--query-draws", type=int, default=16, help="noises per query and step (default 16)")
    add_running(parser)


def _run(options: argparse.Namespace) -> None:
    prepare_file(options.json, "json")
    if (options.model is None) != (options.trajectory is None):
        raise ValueError("model and trajectory must be given together: --model MODEL --trajectory PATH")
    if options.model is None:
        health = inspect(options.features, damping=options.damping)
    else:
        health = inspect(
            load_features(options, load_denoiser(options)),
            load_trajectory(options),
            steps=options.steps,
            damping=options.damping,
            num_draws=options.query_draws,
            seed=options.seed,
            progress=not options.quiet,
        )
    print(health)
    if options.json is not None:
        options.json.write_text(health.to_json() + "\n")
