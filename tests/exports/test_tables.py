"""Scores as tables: every score once, as it is in the tensors."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pyarrow.parquet
import pytest
import torch

from journey.exports.csv import write_csv
from journey.scores.errors import ScoreErrors
from journey.scores.scores import Scores
from journey.scores.top import TopCollector, TopScores

IDS = ([7, -3, 2**62], ["b.png", "été.png", "a\n.png"])


def make_scores(ids: Any) -> Scores:
    generator = torch.Generator().manual_seed(0)
    random = [torch.rand(*shape, generator=generator) for shape in ((1, 3), (1, 3), (1, 2, 2), (1, 2, 2))]
    values = torch.randn(2, 2, 3, generator=generator)
    return Scores(values, torch.tensor([40, 10]), ids, 0.1, errors=ScoreErrors(*random))


def expected(scores: Scores) -> list[dict[str, Any]]:
    errors = scores.standard_errors()
    return [
        {
            "query": q,
            "step": step,
            "id": scores.train_ids[i],
            "score": scores.values[q, s, i].item(),
            "standard_error": errors[q, s, i].item(),
        }
        for q in range(2)
        for s, step in enumerate((40, 10))
        for i in range(3)
    ]


@pytest.mark.parametrize("ids", IDS)
def test_a_table_has_a_row_for_each_score(ids: Any, tmp_path: Path) -> None:
    scores = make_scores(ids)
    rows = expected(scores)
    frame = scores.to_pandas()
    assert frame.to_dict("records") == rows
    assert list(frame.dtypes[["query", "step", "score", "standard_error"]]) == [np.int64, np.int64, *[np.float32] * 2]
    scores.to_parquet(tmp_path / "scores.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["scores.parquet"]
    table = pyarrow.parquet.read_table(tmp_path / "scores.parquet")
    assert table.to_pylist() == rows
    assert table.schema.field("score").type == pyarrow.float32()
    assert pandas.read_parquet(tmp_path / "scores.parquet").to_dict("records") == rows
    assert list(scores.to_datasets()) == rows
    assert isinstance(scores.to_datasets(), datasets.Dataset)
    assert scores.to_datasets()._fingerprint == scores.to_datasets()._fingerprint
    other = replace(scores, values=scores.values + 1)
    assert other.to_datasets()._fingerprint != scores.to_datasets()._fingerprint
    assert len(scores.to_datasets().filter(lambda row: row["query"] == 1)) == 6


@pytest.mark.parametrize("ids", IDS)
def test_the_strongest_scores_are_a_table_with_their_ranks(ids: Any, tmp_path: Path) -> None:
    scores = make_scores(ids)
    top = TopCollector(2).add(ids, scores.values, scores.standard_errors()).top()
    kept = TopScores(*top, k=2, num_train=3, timesteps=scores.timesteps, damping=0.1)
    frame = kept.to_pandas()
    assert list(frame.columns) == ["query", "step", "kind", "rank", "id", "score", "standard_error"]
    assert len(frame) == 2 * 2 * 2 * 2
    for row in frame.to_dict("records"):
        ranked = top.proponents if row["kind"] == "proponent" else top.opponents
        place = (row["query"], [40, 10].index(row["step"]), row["rank"] - 1)
        assert row["id"] == ranked.ids[place]
        assert row["score"] == ranked.values[place].item()
        assert row["standard_error"] == ranked.errors[place].item()
    kept.to_parquet(tmp_path / "top.parquet")
    assert pyarrow.parquet.read_table(tmp_path / "top.parquet").to_pylist() == frame.to_dict("records")
    assert list(kept.to_datasets()) == frame.to_dict("records")


def test_unknown_errors_are_not_numbers() -> None:
    frame = Scores(torch.ones(1, 1, 2), torch.tensor([0]), [0, 1], 0.1).to_pandas()
    assert frame["standard_error"].isna().all()


@pytest.mark.parametrize(
    ("call", "package"), [("to_pandas", "pandas"), ("to_parquet", "pyarrow"), ("to_datasets", "datasets")]
)
def test_a_missing_package_is_named_with_the_extra(
    call: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    arguments = [tmp_path / "a"] if call == "to_parquet" else []
    with pytest.raises(ImportError, match=rf'needs {package}: pip install "journey-attribution\[exports\]"'):
        getattr(make_scores([0, 1, 2]), call)(*arguments)


def test_a_file_that_cannot_be_written_leaves_the_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = make_scores([0, 1, 2])
    scores.to_parquet(tmp_path / "a.parquet")
    before = (tmp_path / "a.parquet").read_bytes()

    def full(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(pyarrow.parquet.ParquetWriter, "write_batch", full)
    with pytest.raises(OSError, match="disk full"):
        scores.to_parquet(tmp_path / "a.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]
    assert (tmp_path / "a.parquet").read_bytes() == before
    with pytest.raises(FileNotFoundError, match="path must be a file in a folder that is there"):
        scores.to_parquet(tmp_path / "no" / "a.parquet")


def test_what_a_spreadsheet_would_compute_is_text_and_numbers_stay_numbers(tmp_path: Path) -> None:
    cells = ["=1", "+1", "-1", "@a", "\t=1", "\r=1", " =1", "a=1", "", -1.5, -2]
    path = write_csv(tmp_path / "new" / "a.csv", [cells[:6], cells[6:]])
    assert path.read_bytes() == b"'=1,'+1,'-1,'@a,'\t=1,\"'\r=1\"\r\n' =1,a=1,,-1.5,-2\r\n"
