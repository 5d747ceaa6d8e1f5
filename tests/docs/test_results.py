"""The tables of the results are those of the numbers that are kept, and their commands exist."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from bench.check.__main__ import table as check_table
from bench.retraining.exports import table as exports_table
from bench.retraining.groups import table as groups_table
from bench.retraining.library import DEFAULT
from bench.retraining.planted import table as planted_table
from bench.retraining.removals_report import tables
from bench.retraining.steps.compare import SHOWN, step_table
from bench.retraining.whole.compare import table
from bench.table import insert
from bench.table import table as speed_table

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
Render = Callable[[dict[str, Any]], str]


def numbers(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((ROOT / "bench" / "results" / f"{name}.json").read_text(encoding="utf-8"))
    return document


@pytest.mark.parametrize(
    ("page", "marker", "name", "render"),
    [
        ("retraining", "lds", "lds-digits8-table", table),
        ("steps", "lds-steps", "lds-digits8-steps-table", lambda document: step_table(document, SHOWN)),
        ("removals", "removals", "removals-digits8", lambda document: tables(document, short=True)),
        *(
            ("choices", f"exports-{name}", f"exports-{name}", exports_table)
            for name in ("digits8", "digits16", "fashion")
        ),
        ("planted", "planted", "planted-digits8", planted_table),
        ("check", "check-emoji", "check-emoji", check_table),
        ("speed", "bench", "cpu-2core", lambda document: speed_table(document, goals_only=True)),
    ],
)
def test_the_table_of_a_page_is_that_of_its_numbers(page: str, marker: str, name: str, render: Render) -> None:
    text = (DOCS / "results" / f"{page}.md").read_text(encoding="utf-8")
    assert insert(text, render(numbers(name)), marker) == text


def test_the_table_of_the_groups_is_that_of_its_numbers() -> None:
    text = (DOCS / "guides" / "groups.md").read_text(encoding="utf-8")
    assert insert(text, groups_table(numbers("groups-digits8")), "groups") == text


@pytest.mark.parametrize(
    ("page", "name", "render"),
    [
        ("lds-digits8-table", "lds-digits8-table", table),
        ("lds-emoji-lora-table", "lds-emoji-lora-table", table),
        ("lds-digits8-steps-table", "lds-digits8-steps-table", step_table),
        ("lds-digits16-steps-table", "lds-digits16-steps-table", step_table),
        ("lds-fashion-steps-table", "lds-fashion-steps-table", step_table),
        ("lds-emoji-lora-steps-table", "lds-emoji-lora-steps-table", step_table),
        ("removals-digits8", "removals-digits8", tables),
        ("planted-digits8", "planted-digits8", planted_table),
        ("groups-digits8", "groups-digits8", groups_table),
        ("speed-all", "cpu-2core", speed_table),
    ],
)
def test_a_full_table_is_that_of_its_numbers(page: str, name: str, render: Render) -> None:
    assert (DOCS / "results" / f"{page}.md").read_text(encoding="utf-8").endswith(render(numbers(name)) + "\n")


def test_the_readme_has_the_numbers_of_the_tables() -> None:
    rows = (DOCS / "results" / "lds-digits8-table.md").read_text(encoding="utf-8").splitlines()
    cells = {row.split(" | ")[0].removeprefix("| "): row.strip("| ").split(" | ") for row in rows[2:]}
    lines = [line for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    names = (DEFAULT, f"{DEFAULT}, linear scores", "das", "pixels, cosine", "trak", "ceiling")
    for name, row in zip(names, lines[2:8], strict=True):
        assert cells[name][2] in row, row
        assert cells[name][3] in row, row


def test_the_benchs_commands_exist_with_their_options() -> None:
    pages = [*DOCS.rglob("*.md"), ROOT / "README.md"]
    found = {c for page in pages for c in re.findall(r"python -m (bench[^`\n]*)", page.read_text(encoding="utf-8"))}
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "bench").rglob("*.py"))
    assert found
    for command in found:
        module, *words = command.split()
        assert find_spec(module) is not None, command
        missing = [word for word in words if word.startswith("--") and f'"{word}"' not in sources]
        assert not missing, command
