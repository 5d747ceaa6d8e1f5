"""``journey demo``: the main job on real data with nothing to download."""

from __future__ import annotations

import argparse
from pathlib import Path

from journey.commands.common import Commands, add_command, add_running
from journey.demo import format_result, run_demo

EXAMPLES = """
journey demo --out demo
"""


def add(commands: Commands) -> None:
    """Declare the command."""
    text = "train a small DDPM on handwritten digits and attribute its samples"
    parser = add_command(commands, "demo", text, EXAMPLES, _run)
    parser.add_argument("--out", type=Path, required=True, help="folder for the report and everything else")
    parser.add_argument("--seed", type=int, default=0, help="names everything random (default 0)")
    parser.add_argument("--num-images", type=int, default=8, help="images to generate (default 8)")
    parser.add_argument("--train-steps", type=int, default=1200, help="optimiser steps (default 1200)")
    parser.add_argument("--num-draws", type=int, default=8, help="timesteps per training image (default 8)")
    add_running(parser)


def _run(options: argparse.Namespace) -> None:
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
