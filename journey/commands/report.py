"""``journey report``: show a run again, as a page, a picture, an animation or a table."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from journey.commands.common import Commands, add_command
from journey.report import write_csv, write_gif, write_png, write_report
from journey.run import Run
from journey.scoring import Scores
from journey.trajectory import Trajectory

EXAMPLES = """
journey report attribution --gif --csv
journey report attribution --region "top left"=corner
"""


def add(commands: Commands) -> None:
    """Declare the command."""
    text = "show a run again: report.html, and on demand a picture, an animation and a table"
    parser = add_command(commands, "report", text, EXAMPLES, _run)
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="folder that score or demo wrote")
    parser.add_argument("--png", action="store_true", help="write report.png too: one image, some steps")
    parser.add_argument("--gif", action="store_true", help="write report.gif too: one image, step after step")
    parser.add_argument("--csv", action="store_true", help="write report.csv too: every ranked training image")
    parser.add_argument("--query", type=int, default=0, help="image of the picture and the animation (default 0)")
    parser.add_argument("--top", type=int, default=8, help="proponents and opponents per step (default 8)")
    parser.add_argument(
        "--region",
        action="append",
        default=[],
        metavar="NAME=RUN",
        help="add another run of the same images and steps, made with --region, as a box to choose; may be repeated",
    )


def _run(options: argparse.Namespace) -> None:
    folder: Path = options.run_folder
    run = Run.load(folder)
    if options.region:
        run = replace(run, regions={**run.regions, **dict(_region(run, words) for words in options.region)})
    top = options.top
    several = {"labels": run.labels, "query_captions": run.query_captions}
    common = (run.trajectory, run.scores, run.dataset)
    written = [
        write_report(
            folder / "report.html",
            *common,
            top=top,
            notes=run.notes,
            regions=run.regions,
            transitions=run.transitions,
            **several,
        )
    ]
    if options.png:
        written.append(write_png(folder / "report.png", *common, query=options.query, top=min(top, 6), **several))
    if options.gif:
        written.append(write_gif(folder / "report.gif", *common, query=options.query, top=min(top, 5), **several))
    if options.csv:
        path = folder / "report.csv"
        written.append(write_csv(path, run.trajectory, run.scores, top=top, labels=run.labels, regions=run.regions))
    for path in written:
        print(path)


def _region(run: Run, words: str) -> tuple[str, Scores]:
    """The scores of another run, once it is sure that it attributes the same images."""
    name, separator, folder = words.partition("=")
    if not (name and separator and folder):
        raise ValueError(f"region must be NAME=RUN, got {words!r}")
    images = Trajectory.load(Path(folder) / "trajectory.safetensors").images
    if images.shape != run.trajectory.images.shape or not torch.equal(images, run.trajectory.images):
        raise ValueError(f"region {name!r} must be of the same generated images: {folder} was made from others")
    return name, Scores.load(Path(folder) / "scores.safetensors")
