"""The report as a table: every ranked training image of every step, one per line."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from journey.report.view import Captions, caption, make_view

if TYPE_CHECKING:
    from journey.generation.trajectory import Trajectory
    from journey.scores.scores import Scores

COLUMNS = ("query", "timestep", "region", "kind", "rank", "train_id", "score", "caption")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # with which spreadsheets take a text for something to compute


def write_csv(
    path: str | Path,
    trajectory: Trajectory,
    scores: Scores,
    *,
    top: int = 8,
    labels: Captions | None = None,
    regions: Mapping[str, Scores] | None = None,
) -> Path:
    """Write the strongest proponents and opponents of every query, step and region as comma-separated values.

    The file is UTF-8 with one line of names: query (from 0), timestep, region (empty for the main scores), kind
    (proponent or opponent), rank (from 1), train_id, score, caption. Captions are not trusted: an apostrophe stands
    before those that a spreadsheet would take for a formula.

    Args:
        path: The file to write; missing folders are made.
        trajectory: The recorded steps.
        scores: Scores of the same queries, for all recorded steps or some. [num_queries, num_steps, num_train]
        top: Proponents and opponents per step, at most.
        labels: Captions of the training images, looked up by dataset index.
        regions: Scores of parts of the images by name, for the same steps.

    Returns:
        The path of the file.

    Raises:
        ValueError: If ``scores`` and ``trajectory`` disagree, scores are not finite, a caption is missing, or ``top``
            is below 1.
    """
    view = make_view(trajectory, scores, max(scores.train_ids) + 1, top, regions)
    rows: list[tuple[object, ...]] = [COLUMNS]
    for query in range(view.num_queries):
        for step, timestep in enumerate(view.timesteps):
            for ranking in view.rankings:
                for kind, entries in (("proponent", ranking.proponents), ("opponent", ranking.opponents)):
                    for rank, entry in enumerate(entries[query][step], 1):
                        words = _plain(caption(labels, entry.train_id, "labels"))
                        place = (query, timestep, _plain(ranking.name), kind, rank)
                        rows.append((*place, entry.train_id, f"{entry.value:.9g}", words))
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("w", encoding="utf-8", errors="replace", newline="") as file:
        csv.writer(file).writerows(rows)
    return target


def _plain(words: str) -> str:
    return f"'{words}" if words.startswith(_FORMULA) else words
