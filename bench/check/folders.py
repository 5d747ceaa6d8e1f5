"""Seeded folders of 40 emoji with three planted faults each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from journey.data.items import Dataset
from journey.demo.digits import load_digits_dataset
from journey.demo.emoji import EmojiDataset, load_emoji_dataset

NUM_IMAGES = 40
NUM_HELD_OUT = 40
SIZE = 16
COPIES = ("exact", "shifted", "recoloured", "cropped", "repainted")
OFF_TOPIC = ("noise", "digit", "torn", "photograph")
# A style, as LoRAs teach one: every channel of ink is a mixture, on pale blue paper.
_MIXTURE = ((0.25, 0.15, 0.6), (0.55, 0.3, 0.15), (0.2, 0.6, 0.2))
_PAPER = (0.8, 0.9, 1.0)
UNKNOWN = "Travel & Places"  # a category that the base does not learn


@dataclass(frozen=True)
class Planted:
    """A folder of training images.

    Attributes:
        seed: Names it.
        images: In [-1, 1]. [NUM_IMAGES, 3, SIZE, SIZE]
        captions: As they stand in the folder. [NUM_IMAGES]
        duplicate: An image and its copy.
        copy: How the copy was altered, one of ``COPIES``.
        swapped: Two images that have each other's captions.
        bad: The image that does not belong.
        off_topic: What stands in its place, one of ``OFF_TOPIC``.
        held_out: Images of the same kind that are not in the folder. [NUM_HELD_OUT, 3, SIZE, SIZE]
        held_out_captions: Theirs.
    """

    seed: int
    images: Tensor
    captions: tuple[str, ...]
    duplicate: tuple[int, int]
    copy: str
    swapped: tuple[int, int]
    bad: int
    off_topic: str
    held_out: Tensor
    held_out_captions: tuple[str, ...]

    @property
    def dataset(self) -> Dataset:
        """The folder as ``journey.featurize`` takes it."""
        return [{"image": image, "text": text} for image, text in zip(self.images, self.captions, strict=True)]


def plant(seed: int, *, known: bool = True) -> Planted:
    """Make a folder.

    Args:
        seed: Names images, faults and alterations.
        known: Whether the base knows the things, here in a new style; else they are of a category that it never saw.

    Returns:
        The folder.
    """
    draw = np.random.default_rng([seed, int(known)])
    data = load_emoji_dataset(SIZE) if known else load_emoji_dataset(SIZE, [UNKNOWN])
    order = draw.permutation(len(data))
    pictures = styled(data.images) if known else data.images
    train, held_out = order[: NUM_IMAGES - 1], order[NUM_IMAGES - 1 :][:NUM_HELD_OUT]
    images, captions = pictures[train].clone(), [data.captions[i] for i in train]
    one, first, second, bad = draw.permutation(NUM_IMAGES - 1)[:4].tolist()
    copy, off_topic = COPIES[seed % len(COPIES)], OFF_TOPIC[seed % len(OFF_TOPIC)]
    images = torch.cat([images, altered(copy, images[one], draw)[None]])
    captions.append(captions[one])
    captions[first], captions[second] = captions[second], captions[first]
    images[bad] = _off_topic(off_topic, images[bad], draw)
    return Planted(
        seed,
        images,
        tuple(captions),
        (one, NUM_IMAGES - 1),
        copy,
        (first, second),
        bad,
        off_topic,
        pictures[held_out],
        _captions(data, held_out),
    )


def styled(images: Tensor) -> Tensor:
    """Draw images in the style that the adapters learn. [num, 3, H, W]"""
    mixture = torch.tensor(_MIXTURE, dtype=torch.float32)
    mixed = torch.einsum("dc,nchw->ndhw", mixture, (images + 1) / 2)
    return mixed * torch.tensor(_PAPER, dtype=torch.float32)[:, None, None] * 2 - 1


def altered(kind: str, image: Tensor, draw: Any) -> Tensor:
    """Return a copy of an image, altered as one of ``COPIES`` says. [3, H, W]"""
    if kind == "shifted":  # by one or two pixels of sixteen
        down, right = (int(x) for x in draw.choice([-2, -1, 1, 2], 2))
        moved = F.pad(image[None], (2, 2, 2, 2), mode="replicate")[0]
        return moved[:, 2 - down : 2 - down + SIZE, 2 - right : 2 - right + SIZE].clone()
    if kind == "recoloured":
        gains = torch.from_numpy(draw.uniform(0.6, 1.0, 3)).float()
        return (image + 1) * gains[:, None, None] - 1
    if kind == "cropped":  # the middle 13 of 16 pixels
        middle = image[None, :, 1:14, 1:14]
        return F.interpolate(middle, size=(SIZE, SIZE), mode="bilinear", align_corners=False)[0]
    if kind == "repainted":  # a quarter
        top, left = (int(x) * SIZE // 2 for x in draw.integers(2, size=2))
        painted = image.clone()
        colour = torch.from_numpy(draw.uniform(-1, 1, 3)).float()
        painted[:, top : top + SIZE // 2, left : left + SIZE // 2] = colour[:, None, None]
        return painted
    return image.clone()


def _off_topic(kind: str, image: Tensor, draw: Any) -> Tensor:
    """What stands in the place of an image. [3, H, W]"""
    if kind == "noise":
        return 0.3 * image + 0.7 * torch.from_numpy(draw.uniform(-1, 1, image.shape)).float()
    if kind == "torn":  # every row moved by itself, as of a damaged file
        return torch.stack([row.roll(int(draw.integers(SIZE)), -1) for row in image.unbind(1)], 1)
    if kind == "digit":
        digits = load_digits_dataset(SIZE).images
        return digits[int(draw.integers(len(digits)))].expand(3, -1, -1).clone()
    from sklearn.datasets import load_sample_image

    photograph = load_sample_image(("china.jpg", "flower.jpg")[int(draw.integers(2))])
    top, left = (int(draw.integers(side - 192)) for side in photograph.shape[:2])
    part = Image.fromarray(photograph[top : top + 192, left : left + 192]).resize((SIZE, SIZE), Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(part).copy()).permute(2, 0, 1).float() / 127.5 - 1


def _captions(data: EmojiDataset, positions: Any) -> tuple[str, ...]:
    return tuple(data.captions[i] for i in positions)
