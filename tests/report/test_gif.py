"""The animation and the table."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence
from report_cases import TIMESTEPS, Case, make_case, make_region

from journey.report.csv import write_csv
from journey.report.gif import write_gif


@pytest.fixture
def case() -> Case:
    return make_case()


def test_the_animation_has_a_frame_for_each_step_that_shows_its_pictures(case: Case, tmp_path: Path) -> None:
    path = write_gif(tmp_path / "new" / "a.gif", case.trajectory, case.scores, case.dataset, query=1, milliseconds=300)
    with Image.open(path) as opened:
        durations = []
        frames = []
        for frame in ImageSequence.Iterator(opened):
            frames.append(np.asarray(frame.convert("L")).astype(float))
            durations.append(frame.info["duration"])
        assert opened.info["loop"] == 0
    assert durations == [300, 300, 1200]
    # The predicted image: 8 pixels enlarged to 192, in the second column below the heading.
    for s in range(len(TIMESTEPS)):
        left, top = 28 + 192 + 14 + 12, 64 + 8 + 27 + 4 + 12
        shown = frames[s][top : top + 192 : 24, left : left + 192 : 24]
        expected = (case.trajectory.x0_hat[1, s, 0].numpy() + 1) * 127.5
        # A palette of 256 colours for all frames is a few levels off.
        assert np.abs(shown - expected).max() < 8


def test_the_animation_refuses_what_is_not_there(case: Case, tmp_path: Path) -> None:
    arguments = (tmp_path / "a.gif", case.trajectory, case.scores, case.dataset)
    with pytest.raises(ValueError, match=r"query must be among 0\.\.1, .* got 2"):
        write_gif(*arguments, query=2)
    with pytest.raises(ValueError, match="milliseconds must be at least 1, got 0"):
        write_gif(*arguments, milliseconds=0)


def test_the_table_has_every_ranked_image_once_with_its_score(case: Case, tmp_path: Path) -> None:
    regions = {"corner": make_region(case, (0, 0, 4, 4))}
    labels = [f'"{i}", =1' for i in range(17)]
    labels[case.scores.train_ids[0]] = "=HYPERLINK(1)"
    path = write_csv(tmp_path / "a.csv", case.trajectory, case.scores, top=12, labels=labels, regions=regions)
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * len(TIMESTEPS) * 2 * 12  # all 12 are proponents or opponents, in both scopes
    columns = {train_id: column for column, train_id in enumerate(case.scores.train_ids)}
    for row in rows:
        values = regions["corner"].values if row["region"] == "corner" else case.scores.values
        step = values[int(row["query"]), TIMESTEPS.index(int(row["timestep"]))]
        value = step[columns[int(row["train_id"])]]
        assert float(row["score"]) == pytest.approx(value.item(), rel=1e-8)  # nine digits are written
        assert row["kind"] == ("proponent" if value > 0 else "opponent")
        stronger = step > value if value > 0 else step < value
        assert int(row["rank"]) == 1 + int(stronger.sum())
        words = labels[int(row["train_id"])]
        assert row["caption"] == (f"'{words}" if words.startswith("=") else words)
