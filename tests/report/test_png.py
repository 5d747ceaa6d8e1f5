"""The picture: every image in its place, enlarged pixel by pixel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from report_cases import TIMESTEPS, Case, bytes_of, make_case

from journey.report.png import write_png


@pytest.fixture
def case() -> Case:
    return make_case()


def find(picture: np.ndarray, tile: np.ndarray, scale: int) -> list[tuple[int, int]]:
    """Where a tile, enlarged pixel by pixel, occurs in an RGB picture, as (row, column)."""
    big = np.kron(tile, np.ones((scale, scale), np.uint8))
    height, width = big.shape
    red = picture[..., 0]
    rows, columns = np.nonzero(
        (red[: 1 - height, : 1 - width] == big[0, 0]) & (red[height - 1 :, width - 1 :] == big[-1, -1])
    )
    return [
        (int(r), int(c))
        for r, c in zip(rows, columns, strict=True)
        if (picture[r : r + height, c : c + width] == big[..., None]).all()
    ]


def test_the_picture_holds_every_image_enlarged_and_in_its_column(case: Case, tmp_path: Path) -> None:
    path = write_png(tmp_path / "p.png", case.trajectory, case.scores, case.dataset, query=1, top=2)
    picture = np.asarray(Image.open(path).convert("RGB"))
    assert len(find(picture, bytes_of(case.trajectory.images[1]), 24)) == 1  # 8 pixels to 192
    top = case.scores.top(2)
    above = 0
    for s in range(len(TIMESTEPS)):
        proponents, opponents = top.proponents.ids[1, s].tolist(), top.opponents.ids[1, s].tolist()
        tiles = [case.trajectory.x_t[1, s], case.trajectory.x0_hat[1, s]]
        tiles += [case.dataset[i] for i in (*proponents, *opponents)]
        places = [find(picture, bytes_of(tile), 12) for tile in tiles]  # 8 pixels to 96
        # A training image may stand in several rows; each row must have one of its places.
        row = min(r for r, _ in places[0])
        columns = [next(c for r, c in place if r == row) for place in places]
        assert columns == sorted(columns), "x_t, prediction, proponents and opponents stand in this order"
        assert row > above, "earlier steps stand above later ones"
        above = row
        frames = [tuple(int(v) for v in picture[row, c - 2]) for c in columns[2:]]
        assert all(g > r for r, g, _ in frames[:2]), "proponents have green frames"
        assert all(r > g for r, g, _ in frames[2:]), "opponents have red frames"


def test_the_picture_grows_by_the_same_amount_per_column_and_row(case: Case, tmp_path: Path) -> None:
    def size(**choices: Any) -> tuple[int, int]:
        path = write_png(tmp_path / "p.png", case.trajectory, case.scores, case.dataset, **choices)
        return Image.open(path).size

    widths = [size(query=0, top=top)[0] for top in (1, 2, 3)]
    assert widths[2] - widths[1] == widths[1] - widths[0] == 2 * (96 + 2 * 5 + 14)  # picture, frame and gap, both sides
    assert size(query=0, top=500)[0] == size(query=0, top=12)[0]
    assert size(query=[0, 1], top=1)[1] - size(query=0, top=1)[1] == size(top=1)[1] - size(query=1, top=1)[1] > 0
    assert size(query=0, timesteps=[500], top=1)[1] < size(query=0, top=1)[1]


def test_the_picture_reduces_large_images_and_shortens_long_captions(tmp_path: Path) -> None:
    choices: Any = {"query": 0, "top": 2, "labels": ["a very long caption, ärgerlich lang " * 9] * 17}
    sizes = []
    for side in (200, 96):
        case = make_case(channels=3, side=side)
        path = write_png(tmp_path / "p.png", case.trajectory, case.scores, case.dataset, **choices)
        sizes.append(Image.open(path).size)
    assert sizes[0] == sizes[1]


def test_the_picture_refuses_queries_and_timesteps_that_are_not_there(case: Case, tmp_path: Path) -> None:
    arguments = (tmp_path / "p.png", case.trajectory, case.scores, case.dataset)
    bad: list[Any] = [2, -1, []]
    for query in bad:
        with pytest.raises(ValueError, match=r"query must be among 0\.\.1"):
            write_png(*arguments, query=query)
    with pytest.raises(ValueError, match=r"timesteps must be among scores\.timesteps \[900, 500, 100\], got \[7\]"):
        write_png(*arguments, timesteps=[7])
