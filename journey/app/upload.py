"""What comes from outside: image files, and the masks that a browser's brush paints. Neither is trusted."""

from __future__ import annotations

import base64
import binascii
import io
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from journey.data.picture import Form

_MOST_PIXELS = 50_000_000  # of an image: more than any model takes, and decoded 150 MB
_PREFIX = "data:image/png;base64,"


def read_upload(path: Path, form: Form) -> Image.Image:
    """Decode an uploaded image file and bring it to the form that the model takes.

    Args:
        path: The file.
        form: Size and channels.

    Returns:
        The picture, upright.

    Raises:
        ValueError: If it cannot be read as an image, or has more than 50 million pixels.
    """
    what = "the uploaded image"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # that limit is above ours
        try:
            with Image.open(path) as opened:
                width, height = opened.size
        except Image.DecompressionBombError:
            raise ValueError(f"{what} has more pixels than the {_MOST_PIXELS:,} that are read; scale it down") from None
        except Exception:  # as in read_picture, decoders raise anything
            raise ValueError(f"{what} cannot be read: give a PNG, JPEG or WebP file that is whole") from None
    if width * height > _MOST_PIXELS:
        raise ValueError(
            f"{what} has {width} x {height} pixels, more than the {_MOST_PIXELS:,} that are read; scale it down"
        )
    picture: Image.Image = form.read(path.read_bytes(), what)
    return picture


def read_mask(painted: str, size: tuple[int, int]) -> Tensor:
    """Decode what the brush painted.

    Args:
        painted: A PNG of the image's size as a data URI; its opacity is the weight of each pixel. Empty is nothing.
        size: Height and width of the image.

    Returns:
        Weights in [0, 1], float32. [H, W]

    Raises:
        ValueError: If nothing was painted, or it is no such PNG.
    """
    if not painted:
        raise ValueError("paint a part of the image first")
    if not painted.startswith(_PREFIX):
        raise ValueError(f"the painted region must be a PNG as a data URI, got {painted[:30]!r}")
    try:
        data = base64.b64decode(painted.removeprefix(_PREFIX), validate=True)
        with Image.open(io.BytesIO(data), formats=["PNG"]) as opened:
            found = opened.size[::-1]
            # Not decoded if it is of another size, which may be huge.
            opacity = np.asarray(opened.convert("RGBA"))[..., 3].copy() if found == size else None
    except (binascii.Error, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"the painted region cannot be read: {error}") from None
    if opacity is None:
        raise ValueError(f"the painted region must have the image's size {list(size)}, got {list(found)}")
    mask = torch.from_numpy(opacity).float() / 255
    if not mask.any():
        raise ValueError("paint a part of the image first")
    return mask
