"""A run folder shows the same without model and data."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from report_cases import HOSTILE, Case, make_case, make_region, make_transition
from safetensors import safe_open

from journey.cli.main import main
from journey.files.tensors import write_tensors
from journey.report.run import Run
from journey.scores.scores import Scores


@pytest.fixture
def case() -> Case:
    return make_case(num_train=60)


@pytest.fixture
def run(case: Case) -> Run:
    return Run(
        case.trajectory,
        case.scores,
        case.dataset,
        labels=[f"label {i} {HOSTILE}" for i in range(len(case.dataset))],
        query_captions=["first", "second"],
        regions={"corner": make_region(case, (0, 0, 4, 4))},
        transitions={(1, "is round"): make_transition()},
        groups={f"Ann {HOSTILE}": case.scores.train_ids[:4]},
        notes=["a note"],
    )


def test_a_loaded_run_writes_the_same_as_the_run_that_was_saved(run: Run, tmp_path: Path) -> None:
    run.save(tmp_path / "run", top=4)
    loaded = Run.load(tmp_path / "run")
    for name, top in (("write_report", 4), ("write_png", 3), ("write_gif", 4), ("write_csv", 2)):
        first = getattr(run, name)(tmp_path / "first", top=top).read_bytes()
        assert getattr(loaded, name)(tmp_path / "second", top=top).read_bytes() == first, name


def test_a_run_keeps_the_ranked_training_images_alone_and_says_so(run: Run, tmp_path: Path) -> None:
    run.save(tmp_path, top=1)
    loaded = Run.load(tmp_path)
    assert loaded.labels is not None
    assert len(loaded.dataset) == 65
    # At most two of each of 2 queries, 3 steps and 2 scopes, and two of the transition.
    assert 0 < len(loaded.labels) <= 26
    with pytest.raises(ValueError, match="top must be at most 1, the ranks that were kept with the run, got 12"):
        loaded.write_report(tmp_path / "report.html")


def test_the_report_command_writes_all_four_files(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run.save(tmp_path)
    assert main(["report", "--run", str(tmp_path), "--png", "--gif", "--csv", "--query", "1", "--top", "3"]) == 0
    written = [Path(line).name for line in capsys.readouterr().out.splitlines()]
    assert written == ["report.html", "report.png", "report.gif", "report.csv"]
    assert (tmp_path / "report.html").read_bytes() == run.write_report(tmp_path / "again", top=3).read_bytes()
    assert (tmp_path / "report.gif").read_bytes() == run.write_gif(tmp_path / "again", query=1, top=3).read_bytes()


def test_groups_of_a_file_are_shown_in_place_of_those_of_the_run(run: Run, case: Case, tmp_path: Path) -> None:
    run.save(tmp_path / "run")
    ids = case.scores.train_ids[:3]
    (tmp_path / "groups.csv").write_text("id,group\n" + "".join(f"{i},Ben\n" for i in ids))
    assert main(["report", "--run", str(tmp_path / "run"), "--groups", str(tmp_path / "groups.csv")]) == 0
    expected = replace(run, groups={"Ben": ids}).write_report(tmp_path / "expected")
    assert (tmp_path / "run" / "report.html").read_bytes() == expected.read_bytes()


def test_another_run_of_the_same_images_becomes_a_region(run: Run, case: Case, tmp_path: Path) -> None:
    part = make_region(case, (4, 4, 8, 8))
    replace(run, regions={}).save(tmp_path / "whole")
    Run(case.trajectory, part, case.dataset, labels=run.labels).save(tmp_path / "part")
    assert main(["report", "--run", str(tmp_path / "whole"), "--region", f"other={tmp_path / 'part'}"]) == 0
    expected = replace(run, regions={"other": part}).write_report(tmp_path / "expected")
    assert (tmp_path / "whole" / "report.html").read_bytes() == expected.read_bytes()


@pytest.mark.parametrize(
    ("region", "message"),
    [("name", "region must be NAME=RUN, got 'name'"), ("name={other}", "must be a run of the same generated images")],
)
def test_a_region_that_does_not_belong_is_explained(
    region: str, message: str, run: Run, case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run.save(tmp_path / "run")
    moved = replace(case.trajectory, images=-case.trajectory.images)
    Run(moved, make_region(case, (0, 0, 4, 4)), case.dataset).save(tmp_path / "other")
    assert main(["report", "--run", str(tmp_path / "run"), "--region", region.format(other=tmp_path / "other")]) == 1
    assert message in capsys.readouterr().err


def test_folders_that_hold_no_run_are_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is no run: it has no run\.json"):
        Run.load(tmp_path)
    run.save(tmp_path)
    described = json.loads((tmp_path / "run.json").read_text())
    described["regions"][0]["file"] = "../scores.safetensors"
    (tmp_path / "run.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match="must name files of the same folder"):
        Run.load(tmp_path)


def keys_of(run: dict[str, Any]) -> list[tuple[str, ...]]:
    """What may be missing of a run's JSON: a key, or one of its first region or transition."""
    inner = [(part, key) for part in ("regions", "transitions") for key in run[part][0]]
    return [(key,) for key in run if key not in ("title", "credit", "groups")] + inner


def test_a_run_that_lacks_anything_names_it(run: Run, tmp_path: Path) -> None:
    run.save(tmp_path)
    path = tmp_path / "run.json"
    whole = path.read_text()
    keys = keys_of(json.loads(whole))
    assert len(keys) == 12
    for key in keys:
        described = json.loads(whole)
        del (described if len(key) == 1 else described[key[0]][0])[key[-1]]
        path.write_text(json.dumps(described))
        with pytest.raises(ValueError, match=rf"run\.json is damaged or of another version: it lacks {key[-1]}"):
            Run.load(tmp_path)
    path.write_text(json.dumps({**json.loads(whole), "top": "8"}))
    with pytest.raises(ValueError, match=r"run\.json is damaged: top cannot be '8'"):
        Run.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("trajectory", "x_t"),
        ("trajectory", "settings"),
        ("scores", "damping"),
        ("training", "images.0"),
        ("transition-0", "bootstrap"),
    ],
)
def test_a_file_of_a_run_that_lacks_a_tensor_names_it(name: str, key: str, run: Run, tmp_path: Path) -> None:
    run.save(tmp_path)
    path = tmp_path / f"{name}.safetensors"
    with safe_open(path, "pt") as file:
        kind = json.loads(file.metadata()["saved"])["kind"]
        tensors = {k: file.get_tensor(k) for k in file.keys() if k != key}  # noqa: SIM118
    write_tensors(path, kind, tensors)
    with pytest.raises(ValueError, match=rf"{name}\.safetensors is damaged.* lacks {key}"):
        Run.load(tmp_path)


def test_a_run_that_was_written_in_part_is_none(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run.save(tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(Scores, "save", full)
    with pytest.raises(OSError, match="no space"):
        run.save(tmp_path)
    with pytest.raises(ValueError, match=r"is no run: it has no run\.json"):
        Run.load(tmp_path)


def test_training_images_of_different_shapes_are_kept(case: Case, tmp_path: Path) -> None:
    dataset = [torch.zeros(1, 8, 4 + i % 3) for i in range(65)]
    run = Run(case.trajectory, case.scores, dataset)
    run.save(tmp_path)
    assert Run.load(tmp_path).write_png(tmp_path / "a").read_bytes() == run.write_png(tmp_path / "b").read_bytes()
