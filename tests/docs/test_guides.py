"""The examples of the documentation run as they stand, page by page, and name options that the commands have."""

from __future__ import annotations

import argparse
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from journey.cli import main as cli

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted([*DOCS.glob("start/*.md"), *DOCS.glob("guides/*.md"), DOCS / "index.md", DOCS / "command-line.md"])
# ``<!-- needs: LIBRARY -->`` above a block lets it run only where that library is installed.
BLOCK = re.compile(
    r"(?:<!-- needs: (?P<needs>\w+) -->\n+)?^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)


class Block(NamedTuple):
    """One block of code of a page."""

    code: str
    line: int
    needs: str | None


def blocks(page: Path, language: str) -> list[Block]:
    """The blocks of one language on a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(found["code"], text.count("\n", 0, found.start("code")), found["needs"])
        for found in BLOCK.finditer(text)
        if found["language"] == language
    ]


def name(page: Path) -> str:
    return page.relative_to(DOCS).as_posix()


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name)
def test_the_examples_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    for code, line, needs in blocks(page, "python"):
        if needs is None or importlib.util.find_spec(needs) is not None:
            # Errors name the page and its line.
            exec(compile("\n" * line + code, str(page), "exec", dont_inherit=True), names)


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command line of ``journey`` in a piece of text."""
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        if "journey" in words[:8]:
            yield words[words.index("journey") + 1 :]


def command_lines(page: Path) -> list[list[str]]:
    """The command lines of a page: lines of bash blocks, and code in running text that begins with ``journey``."""
    text = page.read_text(encoding="utf-8")
    inline = re.findall(r"`(journey [^`]*)`", BLOCK.sub("", text))
    return [words for code in (*(block.code for block in blocks(page, "bash")), *inline) for words in commands(code)]


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of each subcommand."""
    (action,) = [a for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(action.choices)


@pytest.mark.parametrize("page", [page for page in PAGES if command_lines(page)], ids=name)
def test_the_commands_of_a_page_exist_with_their_options(page: Path) -> None:
    known = parsers()
    for words in command_lines(page):
        if not words or words[0] == "COMMAND":
            continue
        assert words[0] in known, f"journey {words[0]} is no command"
        wrong = {word for word in words if word.startswith("--")} - set(known[words[0]]._option_string_actions)
        assert not wrong, f"journey {words[0]} has no {wrong}"


def test_options_that_continue_a_command_are_those_of_score() -> None:
    score = set(parsers()["score"]._option_string_actions)
    text = (DOCS / "command-line.md").read_text(encoding="utf-8")
    continued = [line for line in text.splitlines() if line.startswith("| …")]
    found = {option for line in continued for option in re.findall(r"--[\w-]+", line)}
    assert found
    assert found <= score, found - score
