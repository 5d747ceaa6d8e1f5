"""Names and files that the documentation mentions exist."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])


def resolve(name: str) -> object:
    """Import what a dotted name stands for; modules first, then attributes."""
    parts = name.split(".")
    found: object = importlib.import_module(parts[0])
    for i, part in enumerate(parts[1:], 2):
        try:
            found = getattr(found, part)
        except AttributeError:
            found = importlib.import_module(".".join(parts[:i]))
    return found


def label(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_names_of_the_library_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    names = {*re.findall(r"`(journey(?:\.\w+)+)", text), *re.findall(r"^::: (journey(?:\.\w+)+)", text, re.MULTILINE)}
    missing = []
    for name in sorted(names):
        try:
            resolve(name)
        except ImportError:
            missing.append(name)
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_files_of_the_repository_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"`((?:journey|csrc|tests|bench|docs|[a-z_]+)/[\w./-]+)`", text)
    files = {name for name in found if Path(name).suffix in (".py", ".cpp", ".cu", ".h", ".json", ".md", ".toml")}
    missing = [name for name in files if not any((ROOT / base / name).exists() for base in ("", "journey", "csrc"))]
    made = ("demo/", "apple/", "encoded/", "run/", "out/")  # written by the commands of the page
    assert not [name for name in missing if not name.startswith(made)]
