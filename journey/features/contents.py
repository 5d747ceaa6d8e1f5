"""Whether the images of a dataset are those that a store measured: 64 bits of each are kept beside its row."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Literal, TypeAlias

from journey.data.ids import Ids
from journey.data.items import Dataset, check_range, image_of, raise_named
from journey.data.loader import read_stream
from journey.data.stream import Stream
from journey.errors import StoreMismatchError
from journey.files.fingerprint import TensorFingerprint, canonical_json
from journey.models.denoiser import Denoiser
from journey.store.store import FeatureStore

OnError: TypeAlias = Literal["error", "skip"]
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


def check_images(
    store: FeatureStore | None, dataset: Dataset, ids: Ids, denoiser: Denoiser, on_error: OnError = "error"
) -> None:
    """Look at some images before any is measured, and refuse others than those that a store has under the same ids.

    Args:
        store: What is measured already; None is nothing.
        dataset: The images.
        ids: Of each.
        denoiser: The model.
        on_error: As for ``journey.featurize``.

    Raises:
        ValueError: If an image cannot be read, does not fit the model or is not finite, or a caption or label is
            missing, and is not to be skipped.
        TypeError: If an item has an unknown form.
        StoreMismatchError: If an image is another one than was measured under its id.
    """
    count = min(len(ids), _SAMPLED)
    found, extremes = {}, []
    for i in sorted({j * (len(ids) - 1) // max(1, count - 1) for j in range(count)}):
        name = name_of(ids[i], i)
        try:
            item = dataset[i]
            found[ids[i]] = content_of(denoiser, item, name)
            image = image_of(item, name)
        except Exception as error:
            if on_error == "error":
                raise_named(error, name)
            continue
        extremes.append((image.min(), image.max()))
    if extremes:
        check_range(extremes)
    if store is not None:
        check_contents(store, found)


def check_stream(store: FeatureStore, stream: Stream, denoiser: Denoiser) -> None:
    """Refuse a stream whose first images are others than those that a store has under the same ids.

    Raises:
        StoreMismatchError: Names one.
    """
    found = {}
    for batch in islice(read_stream(stream, 1, workers=0), _SAMPLED):
        for i, item in batch:
            with contextlib.suppress(Exception):  # when it is measured
                found[i] = content_of(denoiser, item, f"image {i!r}")
    check_contents(store, found)


def name_of(image: int | str, position: int) -> str:
    """Return how errors call an image of a map-style dataset."""
    return f"dataset[{position}]" if image == position else f"dataset[{position}] ({image})"


def failures(dataset: Dataset, positions: Iterable[int], denoiser: Denoiser) -> dict[int, Exception]:
    """Return why images, by position, cannot be read or do not fit the model; only of those."""
    found: dict[int, Exception] = {}
    for position in positions:
        try:
            content_of(denoiser, dataset[position], f"dataset[{position}]")
        except Exception as error:
            found[position] = error
    return found


class Readable:
    """The images of a dataset, of some positions, that can be read and fit the model.

    Args:
        dataset: The dataset.
        positions: Which images are looked at.
        denoiser: The model.

    Raises:
        ValueError: If there is none.
    """

    def __init__(self, dataset: Dataset, positions: Sequence[int], denoiser: Denoiser) -> None:
        self._dataset = dataset
        failed = failures(dataset, positions, denoiser)
        self._positions = [position for position in positions if position not in failed]
        if not self._positions:
            raise ValueError("dataset must hold an image that can be read and fits the model, got none")

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> Any:
        return self._dataset[self._positions[index]]


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
