"""A folder gives the images that ``datasets`` and torchvision would, and tells what it passes over."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest
from PIL import Image

from journey.data.folder import ImageFolder
from journey.data.ids import ids_of
from journey.data.listing import image_suffixes


def save(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (9, 9, 9)).save(path, format="PNG")
    return path


def names(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in ImageFolder(folder).paths]


def test_hidden_files_and_folders_are_passed_over_and_named(tmp_path: Path) -> None:
    for name in ("a.png", "__b.png", "s/c.png", ".d.png", "._a.png", ".git/e.png", "s/.t/f.png", "__MACOSX/._a.png"):
        save(tmp_path / name)
    with pytest.warns(
        UserWarning, match=r"passed over 5 hidden files or folders \(\._a\.png, \.d\.png, \.git, \.\.\.\)"
    ):
        assert names(tmp_path) == ["__b.png", "a.png", "s/c.png"]


@pytest.mark.parametrize("name", [".hidden", "__special", ".hidden/deeper"])
def test_a_hidden_folder_that_is_named_itself_is_read(name: str, tmp_path: Path) -> None:
    save(tmp_path / name / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert names(tmp_path / name) == ["a.png"]


@pytest.mark.parametrize("suffix", [".gif", ".jfif", ".ppm", ".pgm", ".tif", ".JPE", ".Bmp", ".tga", ".jp2", ".apng"])
def test_every_format_that_pillow_decodes_is_an_image(suffix: str, tmp_path: Path) -> None:
    file_format = Image.registered_extensions()[suffix.lower()]
    Image.new("L" if suffix == ".pgm" else "RGB", (4, 4), 200).save(tmp_path / f"a{suffix}", format=file_format)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folder = ImageFolder(tmp_path)
        assert len(folder) == 1
        assert folder[0].size == (4, 4)


def test_suffixes_are_those_that_pillow_decodes_itself() -> None:
    suffixes = image_suffixes()
    assert {".png", ".jpg", ".jpeg", ".webp", ".mpo", ".ico", ".psd"} <= suffixes
    assert (".avif" in suffixes) == ("AVIF" in Image.OPEN), "Pillow reads AVIF since 11.3"
    assert not suffixes & {".pdf", ".mpg", ".h5", ".grib", ".wmf", ".eps", ".ps"}, (
        "Pillow cannot decode these by itself"
    )


def test_what_is_no_image_is_counted_and_named_once(tmp_path: Path) -> None:
    for name in ("b.png", "a.png", "s/c.png"):
        save(tmp_path / name)
    for name in ("notes.txt", "s/clip.mp4", "photo.heic", "noend"):
        (tmp_path / name).write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.warns(UserWarning, match="passed over 5") as told:
        assert names(tmp_path) == ["a.png", "b.png", "s/c.png"]
    assert len(told) == 1
    assert (
        f"dataset folder {tmp_path}: passed over 5 files that are no images Pillow reads "
        "(noend, notes.txt, photo.heic, ...)" == str(told[0].message)
    )
    assert told[0].filename == __file__


def test_a_folder_of_other_things_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(b"x")
    save(tmp_path / ".cache/b.png")
    with pytest.raises(
        ValueError, match=r"holds no image \(.*; passed over 1 files .* \(a\.heic\), 1 hidden .*\.cache"
    ):
        ImageFolder(tmp_path)


def test_linked_files_and_folders_are_followed(tmp_path: Path) -> None:
    elsewhere = save(tmp_path / "elsewhere/x/z").parent
    save(elsewhere / "y.png")
    data = tmp_path / "data"
    save(data / "a.png")
    (data / "k.png").symlink_to(elsewhere / "z")
    (data / "linked").symlink_to(elsewhere, target_is_directory=True)
    with pytest.warns(UserWarning, match=r"passed over 1 files .* \(linked/z\)"):
        assert names(data) == ["a.png", "k.png", "linked/y.png"]
    (tmp_path / "root").symlink_to(data, target_is_directory=True)
    with pytest.warns(UserWarning, match="linked/z"):
        assert names(tmp_path / "root") == ["a.png", "k.png", "linked/y.png"]


def test_links_that_lead_back_end_and_are_named(tmp_path: Path) -> None:
    data, other = tmp_path / "data", tmp_path / "other"
    for path in (data / "a.png", data / "s/b.png", other / "c.png"):
        save(path)
    (data / "s/up").symlink_to(data, target_is_directory=True)
    (data / "other").symlink_to(other, target_is_directory=True)
    (other / "back").symlink_to(data / "s", target_is_directory=True)
    with pytest.warns(UserWarning, match=r"2 linked folders that lead back .* \(other/back/up, s/up\)"):
        assert names(data) == ["a.png", "other/back/b.png", "other/c.png", "s/b.png"]


@pytest.mark.parametrize("target", ["absent", "a.png"])
def test_a_link_that_leads_nowhere_is_an_image_that_cannot_be_read(target: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / target)
    with pytest.raises(ValueError, match=r"a\.png cannot be read as an image: .*; repair or remove it"):
        ImageFolder(tmp_path)[0]


def test_ids_are_the_paths_in_their_order_folder_by_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a-b.png", "a/z.png", "a.png", "B.png", "é.png"):
        save(tmp_path / name)
    assert names(tmp_path) == ["B.png", "a/z.png", "a-b.png", "a.png", "é.png"]
    monkeypatch.chdir(tmp_path)
    assert ids_of(ImageFolder(".")) == names(tmp_path)
    assert ids_of(ImageFolder(tmp_path)) == names(tmp_path)


def test_a_name_that_is_not_utf8_can_be_written_on_a_page(tmp_path: Path) -> None:
    save(Path(os.fsdecode(os.fsencode(tmp_path) + b"/gr\xfcn.png")))
    folder = ImageFolder(tmp_path)
    assert folder.labels == ["gr\ufffdn.png"]
    with pytest.raises(ValueError, match=r"1 of 1 images in .* not UTF-8, such as b'gr\\xfcn\.png'.*rename"):
        ids_of(folder)
