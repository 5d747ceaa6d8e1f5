"""``journey groups``: sums of scores over contributors, catalogues or classes."""

from __future__ import annotations

import argparse
import csv
import io
from pathlib import Path

from journey.cli.arguments import Commands, add_command
from journey.cli.outputs import prepare_file
from journey.report.groups import write_groups_png
from journey.scores.scores import Scores

EXAMPLES = """
journey groups --scores run/scores.safetensors --groups contributors.csv --out groups.csv
journey groups --scores run/scores.safetensors --groups contributors.csv --out groups.csv --pool 1000 --png groups.png
"""


def add(commands: Commands) -> None:
    """Declare the command."""
    text = "add up the scores of contributors, catalogues or classes, with errors, shares, ranks and payments"
    parser = add_command(commands, "groups", text, EXAMPLES, _run)
    parser.add_argument(
        "--scores", type=Path, required=True, metavar="PATH", help="scores.safetensors that score wrote"
    )
    parser.add_argument(
        "--groups", type=Path, required=True, metavar="CSV", help="file with the columns id and group, a line per image"
    )
    parser.add_argument("--out", type=Path, required=True, dest="table", metavar="CSV", help="file for the table")
    parser.add_argument("--pool", help="an amount of money to divide, into OUT-payments.csv")
    parser.add_argument(
        "--rule",
        choices=("positive", "shapley"),
        default="positive",
        help="how: by positive sums (default), or by all sums, of which negative ones owe",
    )
    parser.add_argument("--png", type=Path, metavar="PATH", help="file for a picture of one image at one step")
    parser.add_argument("--query", type=int, default=0, help="image of the picture (default 0)")
    parser.add_argument("--step", type=int, metavar="T", help="step of the picture, if there are several")


def _run(options: argparse.Namespace) -> None:
    table: Path = options.table
    prepare_file(table, "out")
    prepare_file(options.png, "png")
    scores = Scores.load(options.scores)
    if options.png is not None and options.step is None and len(scores.timesteps) > 1:
        raise ValueError(f"--png shows one of several steps: give --step, one of {scores.timesteps.tolist()}")
    groups = scores.groups(read_groups(options.groups, integers=isinstance(scores.train_ids[0], int)))
    # All that can be refused comes before the first file.
    payments = None if options.pool is None else groups.payments(options.pool, rule=options.rule)
    written = []
    if options.png is not None:
        written.append(write_groups_png(options.png, groups, query=options.query, step=options.step))
    written.append(groups.to_csv(table))
    if payments is not None:
        written.append(payments.to_csv(table.with_name(f"{table.stem}-payments.csv")))
    for path in written:
        print(path)


def read_groups(path: Path, *, integers: bool) -> dict[str, list[int] | list[str]]:
    """Read which image is in which group.

    Args:
        path: A CSV file in UTF-8 with a line of names, among them id and group.
        integers: Whether ids are integers.

    Returns:
        The ids of each group, by name, in the order of the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a column or a cell is missing, an id is no integer, or the file is not in UTF-8.
    """
    found: dict[str, list[int | str]] = {}
    if not path.is_file():
        raise FileNotFoundError(f"groups must be a CSV file with the columns id and group, there is no file {path}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"groups must be a CSV file in UTF-8, {path} is none: {error}") from None
    with io.StringIO(text, newline="") as file:
        reader = csv.DictReader(file)
        missing = {"id", "group"} - set(reader.fieldnames or ())
        if missing:
            raise ValueError(f"groups must be a CSV file with the columns id and group, {path} lacks {sorted(missing)}")
        for row in reader:
            name, group = row["id"], row["group"]
            if not name or not group:
                raise ValueError(f"{path}, line {reader.line_num}: an image needs an id and a group, got {row}")
            try:
                found.setdefault(group, []).append(int(name) if integers else name)
            except ValueError:
                raise ValueError(
                    f"{path}, line {reader.line_num}: the ids of the scores are integers, got {name!r}"
                ) from None
    return found  # type: ignore[return-value]
