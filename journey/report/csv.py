"""The report as a table: every ranked training image of every step, one per line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from journey.data.ids import Ids, positions_of
from journey.exports.csv import write_csv as write_rows
from journey.report.view import Captions, caption, check_all_scored, make_view

if TYPE_CHECKING:
    from journey.generation.trajectory import Trajectory
    from journey.scores.scores import Scores

COLUMNS = ("query", "timestep", "region", "kind", "rank", "train_id", "score", "caption")


def write_csv(
    path: str | Path,
    trajectory: Trajectory,
    scores: Scores,
    *,
    top: int = 8,
    labels: Captions | None = None,
    ids: Ids | None = None,
    regions: Mapping[str, Scores] | None = None,
) -> Path:
    """Write the strongest proponents and opponents of every query, step and region as comma-separated values.

    The file is UTF-8 with one line of names: query (from 0), timestep, region (empty for the main scores), kind
    (proponent or opponent), rank (from 1), train_id, score, caption. Texts are not trusted: an apostrophe stands
    before those that a spreadsheet would take for a formula.

    Args:
        path: The file to write; missing folders are made.
        trajectory: The recorded steps.
        scores: Scores of the same queries, for all recorded steps or some. [num_queries, num_steps, num_train]
        top: Proponents and opponents per step, at most.
        labels: Captions of the training images, looked up by dataset index.
        ids: Of the dataset's images, in their order, as ``journey.data.ids.ids_of`` tells them. Without labels nothing
            is looked up; with them they are 0, 1, ... by default.
        regions: Scores of parts of the images by name, for the same steps.

    Returns:
        The path of the file.

    Raises:
        ValueError: If ``scores`` and ``trajectory`` disagree, scores are not finite, a caption is missing, ``ids`` lack
            one of the scores, or ``top`` is below 1.
        TypeError: If ``scores`` are the strongest alone.
    """
    check_all_scored(scores)
    if ids is not None:
        places = positions_of(ids)
    elif labels is None:
        places = positions_of(scores.train_ids)
    else:
        places = {i: i for i in scores.train_ids if isinstance(i, int)}
    missing = [i for i in scores.train_ids if i not in places]
    if missing:
        raise ValueError(f"ids must have the place in the dataset of every training image, got none for {missing[0]!r}")
    view = make_view(trajectory, scores, places, top, regions)
    rows: list[tuple[object, ...]] = [COLUMNS]
    for query in range(view.num_queries):
        for step, timestep in enumerate(view.timesteps):
            for ranking in view.rankings:
                for kind, entries in (("proponent", ranking.proponents), ("opponent", ranking.opponents)):
                    for rank, entry in enumerate(entries[query][step], 1):
                        words = caption(labels, entry.position, "labels")
                        place = (query, timestep, ranking.name, kind, rank)
                        rows.append((*place, entry.train_id, float(f"{entry.value:.9g}"), words))
    return write_rows(path, rows)
