"""Files and masks from outside: what is no image, or too large an image, gets a sentence and is not decoded."""

from __future__ import annotations

import base64
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from app_cases import painted
from PIL import Image

from journey.app.upload import read_mask, read_upload
from journey.data.picture import Form

FORM = Form((8, 8), 1)


def claims(width: int, height: int) -> bytes:
    """A PNG whose header has a size, and no pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(10_000, 6_000), (16_000, 12_500), (60_000, 60_000)])
def test_millions_of_pixels_are_refused_before_they_are_decoded(tmp_path: Path, width: int, height: int) -> None:
    (tmp_path / "huge.png").write_bytes(claims(width, height))
    with pytest.raises(ValueError, match=r"the uploaded image has .*50,000,000 that are read; scale it down"):
        read_upload(tmp_path / "huge.png", FORM)


@pytest.mark.parametrize("data", [b"", b"no image", b"GIF89a", claims(8, 8)])
def test_what_is_no_whole_image_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "broken.png").write_bytes(data)
    with pytest.raises(ValueError, match="the uploaded image cannot be read"):
        read_upload(tmp_path / "broken.png", FORM)


def test_an_image_is_brought_to_the_form_of_the_model(tmp_path: Path) -> None:
    Image.new("RGB", (40, 20), (200, 200, 200)).save(tmp_path / "wide.jpg")
    found = read_upload(tmp_path / "wide.jpg", FORM)
    assert (found.size, found.mode) == ((8, 8), "L")
    assert abs(int(np.asarray(found)[4, 4]) - 200) <= 2  # JPEG rounds


def test_opacity_is_the_weight() -> None:
    mask = np.zeros((4, 6), np.uint8)
    mask[1, 2], mask[3, 5] = 255, 51
    assert np.allclose(read_mask(painted(mask), (4, 6)).numpy(), mask / 255)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "paint a part of the image first"),
        (painted(np.zeros((4, 4), np.uint8)), "paint a part of the image first"),
        (painted(np.ones((4, 5), np.uint8)), r"must have the image's size \[4, 4\], got \[4, 5\]"),
        ("<img src=x onerror=alert(1)>", "must be a PNG as a data URI, got '<img src=x"),
        ("data:image/png;base64,!!", "the painted region cannot be read"),
        ("data:image/png;base64,AAAA", "the painted region cannot be read"),
        ("data:image/png;base64," + base64.b64encode(claims(60_000, 60_000)).decode(), "the painted region cannot"),
        ("data:image/png;base64," + base64.b64encode(claims(5_000, 5_000)).decode(), "must have the image's size"),
    ],
)
def test_what_is_no_mask_of_the_image_is_refused(given: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_mask(given, (4, 4))
