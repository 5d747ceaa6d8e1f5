"""``journey check`` goes from a saved model and a folder to a page and tables, and continues."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from diffusers import DDPMPipeline
from models import make_images, make_scheduler, make_unet

from journey.cli.main import main
from journey.report.view import to_picture

HOSTILE = "<b>&'.png"


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A model and ten images, two of which are one."""
    folder = tmp_path_factory.mktemp("check")
    DDPMPipeline(make_unet(), make_scheduler()).save_pretrained(folder / "model")
    (folder / "data").mkdir()
    for i, image in enumerate(make_images(9)):
        to_picture(image).save(folder / "data" / f"{i}.png")
    to_picture(make_images(9)[4]).save(folder / "data" / HOSTILE)
    found = ["check", "--model", str(folder / "model"), "--data", str(folder / "data"), "--proj-dim", "256"]
    return [*found, "--quiet", "--out", str(folder / "out")]


def test_a_folder_is_checked_and_the_features_are_kept(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(arguments[-1])
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "Near-duplicates:" in printed
    assert str(out / "check.html") in printed
    page = (out / "check.html").read_text(encoding="utf-8")
    assert HOSTILE not in page
    assert "&lt;b&gt;&amp;&#x27;.png" in page
    told = json.loads((out / "findings.json").read_text())
    assert set(told["images"]["id"]) == {HOSTILE, *(f"{i}.png" for i in range(9))}
    assert (out / "findings.csv").exists()
    assert (out / "command.txt").read_text().startswith("journey check ")

    shards = {path: path.stat().st_mtime_ns for path in (out / "features").glob("rows-*")}
    assert shards
    assert main(arguments) == 0
    assert {path: path.stat().st_mtime_ns for path in (out / "features").glob("rows-*")} == shards
    assert (out / "check.html").read_text(encoding="utf-8") == page


def test_prompts_are_refused_by_a_model_that_reads_none(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--prompts", "a red apple"]) == 1
    assert "prompt" in capsys.readouterr().err
