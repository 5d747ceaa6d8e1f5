"""Names of files as people write them: paths, ``*.tar``, ``shards-{000..009}.tar``."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def find_files(patterns: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Return the files that some paths and patterns name.

    Args:
        patterns: Paths; ``{000..009}`` and ``{a,b}`` stand for several, ``*``, ``?``, ``[...]`` and ``**`` for those
            that are there, which come sorted. A file that is called so is taken literally.

    Returns:
        The files, in this order.

    Raises:
        FileNotFoundError: If one is not there, or none is of a pattern.
        ValueError: If a file is named twice.
    """
    found = [path for pattern in patterns for path in _matches(os.fspath(pattern))]
    if len(set(found)) < len(found):
        twice = next(path for i, path in enumerate(found) if path in found[:i])
        raise ValueError(f"dataset must name every file once, got {twice} twice")
    return found


def _matches(pattern: str) -> list[Path]:
    if Path(pattern).exists():
        return [Path(pattern)]
    found = []
    for name in expand_braces(pattern):
        magic = glob.has_magic(name)
        matches = sorted(map(Path, glob.glob(name, recursive=True))) if magic else [Path(name)] * Path(name).exists()  # noqa: PTH207
        if not matches:
            raise FileNotFoundError(
                f"dataset: there is no file {name}" + (f", of {pattern}" if name != pattern else "")
            )
        found += matches
    return found


def expand_braces(pattern: str) -> list[str]:
    """Return the names that a pattern with ``{000..009}`` and ``{a,b}`` stands for, the last brace counting fastest."""
    parts = _BRACES.split(pattern)
    choices = [[part] if i % 2 == 0 else _choices(part) for i, part in enumerate(parts)]
    return ["".join(chosen) for chosen in product(*choices)]


def _choices(inside: str) -> list[str]:
    if (found := _RANGE.fullmatch(inside)) is None:
        return inside.split(",") if "," in inside else [f"{{{inside}}}"]
    first, last = int(found[1]), int(found[2])
    if first > last:
        raise ValueError(f"dataset must name a range that goes up, got {{{inside}}}")
    return [str(number).zfill(len(found[1])) for number in range(first, last + 1)]
