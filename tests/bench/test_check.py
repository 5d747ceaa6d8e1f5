"""Planted folders hold what they say, findings are counted as they should be, and copies are ranked."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.check.__main__ import copies_table, table
from bench.check.copying import auc, interval
from bench.check.faults import judge
from bench.check.folders import COPIES, SIZE, Planted, altered
from journey.audit.finding import Check, Finding

IMAGE = torch.linspace(-1, 1, 3 * SIZE * SIZE).view(3, SIZE, SIZE)


def make_planted() -> Planted:
    held_out = torch.zeros(2, 3, SIZE, SIZE)
    images = torch.zeros(40, 3, SIZE, SIZE)
    return Planted(0, images, ("",) * 40, (1, 39), "exact", (2, 3), 4, "noise", held_out, ("", ""))


def finding(kind: str, *ids: int) -> Finding:
    return Finding(kind, ids, "", 1.0, 0.1, "")


def test_findings_are_right_if_they_are_of_the_planted_kind_and_images() -> None:
    right = [finding("duplicates", 1, 39), finding("caption", 3), finding("odd", 4)]
    wrong = [finding("duplicates", 5, 6), finding("odd", 2), finding("caption", 4), finding("memorised", 8)]
    found = judge(make_planted(), Check((*right, *wrong), tuple(range(40)), {}, ()))
    assert found["counts"] == {
        "duplicates": [1, 2, 1, 1],
        "caption": [1, 2, 1, 1],
        "odd": [1, 2, 1, 1],
        "opponent": [0, 0, 0, 0],
    }
    larger = Check((finding("duplicates", 1, 7, 39),), tuple(range(40)), {}, ())
    assert judge(make_planted(), larger)["counts"]["duplicates"] == [0, 1, 0, 1]
    ranks = {"duplicates": {"mine": 1}, "caption": {"mine": 2}, "odd": {}}
    lines = table({"folders": [{**found, "ranks": ranks}]}).splitlines()
    assert "| duplicates | 0.50 (1 of 2) | 1.00 (1 of 1) |" in lines
    assert "| **all** | 0.50 (3 of 6) | 1.00 (3 of 3) |" in lines
    assert "| mine | 1.00 (1 of 1) | 0.00 (0 of 1) |  |" in lines


@pytest.mark.parametrize("kind", COPIES)
def test_altered_copies_are_altered_and_stay_near(kind: str) -> None:
    copy = altered(kind, IMAGE, np.random.default_rng(0))
    assert copy.shape == IMAGE.shape
    assert copy.abs().max() <= 1
    assert torch.equal(copy, IMAGE) == (kind == "exact")
    assert (copy - IMAGE).square().mean() < (IMAGE.flip(0, 1, 2) - IMAGE).square().mean()


def test_the_auc_counts_pairs() -> None:
    assert auc([3.0, 1.0], [2.0, 1.0]) == (1 + 1 + 0 + 0.5) / 4
    near = {"journey.copies": {kind: [2.0, 3.0] for kind in COPIES} | {"held out": [0.0, 1.0]}}
    folders = [{"near": near, "p values": {kind: [0.05, 0.5] for kind in COPIES}}]
    assert interval(folders, "journey.copies", "exact") == [1.0, 1.0, 1.0]
    lines = copies_table({"copies": folders}).splitlines()
    assert lines[2].startswith("| journey.copies | 1.00 [1.00, 1.00] |")
    assert lines[3].startswith("| journey.copies, p ≤ .05 | 0.50 (1 of 2) |")
