"""What import-linter cannot see of the contract in pyproject.toml: the compiled module, and packages outside."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "journey"
FILES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES = 300


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, with the names that it takes from it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively; all others name the whole path"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_the_package_imports_neither_bench_nor_tests(path: Path) -> None:
    assert not {name.partition(".")[0] for name in imported(path)} & {"bench", "tests"}


@pytest.mark.parametrize(
    ("oracle", "allowed"),
    [
        ("reference.py", {"journey.ops.geometry.ConvGeometry"}),
        ("reference_norm.py", set()),
        ("reference_packed.py", set()),
    ],
)
def test_the_oracles_import_nothing_compiled(oracle: str, allowed: set[str]) -> None:
    own = {name for name in imported(PACKAGE / "ops" / oracle) if name.startswith("journey")}
    assert own == allowed


def test_eight_files_at_most_lie_at_the_top() -> None:
    assert len([path for path in PACKAGE.iterdir() if path.is_file()]) <= 8


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_module_is_short_enough_to_be_read(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


@pytest.mark.parametrize(
    "package", sorted(path.parent for path in PACKAGE.glob("*/__init__.py")), ids=lambda path: path.name
)
def test_a_package_names_its_files(package: Path) -> None:
    doc = ast.get_docstring(ast.parse((package / "__init__.py").read_text(encoding="utf-8")))
    assert doc is not None
    unnamed = [path.stem for path in package.glob("*.py") if path.stem != "__init__" and f"``{path.stem}``" not in doc]
    assert not unnamed or "a file for each subcommand" in doc
