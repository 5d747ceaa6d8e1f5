"""Training images in the forms people have them, as float tensors in the model's range [-1, 1]."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from operator import index as as_int
from typing import Any, NoReturn, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

IMAGE_KEYS = ("image", "pixel_values", "images", "img", "video", "audio")
CAPTION_KEYS = ("text", "caption", "prompt", "captions")
LABEL_KEYS = ("class_labels", "class_label", "label", "labels")


# Pixels beyond it are those of another range; resampling overshoots by less.
_FAR = 1.5


class Dataset(Protocol):
    """A map-style dataset: ``len(dataset)`` and ``dataset[i]``."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def read_item(dataset: Dataset | Tensor, position: int, name: str) -> Any:
    """Return an item of a dataset; what reading it raises names it."""
    try:
        return dataset[position]
    except Exception as error:
        raise_named(error, name)


def raise_named(error: Exception, name: str) -> NoReturn:
    """Raise the error of an item so that it names it."""
    if name in str(error):
        raise error
    raise ValueError(f"{name} cannot be read: {type(error).__name__}: {error}") from error


def eight_bits(image: Image.Image, what: str) -> Image.Image:
    """The same picture with 8 bits a channel; Pillow's own conversion cuts off what is above 255."""
    if image.mode == "F":
        raise ValueError(f"{what} has floating-point pixels, whose range is unknown; save it with 8 or 16 bits")
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ValueError(f"{what} must have pixels of 8 or 16 bits, got {values.min()} to {values.max()}")
    if 0 < values.max() <= 0xFF:
        raise ValueError(
            f"{what} has pixels up to {values.max()}, which may be 8 or 16 bits; save it with 8, as mode L"
        )
    return Image.fromarray((values >> 8).astype(np.uint8))


def convert(image: Image.Image, mode: str, what: str) -> Image.Image:
    """The same picture in mode L or RGB, transparency dropped; ``what`` names it in errors."""
    image = eight_bits(image, what)
    try:
        return image.convert(mode)
    except ValueError as error:
        raise ValueError(
            f"{what} has pixels of mode {image.mode}, which Pillow does not convert: {error}; save it in RGB"
        ) from error


def check_dataset(dataset: Any) -> None:
    """Refuse what is no map-style dataset, or an empty one.

    Raises:
        TypeError: If it cannot be indexed by position.
        ValueError: If it is empty.
    """
    if isinstance(dataset, Mapping) or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        parts = (
            f"give one of its parts, {', '.join(map(repr, list(dataset)[:3]))}" if isinstance(dataset, Mapping) else ""
        )
        raise TypeError(
            "dataset must be map-style, with len(dataset) and dataset[i], or a folder of images, got "
            f"{type(dataset).__name__}: {parts or 'a list of its items will do where they fit in memory'}"
        )
    if len(dataset) == 0:
        raise ValueError("dataset must hold at least one image, got an empty one")


def check_range(extremes: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Warn of images that are most likely not in [-1, 1]: none has a pixel below zero, or one is far outside.

    Args:
        extremes: The smallest and the largest pixel of some images.
    """
    lowest, highest = (torch.stack(ends) for ends in zip(*extremes, strict=True))
    if lowest.min() >= 0 and highest.max() > 0:
        warnings.warn(
            f"dataset has pixels from {lowest.min():g} to {highest.max():g}, none below zero; models take [-1, 1], and "
            "floating-point images are not rescaled. Give 2 * image - 1, or uint8 images, unless the model was trained "
            "on this range",
            stacklevel=4,
        )
    elif lowest.min() < -_FAR or highest.max() > _FAR:
        warnings.warn(
            f"dataset has pixels from {lowest.min():g} to {highest.max():g}; models take [-1, 1], and floating-point "
            "images are not rescaled. Give images in that range, unless the model was trained on this one",
            stacklevel=4,
        )


def get_image(dataset: Dataset, index: int) -> Tensor:
    """Return one image of a dataset in the model's form.

    Args:
        dataset: Items are float tensors in [-1, 1], uint8 tensors or arrays, both [C, H, W], PIL images, (image, ...)
            tuples, or dicts with one of the keys ``image``, ``pixel_values``, ``images``, ``img``, ``video``,
            ``audio``. Videos are tensors or arrays [F, C, H, W], or under a key lists of such images; sounds are
            floating point in [-1, 1] or int16, [C, T].
        index: Which item.

    Returns:
        float32, in [-1, 1] for integer and PIL images, unchanged for floating point. [C, H, W], [F, C, H, W] of a
        video, [C, T] of a sound.

    Raises:
        TypeError: If the item is none of these.
        ValueError: As ``image_of``.
    """
    return image_of(dataset[index], f"dataset[{index}]")


def image_of(item: Any, what: str) -> Tensor:
    """Return the image of an item, see ``get_image``.

    Args:
        item: What a dataset gave.
        what: Names the item in errors, such as ``"dataset[7]"``.

    Returns:
        float32. [C, H, W], [F, C, H, W] of a video, [C, T] of a sound.

    Raises:
        TypeError: If the item is none of the forms of ``get_image``.
        ValueError: If a dict has none of the keys, a uint8 image has its channels last, or frames have several sizes.
    """
    if isinstance(item, dict):
        item = item[_key(item, IMAGE_KEYS, what)]
        if isinstance(item, tuple | list) and item:
            return _stacked([image_of(frame, f"{what}, frame {i},") for i, frame in enumerate(item)], what)
    elif isinstance(item, tuple | list) and item:
        item = item[0]
    if isinstance(item, Image.Image):
        item = eight_bits(item, what)
        array = np.asarray(item if item.mode in ("L", "RGB") else convert(item, "RGB", what))
        item = torch.from_numpy(array.copy())
        item = item.unsqueeze(0) if item.dim() == 2 else item.permute(2, 0, 1)
    elif isinstance(item, np.ndarray):
        # A copy, for torch takes neither read-only arrays nor negative strides nor the other order of bytes.
        item = torch.from_numpy(item.astype(item.dtype.newbyteorder("="), order="C", copy=True))
    if not isinstance(item, Tensor):
        raise TypeError(
            f"{what} must be an image (tensor, array, PIL image, or a dict or tuple with one), "
            f"got {type(item).__name__}"
        )
    if item.dtype == torch.uint8:
        if item.dim() == 3 and channels_are_last(item):
            raise ValueError(f"{what} must be [C, H, W], got {list(item.shape)}; give it as permute(2, 0, 1) does")
        if item.dim() == 4 and channels_are_last(item[0]):
            raise ValueError(
                f"{what} must be [F, C, H, W], got {list(item.shape)}; give it as permute(0, 3, 1, 2) does"
            )
        return item.float() / 127.5 - 1
    if item.dtype == torch.int16 and item.dim() == 2:
        return item.float() / 32768
    if not item.is_floating_point():
        raise TypeError(f"{what} must be uint8 or floating point in [-1, 1], got {item.dtype}")
    return item.float()


def _stacked(frames: list[Tensor], what: str) -> Tensor:
    """The video of some frames. [F, C, H, W]"""
    sizes = sorted({tuple(frame.shape) for frame in frames})
    if len(sizes) > 1 or len(sizes[0]) != 3:
        raise ValueError(f"{what} must have frames [C, H, W] of one size, got {', '.join(map(str, sizes[:3]))}")
    return torch.stack(frames)


def channels_are_last(image: Tensor) -> bool:
    """Whether an image looks like [H, W, C]. [*, *, *]"""
    return image.shape[2] in (1, 3) and image.shape[0] not in (1, 3)


def check_finite(image: Tensor, what: str) -> None:
    """Refuse an image with NaN or infinite pixels; ``what`` names it in the error. [C, ...]"""
    if not torch.isfinite(image).all():
        raise ValueError(f"{what} has NaN or infinite pixels; remove the image or repair it")


def captions_of(item: Any, what: str) -> list[str]:
    """Return the captions of an item, one or several.

    Args:
        item: A dict with one of the keys ``text``, ``caption``, ``prompt``, ``captions``, a string or a list of them;
            or a tuple (image, caption or captions, ...).
        what: Names the item in errors.

    Returns:
        At least one caption; empty ones stay.

    Raises:
        TypeError: If it is neither, or a caption is no string.
        ValueError: If a dict has none of the keys, there is no caption, or one cannot be written as UTF-8.
    """
    found = _beside_image(item, CAPTION_KEYS, what, "caption")
    captions = [found] if isinstance(found, str) else list(found) if isinstance(found, list | tuple) else [found]
    wrong = [type(caption).__name__ for caption in captions if not isinstance(caption, str)]
    if wrong:
        raise TypeError(f"{what} must have a string or a list of strings as caption, got {', '.join(wrong[:3])}")
    if not captions:
        raise ValueError(f"{what} must have at least one caption, got an empty list")
    for caption in captions:
        try:
            caption.encode()
        except UnicodeEncodeError:  # half of a pair of code units, which no tokenizer takes
            raise ValueError(f"{what} must have captions of whole characters, got {caption!r:.80}") from None
    return captions


def label_of(item: Any, what: str) -> int:
    """Return the class label of an item.

    Args:
        item: A dict with one of the keys ``class_labels``, ``class_label``, ``label``, ``labels``; or a tuple
            (image, label, ...).
        what: Names the item in errors.

    Returns:
        The label.

    Raises:
        TypeError: If it is neither, or the label is no integer.
        ValueError: If a dict has none of the keys.
    """
    found = _beside_image(item, LABEL_KEYS, what, "class label")
    try:
        return as_int(found)
    except TypeError:
        raise TypeError(f"{what} must have an integer as class label, got {type(found).__name__}") from None


def _beside_image(item: Any, keys: tuple[str, ...], what: str, name: str) -> Any:
    if isinstance(item, dict):
        return item[_key(item, keys, what)]
    if isinstance(item, tuple | list) and len(item) > 1:
        return item[1]
    raise TypeError(f"{what} must be a dict or tuple with an image and a {name}, got {type(item).__name__}")


def _key(item: dict[Any, Any], keys: tuple[str, ...], what: str) -> str:
    """Return the first of some keys that an item has."""
    for key in keys:
        if key in item:
            return key
    raise ValueError(f"{what} must have one of the keys {', '.join(keys)}, got {', '.join(map(str, item))}")
