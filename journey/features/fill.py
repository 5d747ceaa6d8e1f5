"""The loop that measures the planned images of a store and writes them shard by shard."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby

from tqdm.auto import tqdm

from journey.data.ids import Ids
from journey.data.items import Dataset
from journey.data.loader import read_batches
from journey.data.stream import Failed
from journey.features.contents import OnError, name_of
from journey.features.filled import Filled, Told, absent
from journey.features.layer_sizes import sampled_ids
from journey.features.measurer import Batch, Measurer
from journey.files.lock import Claims
from journey.store.part import ShardName
from journey.store.store import FeatureStore

_ABSENT = "the dataset does not have it any more"


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
    on_error: OnError = "error"

    def _name(self, image: int | str) -> str:
        return name_of(image, self.positions[image]) if image in self.positions else f"image {image!r}"

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
                    yield [self.positions[i] for i in pending[-1][1] if i in self.positions]

        for _, items in read_batches(self.dataset, positions(), self.workers):
            shard, ids = pending.popleft()
            found = iter(items)
            items = [next(found) if i in self.positions else Failed(i, ValueError(_ABSENT)) for i in ids]
            yield shard, Batch(ids, items, [self._name(i) for i in ids])


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
    if store.is_complete:
        return
    names = store.manifest.checkpoints
    planned = {shard: part.ids_of(shard.number) for part in store.parts() for shard in part.shards}
    lost = {i for name in names for shard in store.missing(name) for i in planned[shard] if i not in reading.positions}
    first = next(iter(planned))
    total = sum(len(planned[shard]) for name in names for shard in store.missing(name))
    told = Told()
    with (
        closing(Claims(store.path)) as claims,
        measurer,
        tqdm(total=total, unit="sample", desc="featurize", disable=not progress, dynamic_ncols=True) as bar,
    ):
        passed_over = lost if reading.on_error == "error" else set()  # others may have those
        work = _work(store, planned, passed_over, claims, rank, world_size)
        read = reading.batches(work, measurer.images_per_batch)
        for shard, group in groupby(read, key=lambda pair: pair[0]):
            numbers, ids = absent(store, shard), planned[shard]
            gauged = sampled_ids(ids, shard == first)
            batches = (batch for _, batch in group)
            # Under every checkpoint a shard holds the same images, also if others can be read by now.
            done = [name for number, name in enumerate(names) if number not in numbers]
            only = set(store.read_shard(done[0], shard).ids) if done else None
            filled = Filled.measure(measurer, batches, numbers, reading.on_error, gauged.__contains__, bar, only)
            told.add(filled, filled.write(store, shard))
    told.warn(stacklevel=3)  # the caller of journey.featurize
    if lost and reading.on_error == "error":
        raise ValueError(
            f"dataset must hold the images that {store.path} is to measure, got one without {next(iter(lost))!r}; "
            'those that it holds are measured: give the dataset that was begun, or on_error="skip" to leave out others'
        )


def _work(
    store: FeatureStore,
    planned: Mapping[ShardName, Ids],
    passed_over: set[int | str],
    claims: Claims,
    rank: int,
    world_size: int,
) -> Iterator[tuple[ShardName, Ids]]:
    """Take missing shards without images to pass over, the own share first; without locks it alone."""
    shards = list(planned)  # all of them: by their numbers processes of other datasets know them, too
    own, others = shards[rank::world_size], [s for i, s in enumerate(shards) if i % world_size != rank]
    numbers = {shard: number for number, shard in enumerate(shards)}
    missing = {shard for name in store.manifest.checkpoints for shard in store.missing(name)}
    for at, shard in enumerate(own + others):
        if not claims.work and at >= len(own):
            return
        if shard not in missing or not passed_over.isdisjoint(planned[shard]):
            continue
        if absent(store, shard) and claims.take(numbers[shard]) and absent(store, shard):
            yield shard, planned[shard]
