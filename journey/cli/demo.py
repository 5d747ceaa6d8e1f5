"""``journey demo``: the main job on real data that pip brings, digits without a prompt or emoji with one."""

from __future__ import annotations

import argparse
from pathlib import Path

from journey.cli.arguments import Commands, add_command, add_running, folder
from journey.demo.digits_demo import format_result, run_demo
from journey.demo.emoji_demo import format_text_result, run_text_demo

EXAMPLES = """
journey demo --out demo
journey demo --text "red apple" --out apple
"""


def add(commands: Commands) -> None:
    """Declare the command."""
    text = "train a small model on handwritten digits, or with --text on named emoji, and attribute its samples"
    parser = add_command(commands, "demo", text, EXAMPLES, _run)
    parser.add_argument("--out", type=folder, required=True, help="folder for the report and everything else")
    parser.add_argument(
        "--text", help='prompt for a text-to-image model (needs pip install "journey-attribution[demo-text]")'
    )
    parser.add_argument(
        "--cache", type=Path, help="with --text: folder that keeps the trained model (default ~/.cache/journey)"
    )
    parser.add_argument("--seed", type=int, default=0, help="names everything random (default 0)")
    parser.add_argument("--num-images", type=int, help="images to generate (default 16, with --text 4)")
    parser.add_argument("--train-steps", type=int, help="optimiser steps (default 1200, with --text 3000)")
    parser.add_argument("--num-draws", type=int, default=2, help="timesteps per training image (default 2)")
    add_running(parser)


def _run(options: argparse.Namespace) -> None:
    # What was not given keeps the default of the demo that runs.
    given = {name: getattr(options, name) for name in ("num_images", "train_steps")}
    common = {name: value for name, value in given.items() if value is not None}
    common |= {"seed": options.seed, "num_draws": options.num_draws, "progress": not options.quiet}
    if options.text is not None:
        print(format_text_result(run_text_demo(options.out, options.text, cache=options.cache, **common)))
    elif options.cache is not None:
        raise ValueError(f"--cache belongs to the demo with --text, got {options.cache} without it")
    else:
        print(format_result(run_demo(options.out, **common)))
    print(f"Report: {options.out / 'report.html'}")
