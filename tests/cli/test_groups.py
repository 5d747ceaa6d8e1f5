"""``journey groups`` writes what ``Scores.groups`` says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from journey.cli.main import main
from journey.report.groups import write_groups_png
from journey.scores.errors import ScoreErrors
from journey.scores.scores import Scores


def save_scores(path: Path, ids: Any) -> Scores:
    generator = torch.Generator().manual_seed(0)
    parts = [torch.rand(*shape, generator=generator) / 9 for shape in ((1, 4), (1, 4), (1, 2, 1), (1, 2, 1))]
    values = torch.rand(2, 1, 4, generator=generator)
    scores = Scores(values, torch.tensor([40]), ids, 0.1, errors=ScoreErrors(*parts))
    scores.save(path)
    return scores


@pytest.mark.parametrize("ids", [["a, b.png", "=c.png", "d", "e"], [3, -1, 7, 8]])
def test_the_command_writes_the_table_the_payments_and_the_picture(
    ids: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = save_scores(tmp_path / "scores.safetensors", ids)
    quoted = [f'"{i}"' for i in ids]
    lines = ["note,group,id", f"x,ann,{quoted[0]}", f'y,"b ""B"" =1",{quoted[1]}', f"z,ann,{quoted[2]}"]
    (tmp_path / "in.csv").write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    arguments = ["groups", "--scores", str(tmp_path / "scores.safetensors"), "--groups", str(tmp_path / "in.csv")]
    arguments += ["--out", str(tmp_path / "out.csv"), "--png", str(tmp_path / "out.png"), "--query", "1"]
    assert main([*arguments, "--pool", "99.99"]) == 0
    written = [Path(line).name for line in capsys.readouterr().out.splitlines()]
    assert written == ["out.png", "out.csv", "out-payments.csv"]
    groups = scores.groups({"ann": [ids[0], ids[2]], 'b "B" =1': [ids[1]]})
    assert (tmp_path / "out.csv").read_bytes() == groups.to_csv(tmp_path / "e").read_bytes()
    assert (tmp_path / "out-payments.csv").read_bytes() == groups.payments("99.99").to_csv(tmp_path / "e").read_bytes()
    assert (tmp_path / "out.png").read_bytes() == write_groups_png(tmp_path / "e", groups, query=1).read_bytes()
    assert main([*arguments, "--pool", "99.99", "--rule", "shapley"]) == 0
    expected = groups.payments("99.99", rule="shapley").to_csv(tmp_path / "e").read_bytes()
    assert (tmp_path / "out-payments.csv").read_bytes() == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,name\n3,a\n", r"groups must be a CSV file with the columns id and group, .*in.csv lacks \['group'\]"),
        ("", r"lacks \['group', 'id'\]"),
        ("id,group\n3,a\n-1,\n", "line 3: an image needs an id and a group"),
        ("id,group\n3\n", "line 2: an image needs an id and a group"),
        ("id,group\nx,a\n", "line 2: the ids of the scores are integers, got 'x'"),
        ("id,group\n5,a\n", r"groups\['a'\] must be of images that have a score, got 5"),
        ("id,group\n3,a\n3,b\n", "got the image 3 in 'a' and in 'b'"),
        ("id,group\n", "groups must have a group or more, got none"),
    ],
)
def test_groups_that_cannot_be_are_explained_and_nothing_is_written(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_scores(tmp_path / "scores.safetensors", [3, -1, 7, 8])
    (tmp_path / "in.csv").write_text(text)
    arguments = ["groups", "--scores", str(tmp_path / "scores.safetensors"), "--groups", str(tmp_path / "in.csv")]
    assert main([*arguments, "--out", str(tmp_path / "out.csv")]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out.csv").exists()


def test_a_pool_and_a_step_that_cannot_be_leave_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_scores(tmp_path / "scores.safetensors", [3, -1, 7, 8])
    (tmp_path / "in.csv").write_text("id,group\n3,a\n")
    arguments = ["groups", "--scores", str(tmp_path / "scores.safetensors"), "--groups", str(tmp_path / "in.csv")]
    arguments += ["--out", str(tmp_path / "out.csv")]
    for more, message in (
        (["--pool", "0"], "pool must be a positive amount"),
        (["--png", str(tmp_path / "a.png"), "--step", "3"], "step must be one of the timesteps [40], got 3"),
        (["--png", str(tmp_path / "a.png"), "--query", "2"], "query must be among 0..1, got 2"),
    ):
        assert main([*arguments, *more]) == 1
        assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", "scores.safetensors"]
