"""The map of the code is true: each file stands on it and imports only from its own row or from rows below."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "journey"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.stem not in ("__init__", "__main__"))


def rows_of_the_map() -> dict[str, int]:
    """The row of each file or folder, as its path in the package without ``.py``."""
    table = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("`csrc/`")[0]
    rows = [line.split("|")[2] for line in table.splitlines() if line.startswith("| ")][1:]
    return {name.rstrip("/"): number for number, row in enumerate(rows) for name in re.findall(r"`([\w/]+)`", row)}


ROWS = rows_of_the_map()


def row_of(name: str) -> int | None:
    """The row of a file, or of the folder in which it is."""
    return next((ROWS[part] for part in (name, *map(str, Path(name).parents)) if part in ROWS), None)


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "journey":
            names = [node.module] if node.module != "journey" else [f"journey.{alias.name}" for alias in node.names]
            yield from (name.partition(".")[2].replace(".", "/") for name in names if name != "journey.__version__")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_file_is_on_the_map_and_imports_nothing_from_above(path: Path) -> None:
    own = row_of(path.relative_to(PACKAGE).with_suffix("").as_posix())
    assert own is not None, f"add {path.name} to docs/architecture.md"
    above = [name for name in imported(path) if (row := row_of(name)) is None or row < own]
    assert not above, f"{path.name} imports {above} from a row above its own, or from none"
