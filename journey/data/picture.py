"""One image file as a picture: decoded, upright, in grey or RGB, scaled and cropped."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from PIL import Image

from journey.data.items import convert
from journey.data.listing import image_formats

_ORIENTATION = 0x0112  # the EXIF tag, and what turns its values upright
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class _Naming:
    """Puts the file that a thread reads before the warnings of Pillow, which do not say whose they are.

    Not by ``catch_warnings``, which makes the whole process forget what it has warned of, here for each image.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread = threading.local()
        self._readers = 0
        self._show = warnings.showwarning

    @contextlib.contextmanager
    def __call__(self, path: Path) -> Iterator[None]:
        with self._lock:
            if self._readers == 0:
                self._show, warnings.showwarning = warnings.showwarning, self._show_named
            self._readers += 1
        self._thread.path = path
        try:
            yield
        finally:
            del self._thread.path
            with self._lock:
                self._readers -= 1
                if self._readers == 0:
                    warnings.showwarning = self._show

    def _show_named(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        path: Path | None = getattr(self._thread, "path", None)
        self._show(message if path is None else category(f"{path}: {message}"), category, filename, lineno, file, line)


_naming_warnings = _Naming()


def read_picture(path: Path, mode: str) -> Image.Image:
    """Decode an image file, the first frame of an animation, turned as its EXIF orientation says.

    Damaged EXIF tells no orientation: then the picture is taken as it lies, as viewers show it, with a warning.

    Args:
        path: The file.
        mode: ``"L"`` or ``"RGB"``; transparency is dropped.

    Returns:
        The picture.

    Raises:
        ValueError: If it cannot be decoded or converted, or has so many pixels that Pillow takes it for an attack.
    """
    try:
        with _naming_warnings(path), Image.open(path, formats=image_formats()) as opened:
            opened.load()
            turn, damage = _turn(opened)
            picture = opened if turn is None else opened.transpose(turn)
    except Image.DecompressionBombError as error:
        cure = "scale it down, or set PIL.Image.MAX_IMAGE_PIXELS if you trust it"
        raise ValueError(f"{path} is too large an image: {error}; {cure}") from error
    # Decoders of damaged files raise whatever their parsing stumbles on: struct.error, zlib.error, IndexError, ...
    except Exception as error:
        raise ValueError(f"{path} cannot be read as an image: {error!s}; repair or remove it") from error
    if damage is not None:
        text = (
            f"{path}: its EXIF is damaged ({damage!r}), so the picture is taken as it lies; repair or remove the EXIF"
        )
        warnings.warn(text, stacklevel=4)  # who asked the folder for an image
    # Pillow warns that a palette's transparency will be lost, which is what we say we do.
    picture.info.pop("transparency", None)
    return convert(picture, mode, str(path))


def _turn(opened: Image.Image) -> tuple[Image.Transpose | None, Exception | None]:
    """What turns a picture upright, or why that is not known."""
    try:
        exif = opened.getexif()
        if not exif and opened.info.get("exif"):
            Image.Exif().load(opened.info["exif"])  # raises what Pillow caught when it opened a JPEG
        value = exif.get(_ORIENTATION, 1)
        if value not in _UPRIGHT and not isinstance(value, int):
            raise TypeError(f"orientation {value!r}")
        return _UPRIGHT.get(value), None
    except Exception as error:
        return None, error


def cover(image: Image.Image, size: tuple[int, int], what: str) -> Image.Image:
    """Scale an image to cover a size, bilinearly, and crop it in the centre.

    Args:
        image: The image.
        size: Height and width.
        what: Names the image in errors.

    Returns:
        An image of that size.

    Raises:
        ValueError: If it is so long and thin that scaling would take as much memory as Pillow refuses to decode.
    """
    height, width = size
    scale = max(height / image.height, width / image.width)
    scaled = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and scaled[0] * scaled[1] > max(2 * limit, image.width * image.height):
        raise ValueError(
            f"{what} is too long and thin, {image.width} x {image.height} pixels: to cover {width} x {height} it would "
            f"be scaled to {scaled[0]} x {scaled[1]}; crop or remove it"
        )
    image = image.resize(scaled, Image.Resampling.BILINEAR)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
