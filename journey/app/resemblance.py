"""A feature that needs no classifier: an image, or a part of it, already looks as it does in the end."""

from __future__ import annotations

import torch
from torch import Tensor

from journey.data.items import Dataset, get_image

_NUM_OTHERS = 64


class Resemblance:
    """Whether images look like one image: nearer to it than half of what lies between it and other images.

    ``|image - final|^2 <= 1/2 median_i |training image i - final|^2``, both in the region

    Args:
        final: The image, in [-1, 1]. [C, H, W]
        dataset: Training images, of which up to 64 are taken, evenly spread.
        mask: Weight of each pixel; None is one everywhere. [H, W]
    """

    def __init__(self, final: Tensor, dataset: Dataset, mask: Tensor | None = None) -> None:
        self._final = final
        self._mask = torch.ones_like(final[0]) if mask is None else mask
        step = max(1, len(dataset) // _NUM_OTHERS)
        others = torch.stack([get_image(dataset, i) for i in range(0, len(dataset), step)[:_NUM_OTHERS]])
        self._limit = self._distances(others).median() / 2

    def __call__(self, images: Tensor) -> Tensor:
        """Return whether each of some images looks like it, bool. [num_images, C, H, W] -> [num_images]"""
        return self._distances(images) <= self._limit

    def _distances(self, images: Tensor) -> Tensor:
        return ((images - self._final).square() * self._mask).flatten(1).sum(1)
