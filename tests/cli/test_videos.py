"""The commands take a model of videos from a folder of animations to a page."""

from __future__ import annotations

from pathlib import Path

import pytest
from flow_families import make_quiet
from PIL import Image
from video_families import VIDEOS

from journey.cli.main import main

FEW = ["--num-inference-steps", "2", "--quiet"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model")
    make_quiet(VIDEOS["LTX"]).save_pretrained(path)
    return str(path)


def test_a_folder_of_animations_goes_to_a_page(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "clips").mkdir()
    for name in ("a", "b"):
        frames = [Image.new("RGB", (10, 8), (ord(name), 30 * i, 0)) for i in range(6)]
        frames[0].save(tmp_path / "clips" / f"{name}.gif", save_all=True, append_images=frames[1:])
        (tmp_path / "clips" / f"{name}.txt").write_text("a red apple")
    of_model = ["--model", model, "--video-size", "5", "8", "8", "--select", "*attn1.to_q*"]
    data, out = ["--data", str(tmp_path / "clips")], str(tmp_path / "features")
    measured = ["--num-draws", "2", "--proj-dim", "64", "--quiet"]
    assert main(["featurize", *of_model, *data, "--out", out, *measured]) == 0
    generated = tmp_path / "generated"
    assert main(["record", *of_model[:-2], "--prompt", "two", "--out", str(generated), *FEW]) == 0
    with Image.open(generated / "video-0.gif") as video:
        assert (video.n_frames, video.size) == (5, (8, 8))
    scored = ["--features", out, "--trajectory", str(generated), "--out", str(tmp_path / "run"), "--quiet"]
    assert main(["score", *of_model, *data, *scored]) == 0
    assert "two" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert main(["report", "--run", str(tmp_path / "run"), "--png", "--gif"]) == 0
    capsys.readouterr()
    assert main(["record", "--model", model, "--prompt", "two", "--size", "4", "8", "8", "--out", str(generated)]) != 0
    assert "size must have 1, 3, 5, ... frames, as the model takes, got 4" in capsys.readouterr().err
