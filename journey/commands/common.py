"""Arguments that several subcommands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_command(
    commands: Commands, name: str, text: str, examples: str, run: Callable[[argparse.Namespace], None]
) -> argparse.ArgumentParser:
    """Add a subcommand with the arguments that all have.

    Args:
        commands: Where to add it.
        name: What it is called by.
        text: What it does, in one line.
        examples: Command lines, one per line, shown below the help.
        run: Does the job.

    Returns:
        Its parser.
    """
    indented = "\n".join(f"  {line}" for line in examples.strip().splitlines())
    parser = commands.add_parser(
        name,
        help=text,
        description=text,
        epilog=f"examples:\n{indented}\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def add_running(parser: argparse.ArgumentParser) -> None:
    """Add how a command runs: ``--quiet`` and ``--threads``."""
    parser.add_argument("--quiet", action="store_true", help="show no progress bars")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the model, its training images, the device and the seed."""
    parser.add_argument("--model", required=True, help="path or repo id of a saved DDPM or DDIM pipeline")
    parser.add_argument("--data", type=Path, required=True, help="folder of training images")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    parser.add_argument("--seed", type=int, default=0, help="names everything random (default 0)")


def parse_damping(text: str) -> float | Literal["auto"]:
    """Return the damping as a number, or ``"auto"``.

    Raises:
        ValueError: If it is neither.
    """
    if text == "auto":
        return "auto"
    try:
        return float(text)
    except ValueError:
        raise ValueError(f'damping must be "auto" or a number >= 0, got {text!r}') from None
