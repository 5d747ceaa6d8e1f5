"""Comma-separated values that a spreadsheet can open without harm."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # with which spreadsheets take a text for something to compute


def write_csv(path: str | Path, rows: Iterable[Sequence[object]]) -> Path:
    """Write rows as comma-separated values in UTF-8.

    Texts are not trusted: an apostrophe stands before those that a spreadsheet would take for a formula. Numbers are
    numbers, also negative ones.

    Args:
        path: The file; missing folders are made.
        rows: The names of the columns, then the rows.

    Returns:
        The path of the file.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("w", encoding="utf-8", errors="replace", newline="") as file:
        csv.writer(file).writerows([harmless(cell) for cell in row] for row in rows)
    return target


def harmless(cell: object) -> object:
    """Return a cell; a text that a spreadsheet would compute gets an apostrophe in front."""
    return f"'{cell}" if isinstance(cell, str) and cell.lstrip(" ").startswith(_FORMULA) else cell
