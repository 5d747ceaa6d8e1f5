"""The loop that measures the images of a store and writes them shard by shard."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Literal, NoReturn

import torch
from tqdm.auto import tqdm

from journey.data.ids import Ids
from journey.data.items import Dataset
from journey.data.loader import Failed, read_batches
from journey.features.contents import content_of
from journey.features.layer_sizes import sampled_ids, write_sizes
from journey.features.measurer import Batch, Found, Measurer
from journey.files.lock import Claims
from journey.measure.batch import Measured
from journey.store.part import ShardName, write_skipped
from journey.store.store import FeatureStore


@dataclass
class Reading:
    """How the images of a store are read.

    Args:
        dataset: Where they are.
        positions: Of each id in it.
        workers: Processes that read ahead; 0 reads in this one.
        on_error: What becomes of an image that cannot be read: ``"error"`` raises, ``"skip"`` leaves it out.
    """

    dataset: Dataset
    positions: Mapping[int | str, int]
    workers: int = 0
    on_error: Literal["error", "skip"] = "error"

    def name(self, image: int | str) -> str:
        """Return how errors call an image."""
        position = self.positions[image]
        return f"dataset[{position}]" if image == position else f"dataset[{position}] ({image})"

    def batches(self, work: Iterator[tuple[ShardName, Ids]], size: int) -> Iterator[tuple[ShardName, Batch]]:
        """Read the images of shards, batch by batch, and ahead of who measures them.

        Args:
            work: Shards with their images; advanced as images are read.
            size: Images per batch.

        Yields:
            Each batch with its shard. Items that could not be read are ``Failed``.
        """
        pending = deque[tuple[ShardName, Ids]]()

        def positions() -> Iterator[list[int]]:
            for shard, ids in work:
                for first in range(0, len(ids), size):
                    pending.append((shard, ids[first : first + size]))
                    yield [self.positions[i] for i in pending[-1][1]]

        for _, items in read_batches(self.dataset, positions(), self.workers):
            shard, ids = pending.popleft()
            yield shard, Batch(ids, items, [self.name(i) for i in ids])


def fill_store(
    store: FeatureStore, measurer: Measurer, reading: Reading, *, rank: int, world_size: int, progress: bool
) -> None:
    """Measure the planned shards that are missing and that no other process has in hand.

    Args:
        store: Gets the rows.
        measurer: Measures.
        reading: Where the images are.
        rank: Which of the processes this one is: of the shards, it begins with its share.
        world_size: How many processes share the work.
        progress: Show a progress bar.

    Raises:
        ValueError: If an image cannot be read or does not fit the model, and is not to be skipped; names it.
        NonFiniteGradientError: If a gradient is NaN or infinite; the shard that it belongs to is not written.
        GradientCheckError: If the check fails.
        OSError: If the store cannot be written to.
    """
    names = store.manifest.checkpoints
    if store.is_complete:
        return
    planned = {shard: part.ids_of(shard.number) for part in store.parts() for shard in part.shards}
    lost = [i for name in names for shard in store.missing(name) for i in planned[shard] if i not in reading.positions]
    if lost:
        raise ValueError(
            f"dataset must hold the images that {store.path} is to measure, got one without {lost[0]!r}; give the "
            "dataset that was begun, or another folder"
        )
    total = sum(len(planned[shard]) for name in names for shard in store.missing(name))
    zeros: list[int | str] = []
    skipped: dict[int | str, str] = {}
    claims = Claims(store.path)
    with measurer, tqdm(total=total, unit="sample", desc="featurize", disable=not progress, dynamic_ncols=True) as bar:
        work = _work(store, planned, claims, rank, world_size)
        read = reading.batches(work, measurer.images_per_batch)
        for shard, group in groupby(read, key=lambda pair: pair[0]):
            alike, left_out = _fill_shard(store, measurer, reading, shard, (batch for _, batch in group), bar)
            zeros += alike
            skipped |= left_out
    claims.close()
    for count, text, some in (
        (len(zeros), "the gradient of {} samples is zero in every entry", map(str, zeros)),
        (len(skipped), "{} images were left out", (f"{i} ({reason})" for i, reason in skipped.items())),
    ):
        if count:  # told to the caller of journey.featurize
            warnings.warn(f"{text.format(count)}: {', '.join(islice(some, 16))}", stacklevel=3)


def _work(
    store: FeatureStore, planned: Mapping[ShardName, Ids], claims: Claims, rank: int, world_size: int
) -> Iterator[tuple[ShardName, Ids]]:
    """Take one missing shard after the other, the own share first; without locks it alone."""
    shards = list(planned)
    own, others = shards[rank::world_size], [s for i, s in enumerate(shards) if i % world_size != rank]
    for shard in own + others:
        if not claims.work and shard in others:
            return
        if _absent(store, shard) and claims.take(shards.index(shard)) and _absent(store, shard):
            yield shard, planned[shard]


def _absent(store: FeatureStore, shard: ShardName) -> list[int]:
    """The checkpoints that a shard is missing of, by number."""
    names = store.manifest.checkpoints
    return [number for number, name in enumerate(names) if not store.shard_path(name, shard).exists()]


def _fill_shard(
    store: FeatureStore, measurer: Measurer, reading: Reading, shard: ShardName, batches: Iterator[Batch], bar: tqdm
) -> tuple[list[int | str], dict[int | str, str]]:
    """Measure one shard and write it; return the images whose gradient is zero, and those left out, with the reason."""
    numbers, denoiser = _absent(store, shard), measurer.featurizer.denoiser
    skipped: dict[int | str, str] = {}
    contents: dict[int | str, int] = {}

    def readable() -> Iterator[Batch]:
        for batch in batches:
            kept = []
            for i, item, name in zip(*batch, strict=True):
                try:
                    if isinstance(item, Failed):
                        raise item.error
                    contents[i] = content_of(denoiser, item, name)
                    kept.append((i, item, name))
                except Exception as error:
                    if reading.on_error == "error":
                        _raise_named(error, name)
                    skipped[i] = f"{type(error).__name__}: {error}"
            bar.update((len(batch.ids) - len(kept)) * len(numbers))
            if kept:
                yield Batch(*map(list, zip(*kept, strict=True)))

    found: list[list[Found]] = [[] for _ in numbers]
    gauged = _gauged(store, shard)
    for batch, of_checkpoints in measurer.measure(readable(), numbers, gauged):
        for parts, part in zip(found, of_checkpoints, strict=True):
            parts.append(part)
        bar.update(len(batch.ids) * len(numbers))
    ids: Ids = list(contents)
    if skipped:
        write_skipped(store.path, shard, skipped)
    zeros = []
    for number, parts in zip(numbers, found, strict=True):
        name, rows = store.manifest.checkpoints[number], _joined(store, parts)
        write_sizes(store, name, shard, {i: sizes for part in parts for i, sizes in part.sizes.items()})
        content = torch.tensor(list(contents.values()), dtype=torch.int64, device="cpu")
        store.write_shard(name, shard, ids, content=content, **rows._asdict())
        zeros += [i for i, row in zip(ids, rows.features, strict=True) if not row.any()]
    return zeros, skipped


def _gauged(store: FeatureStore, shard: ShardName) -> set[int | str]:
    part = next(part for part in store.parts() if part.name == shard.part)
    return sampled_ids(part.ids_of(shard.number), shard)


def _joined(store: FeatureStore, parts: list[Found]) -> Measured:
    """The rows of a shard, which may be none."""
    if parts:
        return Measured(*map(torch.cat, zip(*(part.measured for part in parts), strict=True)))
    bins, proj_dim = store.manifest.bins, store.manifest.proj_dim
    shapes = (0, bins, proj_dim), (0,), (0,), (0, bins)
    return Measured(*(torch.empty(shape, dtype=torch.float32, device="cpu") for shape in shapes))


def _raise_named(error: Exception, name: str) -> NoReturn:
    """Raise the error of an item so that it names it."""
    if name in str(error):
        raise error
    raise ValueError(f"{name} cannot be read: {type(error).__name__}: {error}") from error
