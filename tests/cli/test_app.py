"""``journey app`` opens what its arguments name, and says what is missing."""

from __future__ import annotations

import argparse
import builtins
from pathlib import Path
from typing import Any

import pytest
from diffusers import DDPMPipeline
from models import make_scheduler, make_unet
from PIL import Image

import journey
from journey.app.workbench import Unseen
from journey.cli import app
from journey.cli.main import _parser, main
from journey.data.folder import ImageFolder
from journey.errors import StoreMismatchError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model, images of two captions, and their features."""
    root = tmp_path_factory.mktemp("app")
    DDPMPipeline(make_unet(), make_scheduler()).save_pretrained(root / "model")
    (root / "data").mkdir()
    for i in range(6):
        Image.new("L", (8, 8), 40 * i).save(root / "data" / f"{i}.png")
        (root / "data" / f"{i}.txt").write_text(f"kind {i % 2}")
    dataset = ImageFolder(root / "data", size=(8, 8), channels=1)
    options: dict[str, Any] = {"projector": journey.CountSketch(64), "draws": journey.StratifiedDraws(2)}
    journey.featurize(str(root / "model"), dataset, root / "features", progress=False, **options)
    return root


def parse(folder: Path, *more: str) -> argparse.Namespace:
    given = ["app", "--model", str(folder / "model"), "--features", str(folder / "features")]
    return _parser().parse_args([*given, *more])


def test_groups_are_the_captions_or_those_of_a_file(folder: Path, tmp_path: Path) -> None:
    found = app.load_workbench(parse(folder, "--data", str(folder / "data"), "--num-scored", "5", "--seed", "3"))
    assert {name: sorted(ids) for name, ids in found.groups.items()} == {
        "kind 0": ["0.png", "2.png", "4.png"],
        "kind 1": ["1.png", "3.png", "5.png"],
    }
    assert (found.num_scored, found.seed, found.told) == (5, 3, None)
    table = tmp_path / "groups.csv"
    table.write_text("id,group\n0.png,Ann\n5.png,Ann\n")
    found = app.load_workbench(parse(folder, "--groups", str(table)))
    assert found.groups == {"Ann": ["0.png", "5.png"]}
    assert isinstance(found.dataset, Unseen)
    assert sorted(map(str, found.dataset.ids)) == [f"{i}.png" for i in range(6)]


def test_other_images_than_those_of_the_features_are_refused(folder: Path, tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "0.png")
    with pytest.raises(StoreMismatchError, match="data must be the images that"):
        app.load_workbench(parse(folder, "--data", str(tmp_path)))


def test_without_gradio_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    whole = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "gradio":
            raise ModuleNotFoundError("No module named 'gradio'")
        return whole(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    assert main(["app", "--model", "not looked at", "--features", "not looked at"]) == 1
    assert 'the app needs Gradio: pip install "journey-attribution[app]"' in capsys.readouterr().err
