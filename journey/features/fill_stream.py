"""The loop that measures the images of a stream as they come, and writes them as shards without a plan."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from tqdm.auto import tqdm

from journey.data.ids import Ids
from journey.data.loader import read_stream
from journey.data.stream import Failed, Stream
from journey.features.contents import OnError
from journey.features.filled import Filled, Told
from journey.features.layer_sizes import sampled_ids
from journey.features.measurer import Batch, Measurer
from journey.store.part import loose_shard
from journey.store.store import FeatureStore


def first_items(stream: Stream, count: int, on_error: OnError = "error") -> list[Any]:
    """Return the first items of a stream, which is read from its beginning.

    Raises:
        ValueError: If there is none, or one cannot be read.
    """
    read = (pair for batch in read_stream(stream, 1, workers=0) for pair in batch)
    if on_error == "skip":
        read = (pair for pair in read if not isinstance(pair[1], Failed))
    items = [item for _, item in islice(read, count)]
    if failed := [item for item in items if isinstance(item, Failed)]:
        raise failed[0].exception()
    if not items:
        raise ValueError("dataset must hold at least one image, got a stream without any")
    return items


def fill_stream(
    store: FeatureStore,
    measurer: Measurer,
    stream: Stream,
    *,
    shard_size: int,
    workers: int,
    on_error: OnError,
    progress: bool,
) -> None:
    """Measure the images of a stream that the store does not have.

    Args:
        store: Gets the rows.
        measurer: Measures.
        stream: This process's part of the stream.
        shard_size: Images per shard.
        workers: As for ``journey.featurize``.
        on_error: Likewise.
        progress: Show a progress bar.

    Raises:
        ValueError: If two images have one id; if an image cannot be read or does not fit the model, and is not to be
            skipped; names it.
        NonFiniteGradientError: If a gradient is NaN or infinite; the shard that it belongs to is not written.
        GradientCheckError: If the check fails.
        OSError: If the store cannot be written to.
    """
    known, told = store.planned_ids(), Told()
    numbers = list(range(len(store.manifest.checkpoints)))
    with measurer, tqdm(unit="sample", desc="featurize", disable=not progress, dynamic_ncols=True) as bar:
        pairs = _new(stream.without(known), measurer.images_per_batch, workers)
        while first := list(islice(pairs, 1)):
            batches = _batches(first, islice(pairs, shard_size - 1), measurer.images_per_batch)
            filled = Filled.measure(measurer, batches, numbers, on_error, lambda i: bool(sampled_ids([i])), bar)
            store.check_kind(known, filled.ids)
            if filled.ids:
                told.add(filled, filled.write(store, loose_shard(filled.ids, list(filled.contents.values()))))
            else:
                told.add(filled, [])
    told.warn(stacklevel=3)  # the caller of journey.featurize


def _new(stream: Stream, batch_size: int, workers: int) -> Iterator[tuple[int | str, Any]]:
    """The pairs of a stream one by one; two of one id are refused."""
    seen = set[int | str]()
    for batch in read_stream(stream, batch_size, workers):
        for i, item in batch:
            if i in seen:
                raise ValueError(f"ids must name every image once, got {i!r} for two or more of the stream")
            seen.add(i)
            yield i, item


def _batches(first: list[Any], rest: Iterator[Any], size: int) -> Iterator[Batch]:
    """The pairs of one shard in batches."""
    while some := first + list(islice(rest, size - len(first))):
        first = []
        yield as_batch(some)


def as_batch(pairs: list[Any]) -> Batch:
    """Return pairs of a stream as a batch."""
    ids: Ids = [i for i, _ in pairs]
    return Batch(ids, [item for _, item in pairs], [f"image {i!r}" for i in ids])
