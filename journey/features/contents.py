"""Whether the images of a dataset are those that a store measured: 64 bits of each are kept beside its row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from journey.data.ids import Ids
from journey.data.items import Dataset, check_range, image_of
from journey.errors import StoreMismatchError
from journey.files.fingerprint import TensorFingerprint, canonical_json
from journey.models.denoiser import Denoiser
from journey.store.store import FeatureStore

# Images that are looked at before any is measured, evenly spread.
_SAMPLED = 64


def content_of(denoiser: Denoiser, item: Any, name: str) -> int:
    """Return 64 bits that tell an item from others, of its image and of all that the model reads beside it.

    Args:
        denoiser: The model.
        item: What a dataset gave.
        name: What it is called in errors.

    Returns:
        An integer of 64 bits.

    Raises:
        ValueError: If the image does not fit the model or is not finite, or a caption or label is missing.
        TypeError: If the item has an unknown form.
    """
    image = image_of(item, name)
    denoiser.check_image(image, name)
    digest = TensorFingerprint()
    digest.update(canonical_json(denoiser.describe(item, name)), image)
    return int.from_bytes(bytes.fromhex(digest.hexdigest())[:8], "little", signed=True)


def check_images(store: FeatureStore | None, dataset: Dataset, ids: Ids, denoiser: Denoiser) -> None:
    """Look at some images before any is measured, and refuse others than those that a store has under the same ids.

    Args:
        store: What is measured already; None is nothing.
        dataset: The images.
        ids: Of each.
        denoiser: The model.

    Raises:
        ValueError: If an image does not fit the model or is not finite, or a caption or label is missing.
        TypeError: If an item has an unknown form.
        StoreMismatchError: If an image is another one than was measured under its id.
    """
    count = min(len(ids), _SAMPLED)
    found, extremes = {}, []
    for i in sorted({j * (len(ids) - 1) // max(1, count - 1) for j in range(count)}):
        item, name = dataset[i], f"dataset[{i}]"
        found[ids[i]] = content_of(denoiser, item, name)
        image = image_of(item, name)
        extremes.append((image.min(), image.max()))
    check_range(extremes)
    if store is not None:
        check_contents(store, found)


def check_contents(store: FeatureStore, contents: Mapping[int | str, int]) -> None:
    """Refuse contents that differ from those that a store has under the same ids.

    Raises:
        StoreMismatchError: Names one.
    """
    for shard in store.shards_that_hold(contents):
        for i, kept in zip(shard.ids, shard.content.tolist(), strict=True):
            if contents.get(i, kept) != kept:
                raise StoreMismatchError(
                    f"dataset must hold the images that {store.path} has measured: the one of id {i!r} has other "
                    "pixels, or another caption or label, than when it was; give it another id, or featurize into "
                    "another folder"
                )
