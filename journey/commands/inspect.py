"""``journey inspect``: what is numerically wrong with a store."""

from __future__ import annotations

import argparse
from pathlib import Path

from journey.commands.common import Commands, add_command, add_running, parse_damping
from journey.denoiser import as_denoiser
from journey.features import open_features
from journey.health import inspect
from journey.trajectory import Trajectory

EXAMPLES = """
journey inspect features
journey inspect features --json health.json
journey inspect features --model ./ddpm-cifar10 --trajectory attribution/trajectory.safetensors
"""


def add(commands: Commands) -> None:
    """Declare the command."""
    text = "look for what is numerically wrong with stored features, and measure the noise of their scores"
    parser = add_command(commands, "inspect", text, EXAMPLES, _run)
    parser.add_argument("store", type=Path, help="folder that featurize wrote")
    parser.add_argument("--json", type=Path, help="file for the same as JSON")
    parser.add_argument("--model", help="the features' model, with --trajectory")
    parser.add_argument("--trajectory", type=Path, help="file that score wrote: the noise of its scores is measured")
    parser.add_argument("--steps", type=int, nargs="+", metavar="T", help="which of its timesteps (default: all)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    parser.add_argument("--damping", default="1", help='fraction of the mean eigenvalue (default 1), or "auto"')
    parser.add_argument("--query-draws", type=int, default=16, help="noises per query and step (default 16)")
    parser.add_argument("--seed", type=int, default=0, help="names the noises (default 0)")
    add_running(parser)


def _run(options: argparse.Namespace) -> None:
    damping = parse_damping(options.damping)
    if (options.model is None) != (options.trajectory is None):
        raise ValueError("model and trajectory must be given together: --model MODEL --trajectory FILE")
    if options.model is None:
        health = inspect(options.store, damping=damping)
    else:
        denoiser = as_denoiser(options.model)
        denoiser.network.to(options.device)
        health = inspect(
            open_features(options.store, denoiser),
            Trajectory.load(options.trajectory),
            steps=options.steps,
            damping=damping,
            num_draws=options.query_draws,
            seed=options.seed,
            progress=not options.quiet,
        )
    print(health)
    if options.json is not None:
        options.json.write_text(health.to_json() + "\n")
