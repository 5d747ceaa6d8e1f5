"""An image file becomes the picture that it shows, or an error that names it."""

from __future__ import annotations

import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from journey.data.folder import ImageFolder

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
PICTURE = Image.fromarray(PIXELS)


def read(path: Path, **options: Any) -> Image.Image:
    """Read a picture through the folder it is alone in; without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return ImageFolder(path.parent, **options)[0]


def same(found: Image.Image, expected: Image.Image) -> bool:
    return found.mode == expected.mode and np.array_equal(np.asarray(found), np.asarray(expected))


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(10))
def test_pictures_are_turned_as_pillow_turns_them(suffix: str, orientation: int, tmp_path: Path) -> None:
    path, exif = tmp_path / f"a.{suffix}", Image.Exif()
    exif[0x0112] = orientation
    PICTURE.save(path, exif=exif)
    with Image.open(path) as opened:
        expected = ImageOps.exif_transpose(opened).convert("RGB")
    assert same(read(path), expected)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_becomes_grey_or_rgb_as_pillow_converts_it(mode: str, channels: int, tmp_path: Path) -> None:
    path = tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr") else "a.png")
    # Pillow 12 cannot read the YCbCr files that it writes without compression.
    PICTURE.convert(mode).save(path, **({"compression": "tiff_lzw"} if path.suffix == ".tif" else {}))
    with Image.open(path) as opened:
        assert opened.mode in (mode, "RGB")  # Pillow before 11 opens YCbCr as RGB
        expected = opened.convert("L" if channels == 1 else "RGB")
    assert same(read(path, channels=channels), expected)


@pytest.mark.parametrize("transparency", [3, bytes(range(256))])
def test_a_palette_with_transparency_keeps_its_colours(transparency: int | bytes, tmp_path: Path) -> None:
    picture = PICTURE.convert("P")
    picture.save(tmp_path / "a.png", transparency=transparency)
    assert same(read(tmp_path / "a.png"), picture.convert("RGB"))


@pytest.mark.parametrize("byte_order", ["<u2", ">u2"])
def test_16_bits_give_their_upper_8_in_either_order(byte_order: str, tmp_path: Path) -> None:
    Image.fromarray((PIXELS[..., 0].astype(np.uint16) * 256 + 77).astype(byte_order)).save(tmp_path / "a.tif")
    assert np.array_equal(np.asarray(read(tmp_path / "a.tif", channels=1)), PIXELS[..., 0])


def test_16_bits_that_hold_8_are_refused_instead_of_black(tmp_path: Path) -> None:
    Image.fromarray(PIXELS[..., 0].astype(np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png has pixels up to 2\d\d, which may be 8 or 16 bits; save it with 8"):
        read(tmp_path / "a.png")


def test_a_mode_that_pillow_does_not_convert_is_named(tmp_path: Path) -> None:
    Image.new("LAB", (4, 4)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"a\.tif has pixels of mode LAB, which Pillow does not convert"):
        read(tmp_path / "a.tif", channels=1)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_of_an_animation_the_first_frame_is_taken(suffix: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), (red, 0, 0)) for red in (10, 250)]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    assert read(tmp_path / f"a.{suffix}").getpixel((4, 4))[0] < 20


DAMAGED = {
    "no EXIF": b"Exif\0\0" + b"garbage" * 9,
    "header cut off": b"Exif\0\0II*\0",
    "tags cut off": b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0",
    "leads nowhere": b"Exif\0\0II*\0\xff\xff\xff\xff",
    "orientation is text": b"Exif\0\0II*\0" + struct.pack("<IHHHI4sI", 8, 1, 0x0112, 2, 1, b"\x06", 0),
    "value is elsewhere": b"Exif\0\0II*\0" + struct.pack("<IHHHIII", 8, 1, 0x0112, 5, 1, 0xFFFF, 0),
}


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_exif_is_named_and_the_picture_taken_as_it_lies(damage: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    PICTURE.save(path, exif=DAMAGED[damage])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = Image.open(path).convert("RGB")
    with pytest.warns(UserWarning, match=r"a\.(jpg|png|webp): ") as told:
        assert same(ImageFolder(tmp_path)[0], expected)
    assert {str(warning.message).startswith(f"{path}: ") for warning in told} == {True}


def test_an_orientation_among_damaged_tags_is_followed(tmp_path: Path) -> None:
    entries = struct.pack("<HHI4s", 0x0112, 3, 1, b"\x06") + struct.pack("<HHII", 0x011A, 5, 1, 0xFFFF)
    PICTURE.save(tmp_path / "a.png", exif=b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4))
    with pytest.warns(UserWarning, match=r"a\.png: Truncated File Read"):
        assert same(ImageFolder(tmp_path)[0], PICTURE.transpose(Image.Transpose.ROTATE_270))


def test_warnings_elsewhere_are_still_given_once(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "a.png")
    code = (
        "import sys, warnings; from journey.data.folder import ImageFolder\n"
        "folder = ImageFolder(sys.argv[1])\n"
        "for _ in range(3): folder[0]; warnings.warn('said before')"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    # Elsewhere, for python -c takes the package of its folder, which may not be built.
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stderr.count("UserWarning: said before") == 1, "reading an image made Python forget what it had said"


def test_threads_name_their_own_files_and_leave_no_trace(tmp_path: Path) -> None:
    before = warnings.showwarning
    for i in range(40):
        PICTURE.resize((200, 200)).save(tmp_path / f"{i:02}.png", exif=DAMAGED["tags cut off"] if i % 2 else b"")
    folder = ImageFolder(tmp_path)
    with pytest.warns(UserWarning, match="Corrupt EXIF") as told, ThreadPoolExecutor(8) as pool:
        list(pool.map(folder.__getitem__, range(len(folder))))
    named = {str(warning.message).partition(": ")[0] for warning in told}
    assert named == {str(path) for path in folder.paths[1::2]}
    assert warnings.showwarning is before


def png_of(width: int, height: int) -> bytes:
    """A black picture of one bit a pixel, in few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width + 7) // 8 + 1) * height)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_decompression_bombs_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    path = tmp_path / "a.png"
    path.write_bytes(png_of(60, 60))
    with pytest.raises(ValueError, match=r"a\.png is too large an image: .*3600 pixels.*; scale it down, or set PIL\."):
        read(path)
    path.write_bytes(png_of(40, 40))
    with pytest.warns(Image.DecompressionBombWarning, match=r"a\.png: Image size \(1600 pixels\)"):
        assert ImageFolder(tmp_path)[0].size == (40, 40)
    path.write_bytes(png_of(1, 100))
    with pytest.raises(ValueError, match=r"a\.png is too long and thin, 1 x 100 pixels: to cover 8 x 8 .* to 8 x 800"):
        read(path, size=(8, 8))


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "tif", "bmp", "ppm", "ico", "jp2", "tga"])
def test_damaged_files_are_named_with_the_cure(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    PICTURE.resize((40, 40)).save(path)
    whole = path.read_bytes()
    for length in (0, 2, 20, 40, len(whole) // 2):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=rf"a\.{suffix} cannot be read as an image: .*; repair or remove it"):
            read(path)


def test_whatever_a_decoder_raises_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PICTURE.save(tmp_path / "a.png")
    for error in (struct.error("cut"), zlib.error("cut"), IndexError("cut"), KeyError("cut"), EOFError("cut")):

        def fail(*_: Any, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
        with pytest.raises(ValueError, match=r"a\.png cannot be read as an image: .*cut.*; repair or remove it"):
            read(tmp_path / "a.png")


def test_a_program_under_the_name_of_an_image_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    with pytest.raises(ValueError, match=r"a\.png cannot be read as an image: cannot identify"):
        read(tmp_path / "a.png")
