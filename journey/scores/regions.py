"""Regions of generated images: a box, a mask or a function, as soft masks in the space where the model works."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from journey.data.numbers import as_tensor

Box: TypeAlias = tuple[int, int, int, int]
Region: TypeAlias = Box | Tensor | np.ndarray | Image.Image | str | os.PathLike[str] | Callable[[Tensor], Any]


def pixel_masks(region: Region | list[Region], images: Tensor) -> Tensor:
    """Return the mask of each image.

    Args:
        region: For all images, or a list with one for each: a box ``(top, left, bottom, right)`` in pixels, bottom and
            right excluded; a mask of the images' size, as a tensor or array [H, W] with values in [0, 1] or uint8 in
            [0, 255], as a PIL image or as the path of one; or a function that is given the image [C, H, W] in [-1, 1]
            and returns such a mask. Of a video the region is the same in every frame, and a function is given [F, C,
            H, W].
        images: [num_images, C, H, W] or [num_images, F, C, H, W]

    Returns:
        Weights in [0, 1], float32. [num_images, H, W]

    Raises:
        ValueError: If these are sounds, a box is empty or leaves the image, a mask has another size or values out of
            range or is zero everywhere, or a list has another length than the images.
        TypeError: If a region is none of these.
    """
    if images.dim() == 3:
        raise ValueError("region must be None for sounds, which have no height and width")
    if isinstance(region, list):
        if len(region) != len(images):
            raise ValueError(
                f"region must be one for all, or a list of one for each of {len(images)} images, "
                f"got a list of {len(region)}"
            )
        return torch.stack([_mask(one, image) for one, image in zip(region, images, strict=True)])
    if callable(region):
        return torch.stack([_mask(region, image) for image in images])
    return _mask(region, images[0]).expand(len(images), -1, -1)


def resample_masks(masks: Tensor, size: Sequence[int]) -> Tensor:
    """Resample masks to another size by area: each new pixel is the average of what it covers.

    As when a mask in pixels is to restrict latents. Averages of a partition of the image remain a partition, and the
    mean of a mask is kept, for any two sizes.

    Args:
        masks: [num_masks, H, W]
        size: New height and width.

    Returns:
        float32. [num_masks, *size]
    """
    height, width = (_overlaps(old, new) for old, new in zip(masks.shape[1:], size, strict=True))
    return (height @ masks.double() @ width.T).float().clamp(0, 1)


def _overlaps(old: int, new: int) -> Tensor:
    """The share of each new pixel of a line that each old pixel covers, float64, rows sum to one. [new, old]"""
    # In units of 1 / (old * new) of the line all edges are integers, so that shares are exact.
    old_edges = torch.arange(old + 1, dtype=torch.int64, device="cpu") * new
    new_edges = torch.arange(new + 1, dtype=torch.int64, device="cpu") * old
    begin = torch.maximum(old_edges[:-1], new_edges[:-1, None])
    end = torch.minimum(old_edges[1:], new_edges[1:, None])
    return (end - begin).clamp(min=0).double() / old


def _mask(region: Region, image: Tensor) -> Tensor:
    """One region as weights on the pixels of an image, float32. [H, W]"""
    size = tuple(image.shape[-2:])
    if isinstance(region, tuple):
        return _box(region, size)
    what = "region"
    if isinstance(region, str | os.PathLike):
        with Image.open(region) as opened:
            values: Any = np.asarray(opened.convert("L"))
        what = f"region {os.fspath(region)}"
    elif isinstance(region, Image.Image):
        values = np.asarray(region.convert("L"))
    elif isinstance(region, Tensor | np.ndarray):
        values = region
    elif callable(region):
        values = region(image)
        what = "region's mask"
    else:
        raise TypeError(
            "region must be a box (top, left, bottom, right), a mask image or its path, or a function from an image to "
            f"a mask, got {type(region).__name__}"
        )
    mask = as_tensor(values).detach().cpu()
    # uint8 is an image's 0...255, unless it only has the zeros and ones of a mask.
    mask = mask.float() / 255 if mask.dtype == torch.uint8 and bool((mask > 1).any()) else mask.float()
    if tuple(mask.shape) != size:
        raise ValueError(f"{what} must have the size of the image {list(size)}, got {list(mask.shape)}")
    if not bool(((mask >= 0) & (mask <= 1)).all()):
        raise ValueError(f"{what} must have values in [0, 1] (or uint8), got {mask.min():g} to {mask.max():g}")
    if not mask.any():
        raise ValueError(f"{what} must leave a part of the image, got zero everywhere")
    return mask


def _box(box: tuple[int, ...], size: tuple[int, ...]) -> Tensor:
    if len(box) != 4 or not (0 <= box[0] < box[2] <= size[0] and 0 <= box[1] < box[3] <= size[1]):
        raise ValueError(
            f"region must be a box (top, left, bottom, right) that is not empty, within {size[0]} x {size[1]} pixels, "
            f"got {box!r}"
        )
    mask = torch.zeros(size, dtype=torch.float32, device="cpu")
    mask[box[0] : box[2], box[1] : box[3]] = 1
    return mask
