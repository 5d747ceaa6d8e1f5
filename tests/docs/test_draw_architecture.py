"""The map of the code is drawn from the import contract and is up to date."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]

if sys.version_info < (3, 11):
    pytest.importorskip("tomli")


def load() -> ModuleType:
    """The script, which is part of no package."""
    spec = importlib.util.spec_from_file_location("draw_architecture", ROOT / "docs" / "draw_architecture.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_shows_the_contract() -> None:
    script = load()
    page = script.PAGE.read_text(encoding="utf-8")
    assert page == script.redraw(page), "run: python docs/draw_architecture.py"


def test_every_package_has_its_level_and_says_its_job() -> None:
    script = load()
    levels = [name.partition(".")[0] for layer in script.layers() for name in layer]
    folders = sorted(path.name for path in (ROOT / "journey").iterdir() if (path / "__init__.py").exists())
    assert set(folders) <= set(levels)
    assert all(script.job(name) for name in folders)


def test_siblings_stand_on_one_level(tmp_path: Path) -> None:
    script = load()
    (tmp_path / "pyproject.toml").write_text(
        '[tool.importlinter]\nroot_package = "journey"\n'
        '[[tool.importlinter.contracts]]\nname = "one way"\ntype = "layers"\ncontainers = ["journey"]\n'
        'layers = ["(app) | (cli)", "(exports)", "a | b", "errors"]\n'
        '[[tool.importlinter.contracts]]\nname = "No a in b"\ntype = "forbidden"\n'
    )
    for package in ("cli", "a", "b"):
        (tmp_path / "journey" / package).mkdir(parents=True)
        (tmp_path / "journey" / package / "__init__.py").write_text(f'"""The {package}.\n\nMore."""\n')
    (tmp_path / "journey" / "errors.py").write_text('"""Errors."""\n')
    assert script.draw(tmp_path).splitlines() == [
        "| level | package | job |",
        "|---|---|---|",
        "| 3 | `cli` | The cli. |",
        "| 2 | `a` | The a. |",
        "| 2 | `b` | The b. |",
        "| 1 | `errors` | Errors. |",
        "",
        "Further contracts:",
        "",
        "- No a in b.",
    ]
