"""Captions stand in text files beside the images, as trainers write them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
from PIL import Image

from journey.data.folder import ImageFolder
from journey.data.items import captions_of


def make(folder: Path, **captions: str | None) -> Path:
    """Write an image for each name, and its caption unless that is None."""
    for name, caption in captions.items():
        Image.new("RGB", (4, 4)).save(folder / f"{name}.png")
        if caption is not None:
            (folder / f"{name}.txt").write_bytes(caption.encode())
    return folder


def captions(folder: Path) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return [captions_of(item, "dataset") for item in ImageFolder(folder)]


def test_a_text_file_beside_an_image_is_its_caption(tmp_path: Path) -> None:
    make(tmp_path, a="\ufeff  a red apple\n", b="ein Apfel, grün\r\nund rot\u2028 ", c="")
    make(tmp_path, d=None)
    (tmp_path / "d.caption").write_text("a pear")
    (tmp_path / "a.png").rename(tmp_path / "a.b.JPG")
    (tmp_path / "a.txt").rename(tmp_path / "a.b.TXT")
    assert captions(tmp_path) == [["a red apple"], ["ein Apfel, grün\r\nund rot"], [""], ["a pear"]]
    assert ImageFolder(tmp_path).labels[0] == "a red apple"


def test_images_without_a_caption_are_named_unless_none_has_one(tmp_path: Path) -> None:
    make(tmp_path, a="x", b=None, c=None)
    with pytest.raises(
        ValueError, match=r"2 of 3 images in .* have no caption file .*: b\.png, c\.png; write the files"
    ):
        ImageFolder(tmp_path)
    (tmp_path / "a.txt").rename(tmp_path / "notes.txt")
    with pytest.warns(UserWarning, match=r"passed over 1 files .* \(notes\.txt\)"):
        assert isinstance(ImageFolder(tmp_path)[0], Image.Image)


def test_a_text_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    make(tmp_path, a="x")
    (tmp_path / "a.txt").write_bytes("grün".encode("latin-1"))
    with pytest.raises(ValueError, match=r"line 1 of .*a\.txt is not UTF-8 .*; save the file as UTF-8"):
        ImageFolder(tmp_path)


def test_two_text_files_of_one_image_must_agree(tmp_path: Path) -> None:
    make(tmp_path, a="x\n")
    (tmp_path / "a.caption").write_text("x")
    assert captions(tmp_path) == [["x"]]
    (tmp_path / "a.caption").write_text("y")
    with pytest.raises(ValueError, match=r"a\.caption and .*a\.txt tell different captions of .*a\.png; keep one"):
        ImageFolder(tmp_path)


def test_text_files_and_metadata_must_agree_and_add_to_each_other(tmp_path: Path) -> None:
    make(tmp_path, a="x", b="y")
    metadata = tmp_path / "metadata.jsonl"
    metadata.write_text('{"file_name": "a.png", "caption": "x ", "label": 1}\n{"file_name": "b.png", "label": 2}')
    assert captions(tmp_path) == [["x "], ["y"]]
    assert [item["label"] for item in ImageFolder(tmp_path)] == [1, 2]
    for caption in ("z", ["x", "z"]):
        metadata.write_text(json.dumps({"file_name": "a.png", "text": caption}))
        with pytest.raises(ValueError, match=r"a\.txt and the metadata tell different captions of .*a\.png; keep one"):
            ImageFolder(tmp_path)
