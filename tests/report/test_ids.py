"""Training images are found by their ids, whatever their order and kind, and shown by them."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from report_cases import HOSTILE, Case, make_case

from journey.report.csv import write_csv
from journey.report.gif import write_gif
from journey.report.page import write_report
from journey.report.png import write_png
from journey.report.run import Run
from journey.scores.scores import Scores
from journey.scores.top import TopCollector, TopScores


class Named:
    """A dataset that tells its ids."""

    def __init__(self, images: Any, ids: Any) -> None:
        self.images, self.ids = images, ids

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.images[index]


def renamed(case: Case, kind: str) -> tuple[Scores, Named]:
    """The same scores and images under other ids, the columns in the same order."""
    count = len(case.dataset)
    # In the order of the positions, so that equal ranks and sorted lists stay as they are.
    ids: Any = (
        [1000 + 7 * i for i in range(count)] if kind == "integers" else [f"dir/{i:03d}{HOSTILE}" for i in range(count)]
    )
    return replace(case.scores, train_ids=[ids[i] for i in case.scores.train_ids]), Named(case.dataset, ids)


def payload(path: Path) -> Any:
    found = re.search(
        r'<script[^>]*type="application/json"[^>]*>(.*?)</script>', path.read_text(encoding="utf-8"), re.DOTALL
    )
    assert found is not None
    return json.loads(found[1])


@pytest.mark.parametrize("kind", ["integers", "strings"])
def test_the_page_shows_the_images_of_the_ids(kind: str, tmp_path: Path) -> None:
    case = make_case()
    labels = [f"label {i}" for i in range(len(case.dataset))]
    scores, dataset = renamed(case, kind)
    first = payload(write_report(tmp_path / "a", case.trajectory, case.scores, case.dataset, labels=labels))
    second = payload(write_report(tmp_path / "b", case.trajectory, scores, dataset, labels=labels))
    names = {str(old): dataset.ids[old] for old in case.scores.train_ids}
    assert {str(names[old]): entry for old, entry in first["training"].items()} == second["training"]
    assert first["sheets"] == second["sheets"]
    for before, after in zip(first["queries"], second["queries"], strict=True):
        assert [names[str(i)] for i in before["pins"]] == after["pins"]
        for side in ("pro", "opp"):
            for old, new in zip(before["scopes"][0][side], after["scopes"][0][side], strict=True):
                assert [[names[str(i)], *rest] for i, *rest in old] == new
    assert HOSTILE not in (tmp_path / "b").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["integers", "strings"])
def test_a_run_with_ids_is_the_same_after_loading(kind: str, tmp_path: Path) -> None:
    case = make_case(num_train=40)
    scores, dataset = renamed(case, kind)
    run = Run(case.trajectory, scores, dataset, labels=[f"label {i}" for i in range(len(dataset))])
    run.save(tmp_path / "run", top=3)
    loaded = Run.load(tmp_path / "run")
    assert loaded.scores.train_ids == scores.train_ids
    for name in ("write_report", "write_png", "write_gif", "write_csv"):
        first = getattr(run, name)(tmp_path / "first", top=3).read_bytes()
        assert getattr(loaded, name)(tmp_path / "second", top=3).read_bytes() == first, name
    loaded.save(tmp_path / "again", top=3)
    assert (tmp_path / "again" / "training.safetensors").read_bytes() == (
        tmp_path / "run" / "training.safetensors"
    ).read_bytes()


def test_the_table_has_ids_that_no_spreadsheet_computes_beside_the_captions_of_their_images(tmp_path: Path) -> None:
    case = make_case()
    ids = [f"=cmd{i}" for i in range(len(case.dataset))]
    scores = replace(case.scores, train_ids=[ids[i] for i in case.scores.train_ids])
    labels = [f"label {i}" for i in range(len(ids))]
    run = Run(case.trajectory, scores, Named(case.dataset, ids), labels=labels)
    for path in (
        run.write_csv(tmp_path / "run.csv"),
        write_csv(tmp_path / "own.csv", case.trajectory, scores, labels=labels, ids=ids),
    ):
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert rows
        assert all(row["train_id"] == f"'=cmd{row['caption'].removeprefix('label ')}" for row in rows)
    assert write_csv(tmp_path / "none.csv", case.trajectory, scores).read_text().count("'=cmd") == len(rows)
    with pytest.raises(
        ValueError, match="ids must have the place in the dataset of every training image, got none for"
    ):
        write_csv(tmp_path / "no.csv", case.trajectory, scores, labels=labels)


def csv_of(path: Path, trajectory: Any, scores: Any, _: Any) -> Path:
    return write_csv(path, trajectory, scores)


WRITERS = pytest.mark.parametrize("write", [write_report, write_png, write_gif])


@WRITERS
def test_positions_find_the_images_of_a_dataset_of_strings(write: Any, tmp_path: Path) -> None:
    """Published methods name images by their positions."""
    case = make_case()
    _, dataset = renamed(case, "strings")
    first = write(tmp_path / "a", case.trajectory, case.scores, case.dataset)
    assert write(tmp_path / "b", case.trajectory, case.scores, dataset).read_bytes() == first.read_bytes()


@WRITERS
def test_an_id_that_the_dataset_lacks_is_refused(write: Any, tmp_path: Path) -> None:
    case = make_case()
    scores, dataset = renamed(case, "strings")
    lacking = [i for i in dataset.ids if i != scores.train_ids[0]] + ["other"]
    for wrong in (case.dataset, Named(case.dataset, lacking)):
        with pytest.raises(ValueError, match=r"scores\.train_ids must be ids of dataset, which has 17 images, got"):
            write(tmp_path / "out", case.trajectory, scores, wrong)
    shifted = Named(case.dataset, [i + 100 for i in range(len(case.dataset))])
    with pytest.raises(ValueError, match=r"scores\.train_ids must be ids of dataset, which has 17 images, got"):
        write(tmp_path / "out", case.trajectory, case.scores, shifted)


@pytest.mark.parametrize("write", [write_report, write_png, write_gif, csv_of])
def test_the_strongest_scores_alone_cannot_be_shown_and_say_so(write: Any, tmp_path: Path) -> None:
    case = make_case()
    scores = case.scores
    top = TopCollector(3).add(scores.train_ids, scores.values).top()
    kept = TopScores(*top, k=3, num_train=12, timesteps=scores.timesteps, damping=0.1)
    with pytest.raises(
        TypeError, match="scores must be of all training images, whose curves are shown: score without top="
    ):
        write(tmp_path / "out", case.trajectory, kept, case.dataset)
