"""Scores name training images by integers or by strings, and keep them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from journey.files.tensors import read_tensors, write_tensors
from journey.scores.scores import Scores

IDS = [[2**63 - 1, -(2**63), 0], ["b/\u00e9t\u00e9 \U0001f600.png", "a", "x" * 1024]]
VALUES = torch.tensor([[[1.0, -2.0, 1.0]]])


def make_scores(ids: Any, values: torch.Tensor = VALUES) -> Scores:
    return Scores(values, torch.tensor([40]), ids, 0.1)


@pytest.mark.parametrize("ids", IDS, ids=["integers", "strings"])
def test_ids_of_either_kind_are_ranked_summed_and_kept(ids: Any, tmp_path: Path) -> None:
    scores = make_scores(ids)
    top = scores.top(2)
    assert top.proponents.ids.dtype.kind == ("i" if isinstance(ids[0], int) else "U")
    assert top.proponents.ids.tolist() == [[sorted([ids[0], ids[2]])]]  # equal scores
    assert top.opponents.ids[0, 0, 0] == ids[1]
    assert scores.total([ids[1], ids[2]]).values.item() == -1
    scores.save(tmp_path / "first")
    Scores.load(tmp_path / "first").save(tmp_path / "again")
    assert Scores.load(tmp_path / "again").train_ids == ids
    assert (tmp_path / "first").read_bytes() == (tmp_path / "again").read_bytes()


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([1, 2, 1], ValueError, "train_ids must name every image once, got 1"),
        (["a", "b", "a"], ValueError, "train_ids must name every image once, got 'a'"),
        (["a", "b", 3], TypeError, "train_ids must be all integers or all strings, got 'a' and 3"),
        ([1.0, 2, 3], TypeError, r"train_ids must be an integer or a string, got 1\.0"),
    ],
)
def test_ids_that_name_nobody_are_refused(ids: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_scores(ids)


def test_integers_of_numpy_become_plain_ones() -> None:
    found = make_scores(np.array([5, 6, 7])).train_ids
    assert found == [5, 6, 7]
    assert all(type(i) is int for i in found)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_not_ranked(bad: float) -> None:
    with pytest.raises(ValueError, match="values must be finite, got NaN or infinity for the image 'b'"):
        make_scores(["a", "b", "c"], torch.tensor([[[1.0, bad, 2.0]]])).top(1)


def test_ids_that_were_damaged_are_refused(tmp_path: Path) -> None:
    make_scores(["a", "bc", "d"]).save(tmp_path / "scores")
    saved = read_tensors(tmp_path / "scores", "scores")
    assert saved["train_ids.ends"].tolist() == [1, 3, 4]
    for ends in ([1, 3, 5], [3, 1, 4]):
        write_tensors(tmp_path / "bad", "scores", {**saved, "train_ids.ends": torch.tensor(ends)})
        with pytest.raises(ValueError, match="train_ids: id_ends must rise to the length of id_bytes"):
            Scores.load(tmp_path / "bad")
    write_tensors(tmp_path / "bad", "scores", {k: v for k, v in saved.items() if k != "train_ids.bytes"})
    with pytest.raises(ValueError, match="is damaged or of another version: it lacks train_ids"):
        Scores.load(tmp_path / "bad")
