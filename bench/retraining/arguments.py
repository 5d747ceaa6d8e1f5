"""The arguments that the comparisons with retraining share, and where their results go."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from bench.retraining.tiers import TIERS, Tier
from bench.table import insert


def make_parser(module: str, text: str | None, *more: Tier) -> argparse.ArgumentParser:
    """Return a parser of the arguments that all comparisons have.

    Args:
        module: What is run, as ``python -m module``.
        text: What it does.
        *more: Tiers that this comparison has beside ``TIERS``.

    Returns:
        The parser.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=text)
    names = [*TIERS, *(tier.name for tier in more)]
    parser.add_argument("--tier", choices=names, default="laptop", help="data and sizes (default: laptop)")
    parser.add_argument("--data", type=Path, help="folder of the data, where the tier needs one")
    parser.add_argument("--work", type=Path, default=Path("build/retraining"), help="folder of models and features")
    parser.add_argument("--out", type=Path, default=Path("bench/results"), help="folder of the numbers, as JSON")
    parser.add_argument("--pages", type=Path, default=Path("docs/results"), help="folder of the tables and pictures")
    parser.add_argument("--into", type=Path, help="also write the table into this file, between its markers")
    return parser


def write_results(options: argparse.Namespace, name: str, document: dict[str, Any], text: str) -> None:
    """Write a comparison as JSON and as Markdown, and print it.

    Args:
        options: Of ``make_parser``.
        name: Of the files.
        document: The numbers.
        text: The table.
    """
    options.out.mkdir(parents=True, exist_ok=True)
    options.pages.mkdir(parents=True, exist_ok=True)
    (options.out / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    (options.pages / f"{name}.md").write_text(text + "\n")
    print(text)


def write_into(options: argparse.Namespace, text: str, marker: str) -> None:
    """Write a table between the markers of the file that ``--into`` names, if it names one."""
    if options.into is not None:
        options.into.write_text(insert(options.into.read_text(), text, marker))
