"""The command line: ``journey info | demo | plan | fit | featurize | record | score | transitions | ...``."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from contextlib import nullcontext, suppress

import torch

from journey import ops
from journey.cli import (
    app,
    check,
    demo,
    featurize,
    fit,
    groups,
    influence,
    inspect,
    plan,
    record,
    report,
    score,
    transitions,
)
from journey.cli.arguments import add_command, hidden_bars
from journey.cli.info import describe_installation
from journey.files.paths import Location, exists
from journey.files.publish import publish

_COMMANDS = (demo, plan, fit, featurize, record, score, groups, transitions, influence, report, inspect, check, app)
_EXAMPLES = "journey info\n" + "".join(command.EXAMPLES.lstrip() for command in _COMMANDS)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments; those of the process by default.

    Returns:
        The exit status: 0, 1 after an error that was explained, or 130 after an interruption.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = _parser().parse_args(arguments)
    out: Location | None = getattr(options, "out", None)
    try:
        if getattr(options, "threads", None) is not None:
            _set_threads(options.threads)
        with hidden_bars() if getattr(options, "quiet", False) else nullcontext():
            options.run(options)
        if out is not None:
            _echo(out, arguments)
    except KeyboardInterrupt:
        kept = False
        with suppress(OSError):  # of an object store that cannot be reached any more
            kept = out is not None and exists(out / "manifest.json")
            if out is not None and kept:
                _echo(out, arguments)
        told = "; finished shards are kept, the same command continues" if kept else ""
        print(f"journey: interrupted{told}", file=sys.stderr)
        return 130
    except (OSError, ValueError, TypeError, RuntimeError, ImportError) as error:
        print(f"journey: {error}", file=sys.stderr)
        return 1
    # What models of unknown make raise says little without its kind.
    except (AttributeError, LookupError) as error:
        print(f"journey: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="journey",
        description="Which training images steered a diffusion model, at each step of the generation.",
        epilog="examples:\n" + "".join(f"  {line}\n" for line in _EXAMPLES.splitlines()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"journey {ops.build_info()['version']}")
    names = ",".join(command.__name__.rpartition(".")[2] for command in _COMMANDS)
    commands = parser.add_subparsers(required=True, metavar=f"{{info,{names}}}")
    add_command(commands, "info", "print versions, build options, architectures and devices", "journey info", _info)
    for command in _COMMANDS:
        command.add(commands)
    return parser


def _info(options: argparse.Namespace) -> None:
    info = describe_installation()
    width = max(map(len, info))
    for name, value in info.items():
        print(f"{name:<{width}}  {value}")


def _set_threads(count: int) -> None:
    if count < 1:
        raise ValueError(f"threads must be at least 1, got {count}")
    torch.set_num_threads(count)


def _echo(out: Location, arguments: list[str]) -> None:
    """Leave the command in the output folder, so that the run can be repeated."""
    publish(out / "command.txt", [f"journey {shlex.join(arguments)}\n".encode()])
