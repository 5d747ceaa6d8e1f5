"""Render a JSON file of the bench as Markdown, or write its main rows into the README.

``python -m bench.table RESULTS.json ...`` prints all rows; ``--into docs/results/speed.md`` replaces what is between the markers
``<!-- bench:begin -->`` and ``<!-- bench:end -->`` with the rows that have a goal.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from bench.harness import Goal, Ratio, Row, Spread, describe_error, describe_goal, describe_ratio, duration

_HEADER = ("operation", "sizes", "time", "rate", "of the bound", "beside", "error")


def rows_of(document: dict[str, Any]) -> list[Row]:
    """Return the rows of a document of the bench."""
    return [_row(entry) for entry in document["rows"]]


def table(document: dict[str, Any], *, goals_only: bool = False) -> str:
    """Render a document.

    Args:
        document: What the bench wrote.
        goals_only: Leave out rows without a goal.

    Returns:
        A Markdown table, with a line below it that says where, when and how it was measured.
    """
    rows = [row for row in rows_of(document) if row.goal is not None or row.failure or not goals_only]
    lines = [_cells(_HEADER), _cells(["---"] * len(_HEADER)), *(_cells(_entries(row)) for row in rows)]
    return "\n".join([*lines, "", _origin(document)])


def insert(readme: str, text: str, name: str = "bench") -> str:
    """Replace what is between the markers ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``.

    Args:
        readme: Text with both markers, once each.
        text: What shall be between them.
        name: Which markers.

    Returns:
        The new text.

    Raises:
        ValueError: If a marker is missing, doubled or in the wrong order.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if readme.count(begin) != 1 or readme.count(end) != 1 or readme.index(begin) > readme.index(end):
        raise ValueError(f"the file must have one {begin} and, after it, one {end}")
    before, _, rest = readme.partition(begin)
    return f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}"


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for.

    Args:
        arguments: Instead of the command line's.

    Returns:
        Exit status.
    """
    parser = argparse.ArgumentParser(prog="python -m bench.table", description=__doc__)
    parser.add_argument("results", type=Path, nargs="+", help="JSON files of the bench")
    parser.add_argument("--into", type=Path, help="rewrite the part of this file between the markers")
    options = parser.parse_args(arguments)
    documents = [json.loads(path.read_text()) for path in options.results]
    text = "\n\n".join(table(document, goals_only=options.into is not None) for document in documents)
    if options.into is None:
        print(text)
    else:
        options.into.write_text(insert(options.into.read_text(), text))
    return 0


def _row(entry: dict[str, Any]) -> Row:
    fields = dict(entry)
    for name in ("seconds", "fraction"):
        fields[name] = _spread(fields[name])
    fields["ratios"] = [Ratio(**{**ratio, "value": _spread(ratio["value"])}) for ratio in fields["ratios"]]
    if fields["goal"] is not None:
        fields["goal"] = Goal(**{name: value for name, value in fields["goal"].items() if name != "met"})
    return Row(**fields)


def _spread(entry: dict[str, float] | None) -> Any:
    return None if entry is None else Spread(**entry)


def _entries(row: Row) -> list[str]:
    if row.failure:
        return [row.op, row.sizes, "**failed**", "", "", row.failure, ""]
    beside = [describe_ratio(ratio) for ratio in row.ratios]
    beside += [row.note] if row.note else []
    beside += [describe_goal(row.goal)] if row.goal is not None else []
    return [
        row.op.strip() + ("" if row.device == "cpu" else f" ({row.device})"),
        row.sizes,
        "" if row.seconds is None else f"{duration(row.seconds.median)} ±{row.seconds.percent:.0f} %",
        "" if row.rate is None else f"{row.rate:.3g} {row.rate_unit}",
        "" if row.fraction is None else f"{100 * row.fraction.median:.0f} % of {row.bound}",
        "; ".join(beside),
        "" if row.error is None else describe_error(row.error).removeprefix("err "),
    ]


def _cells(entries: Any) -> str:
    return f"| {' | '.join(entry.replace('|', chr(92) + '|') for entry in entries)} |"


def _origin(document: dict[str, Any]) -> str:
    machine, versions = document["machine"], document["versions"]
    gpu = f"; {machine['gpu']}" if "gpu" in machine else ""
    commit = document["commit"] or "unknown"
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {document['threads']} threads{gpu}; torch {versions['torch']}, "
        f"journey {versions['journey']['version']} ({versions['journey']['isa']}); {document['date'][:10]}, "
        f"commit {commit[:12]}{'-dirty' if commit.endswith('-dirty') else ''}; `{document['command']}`. Times are "
        "medians with half the distance of the quartiles; ratios are medians over interleaved runs."
    )


if __name__ == "__main__":
    sys.exit(main())
