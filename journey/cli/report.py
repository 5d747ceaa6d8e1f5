"""``journey report``: show a run again, as a page, a picture, an animation or a table."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from journey.cli.arguments import Commands, add_command
from journey.cli.groups import read_groups
from journey.report.run import Run

EXAMPLES = """
journey report --run attribution --gif --csv
journey report --run attribution --region "top left"=corner
"""


def add(commands: Commands) -> None:
    """Declare the command."""
    text = "show a run again: report.html, and on demand a picture, an animation and a table"
    parser = add_command(commands, "report", text, EXAMPLES, _run)
    parser.add_argument("--run", type=Path, required=True, dest="folder", help="folder that score or demo wrote")
    parser.add_argument("--png", action="store_true", help="write report.png too: one image, some steps")
    parser.add_argument("--gif", action="store_true", help="write report.gif too: one image, step after step")
    parser.add_argument("--csv", action="store_true", help="write report.csv too: every ranked training image")
    parser.add_argument("--query", type=int, default=0, help="image of the picture and the animation (default 0)")
    parser.add_argument("--top", type=int, default=12, help="proponents and opponents per step (default 12)")
    parser.add_argument(
        "--region",
        action="append",
        default=[],
        metavar="NAME=RUN",
        help="add another run of the same images and steps, made with --region, as a box to choose; may be repeated",
    )
    parser.add_argument(
        "--groups", type=Path, metavar="CSV", help="file with the columns id and group, whose sums the page shows too"
    )


def _run(options: argparse.Namespace) -> None:
    folder: Path = options.folder
    run = Run.load(folder)
    for words in options.region:
        name, separator, other = words.partition("=")
        if not (name and separator and other):
            raise ValueError(f"region must be NAME=RUN, got {words!r}")
        run = run.with_region(name, Run.load(other))
    if options.groups is not None:
        integers = isinstance(run.scores.train_ids[0], int)
        groups: dict[str, Any] = dict(read_groups(options.groups, integers=integers))
        run = replace(run, groups=groups)
    top = options.top
    written = [run.write_report(folder / "report.html", top=top)]
    if options.png:
        written.append(run.write_png(folder / "report.png", query=options.query, top=min(top, 6)))
    if options.gif:
        written.append(run.write_gif(folder / "report.gif", query=options.query, top=min(top, 5)))
    if options.csv:
        written.append(run.write_csv(folder / "report.csv", top=top))
    for path in written:
        print(path)
