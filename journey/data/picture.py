"""One image file as a picture, or an animation as frames: decoded, upright, in grey or RGB, scaled and cropped."""

from __future__ import annotations

import contextlib
import io
import threading
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
import torch
from PIL import Image, ImageSequence

from journey.data.items import IMAGE_KEYS, convert
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
    """Puts the name of what a thread reads before the warnings of Pillow, which do not say whose they are.

    Not by ``catch_warnings``, which makes the whole process forget what it has warned of, here for each image.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread = threading.local()
        self._readers = 0
        self._show = warnings.showwarning

    @contextlib.contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        with self._lock:
            if self._readers == 0:
                self._show, warnings.showwarning = warnings.showwarning, self._show_named
            self._readers += 1
        self._thread.what = what
        try:
            yield
        finally:
            del self._thread.what
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
        what: str | None = getattr(self._thread, "what", None)
        self._show(message if what is None else category(f"{what}: {message}"), category, filename, lineno, file, line)


_naming_warnings = _Naming()


class Form(NamedTuple):
    """What pictures are brought to: a size and grey or RGB.

    The size is a height and width; for videos there are frames before them, for sounds it is samples alone.
    """

    size: tuple[int, ...] | None  # None keeps each picture's own
    channels: int  # 1 or 3

    def read(self, source: Path | bytes, what: str) -> Any:
        """Decode an image file in this form, see ``read_picture`` and ``cover``.

        Args:
            source: The file, or what it holds.
            what: Names it in errors.

        Returns:
            A PIL image; of videos uint8 [F, C, H, W].

        Raises:
            ValueError: As these say, or if an animation has fewer frames than are asked for, or a sound is.
        """
        if self.size is not None and len(self.size) == 1:
            raise ValueError(f"{what} is no sound: give sounds as tensors [C, T] in [-1, 1], in a dataset of your own")
        if self.size is None or len(self.size) == 2:
            return self._cover(read_picture(source, self._mode, what), what)
        frames = [self._cover(frame, what) for frame in read_frames(source, self._mode, what, self.size[0])]
        arrays = [np.asarray(frame) for frame in frames]
        video = torch.from_numpy(np.stack(arrays))
        return video.unsqueeze(1) if video.dim() == 3 else video.permute(0, 3, 1, 2).contiguous()

    def bring(self, item: Any, what: str) -> Any:
        """Bring an item's picture to this form.

        Args:
            item: A PIL image, an encoded one (bytes, or a dict ``{"bytes": ..., "path": ...}`` of the library
                ``datasets``), or a dict with one of these under a key of ``IMAGE_KEYS``. Any other is left as it is.
            what: Names the item in errors.

        Returns:
            The item, with a PIL image in place of its own.

        Raises:
            ValueError: As ``read_picture`` and ``cover``.
        """
        if isinstance(item, Image.Image):
            if self.size is not None and len(self.size) != 2:
                raise ValueError(f"{what} must be a video or a sound as the model takes, got a picture")
            return self._cover(convert(item, self._mode, what), what)
        if isinstance(item, bytes):
            return self.read(item, what)
        if isinstance(item, dict) and set(item) == {"bytes", "path"}:
            return self.read(Path(item["path"] or "") if item["bytes"] is None else item["bytes"], what)
        if isinstance(item, dict) and (key := next((key for key in IMAGE_KEYS if key in item), None)):
            return {**item, key: self.bring(item[key], what)}
        return item

    @property
    def _mode(self) -> str:
        return "L" if self.channels == 1 else "RGB"

    def _cover(self, image: Image.Image, what: str) -> Image.Image:
        return image if self.size is None else cover(image, (self.size[-2], self.size[-1]), what)


def read_frames(source: Path | bytes, mode: str, what: str, count: int) -> list[Image.Image]:
    """Decode the first frames of an animated GIF, WebP, PNG or TIFF.

    Args:
        source: The file, or what it holds.
        mode: ``"L"`` or ``"RGB"``; transparency is dropped.
        what: Names it in errors.
        count: How many frames.

    Returns:
        The frames.

    Raises:
        ValueError: If it has fewer, or as ``read_picture``.
    """
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        with _naming_warnings(what), Image.open(file, formats=image_formats()) as opened:
            found = getattr(opened, "n_frames", 1)
            frames = [frame.copy() for frame in islice(ImageSequence.Iterator(opened), count)]
    except Image.DecompressionBombError as error:
        raise ValueError(f"{what} is too large an image: {error}; scale it down") from error
    except Exception as error:
        raise ValueError(f"{what} cannot be read as an animation: {error!s}; repair or remove it") from error
    if len(frames) < count:
        raise ValueError(
            f"{what} must have at least {count} frames, as the model's videos do, got {found}; remove it, or set "
            "model.video_size, on the command line --video-size"
        )
    return [convert(frame, mode, what) for frame in frames]


def read_picture(source: Path | bytes, mode: str, what: str) -> Image.Image:
    """Decode an image file, the first frame of an animation, turned as its EXIF orientation says.

    Damaged EXIF tells no orientation: then the picture is taken as it lies, as viewers show it, with a warning.

    Args:
        source: The file, or what it holds.
        mode: ``"L"`` or ``"RGB"``; transparency is dropped.
        what: Names it in errors and warnings.

    Returns:
        The picture.

    Raises:
        ValueError: If it cannot be decoded or converted, or has so many pixels that Pillow takes it for an attack.
    """
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        with _naming_warnings(what), Image.open(file, formats=image_formats()) as opened:
            opened.load()
            turn, damage = _turn(opened)
            picture = opened if turn is None else opened.transpose(turn)
    except Image.DecompressionBombError as error:
        cure = "scale it down, or set PIL.Image.MAX_IMAGE_PIXELS if you trust it"
        raise ValueError(f"{what} is too large an image: {error}; {cure}") from error
    # Decoders of damaged files raise whatever their parsing stumbles on: struct.error, zlib.error, IndexError, ...
    except Exception as error:
        raise ValueError(f"{what} cannot be read as an image: {error!s}; repair or remove it") from error
    if damage is not None:
        text = (
            f"{what}: its EXIF is damaged ({damage!r}), so the picture is taken as it lies; repair or remove the EXIF"
        )
        warnings.warn(text, stacklevel=4)  # who asked the folder for an image
    # Pillow warns that a palette's transparency will be lost, which is what we say we do.
    picture.info.pop("transparency", None)
    return convert(picture, mode, what)


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
