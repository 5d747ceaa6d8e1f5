"""The picture of the groups: bars as long as the sums, in the colours of what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from journey.report.draw import GREEN, RED, TRACK
from journey.report.groups import write_groups_png
from journey.scores.groups import Groups

LEFT, WIDTH, HEAD, ROW = 40 + 330 + 24, 640, 150, 58


def make_groups(sums: list[float], errors: list[float], names: list[str | None]) -> Groups:
    value, unsure = (torch.tensor(x, dtype=torch.float64).expand(2, 2, -1) for x in (sums, errors))
    return Groups(names, [3] * len(sums), torch.tensor([40, 10]), value, unsure, value.abs().sum(-1))


def bars(path: Path, color: str) -> list[tuple[int, int]]:
    """First and last column of each row of bars that has a colour, above the line of the error."""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    same = (pixels == np.array(ImageColor.getrgb(color))).all(2)
    found = []
    for y in range(HEAD + 6, len(pixels), ROW):
        columns = np.flatnonzero(same[y, LEFT : LEFT + WIDTH + 1])
        if len(columns):
            found.append((int(columns[0]), int(columns[-1])))
    return found


def test_bars_are_as_long_as_the_sums_and_sorted(tmp_path: Path) -> None:
    # The range is from -4 - 2 to 8 + 2: 640 / 16 = 40 pixels for one.
    groups = make_groups([2, 8, -4, 1], [0.5, 1, 1, 2], ["low", "high", "against", None])
    path = write_groups_png(tmp_path / "new" / "groups.png", groups, query=1, step=10)
    zero = 6 * 40
    assert bars(path, GREEN) == [(zero, zero + 8 * 40), (zero, zero + 2 * 40)]
    assert bars(path, RED) == [(zero - 4 * 40, zero)]
    (grey,) = bars(path, TRACK)
    assert grey[0] >= zero
    assert grey[1] <= zero + 40
    again = write_groups_png(tmp_path / "again.png", groups, query=0, step=10)
    assert again.read_bytes() == path.read_bytes()  # both queries are equal


def test_the_largest_sums_of_either_sign_are_shown_and_the_rest_below(tmp_path: Path) -> None:
    groups = make_groups([1, 5, -9, 2, 100], [0.1] * 5, ["a", "b", "c", "d", None])
    few = write_groups_png(tmp_path / "a.png", groups, step=40, top=2)
    assert len(bars(few, GREEN)) == 2  # b, and the rest
    assert len(bars(few, RED)) == 1
    with Image.open(few) as picture:
        assert picture.height == HEAD + 3 * ROW + 27 + 40


def test_unknown_errors_and_no_scores_can_be_drawn(tmp_path: Path) -> None:
    unknown = make_groups([3, -1], [float("nan")] * 2, ["a", "b"])
    path = write_groups_png(tmp_path / "a.png", unknown, step=40)
    assert not bars(path, GREEN)
    assert len(bars(path, TRACK)) == 2
    write_groups_png(tmp_path / "b.png", make_groups([0, 0], [0, 0], ["a", "\u540d\nb"]), step=40)


def test_what_is_not_there_cannot_be_drawn(tmp_path: Path) -> None:
    groups = make_groups([3, -1], [1, 1], ["a", "b"])
    with pytest.raises(ValueError, match=r"step must be one of the timesteps \[40, 10\], got None"):
        write_groups_png(tmp_path / "a.png", groups)
    with pytest.raises(ValueError, match=r"query must be among 0\.\.1, got -1"):
        write_groups_png(tmp_path / "a.png", groups, query=-1, step=40)
    with pytest.raises(ValueError, match="top must be at least 1, got 0"):
        write_groups_png(tmp_path / "a.png", groups, step=40, top=0)
    assert not list(tmp_path.iterdir())
