"""Folders of a folder are classes where ``datasets`` and torchvision take them for such."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from models import SmallDenoiser, make_scheduler
from PIL import Image

from journey.data.folder import ImageFolder
from journey.data.items import captions_of, get_image, label_of
from journey.features.contents import content_of
from journey.models.conditional import ConditionalDenoiser
from journey.models.denoiser import Denoiser


def make(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), len(name)).save(folder / name)
    return folder


def test_labels_count_the_sorted_names_of_folders(tmp_path: Path) -> None:
    make(tmp_path, "dog/b.png", "cat/c.png", "cat/a.png", "Zebra/z.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folder = ImageFolder(tmp_path)
    assert folder.classes == ["Zebra", "cat", "dog"]
    assert [label_of(item, "dataset") for item in folder] == [0, 1, 1, 2]


@pytest.mark.parametrize(
    "names",
    [("a.png", "cat/b.png", "dog/c.png"), ("cat/a.png",), ("cat/a.png", "dog/x/b.png"), ("train/a.png", "test/b.png")],
)
def test_other_folders_are_no_classes(names: tuple[str, ...], tmp_path: Path) -> None:
    folder = ImageFolder(make(tmp_path, *names))
    assert folder.classes is None
    assert isinstance(folder[0], Image.Image)


def test_metadata_tells_instead_of_folders(tmp_path: Path) -> None:
    make(tmp_path, "cat/a.png", "dog/b.png")
    (tmp_path / "metadata.csv").write_text("file_name,label\ncat/a.png,5\ndog/b.png,4\n")
    folder = ImageFolder(tmp_path)
    assert folder.classes is None
    assert [label_of(item, "dataset") for item in folder] == [5, 4]


def test_captions_in_text_files_leave_the_classes(tmp_path: Path) -> None:
    make(tmp_path, "cat/a.png", "dog/b.png")
    for name in ("cat/a.txt", "dog/b.txt"):
        (tmp_path / name).write_text(name)
    folder = ImageFolder(tmp_path)
    assert [(label_of(item, "x"), captions_of(item, "x")) for item in folder] == [
        (0, ["cat/a.txt"]),
        (1, ["dog/b.txt"]),
    ]


def test_models_that_are_told_nothing_see_the_same_images_and_pages(tmp_path: Path) -> None:
    make(tmp_path, "cat/a.png", "dog/b.png")
    folder = ImageFolder(tmp_path, channels=1)
    bare = [item["image"] for item in folder]
    denoiser = Denoiser(SmallDenoiser(), make_scheduler())
    assert torch.equal(get_image(folder, 1), get_image(bare, 1))
    found, wanted = ([content_of(denoiser, item, "item") for item in items] for items in (folder, bare))
    assert found == wanted
    assert folder.labels == ["cat/a.png", "dog/b.png"]
    with pytest.raises(ValueError, match=r"dataset\[0\] must have one of the keys text, .* got label, image"):
        captions_of(folder[0], "dataset[0]")


def test_class_conditional_models_take_the_labels(tmp_path: Path) -> None:
    make(tmp_path, "cat/a.png", "dog/b.png", "dog/c.png")
    folder = ImageFolder(tmp_path, channels=1)
    denoiser = ConditionalDenoiser(SmallDenoiser(), make_scheduler(), name="class_labels")
    condition, counts = denoiser.encode_conditions(list(folder), ["a", "b", "c"])
    assert condition.tensors["class_labels"].tolist() == [0, 1, 1]
    assert counts == [1, 1, 1]


def test_labels_that_may_be_others_than_the_model_learned_are_told(tmp_path: Path) -> None:
    make(tmp_path, *(f"{label}/a.png" for label in range(11)))
    with pytest.warns(
        UserWarning, match=r"labels count the sorted names of folders, so '10' is class 2; tell labels in"
    ):
        assert ImageFolder(tmp_path).classes == sorted(map(str, range(11)))
    (tmp_path / "cat").mkdir()
    with pytest.warns(UserWarning, match=r"1 folders hold no image and count as no class \(cat\); tell labels in"):
        ImageFolder(tmp_path)
