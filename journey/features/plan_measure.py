"""What measuring the images of a dataset and asking a query will cost, from a few batches."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from journey.curvature.gram import DEFAULT_DAMPING, GramMatrix
from journey.data.loader import read_stream
from journey.data.stream import Stream
from journey.features.fill import Reading
from journey.features.fill_stream import as_batch
from journey.features.filled import Filled
from journey.features.measurer import Batch, Measurer
from journey.features.plan_times import Spread, timed, timed_often
from journey.features.prepare import Prepared
from journey.models.checkpoints import Checkpoint, loaded
from journey.store.part import ShardName
from journey.store.rows import RowFormat, pack
from journey.store.shard import Shard

_MOST_BATCHES = 1000
# Steps of a query, the default draws of each (``journey.score``), and rows of a shard that it reads.
QUERY_STEPS, _QUERY_DRAWS, _QUERY_ROWS = 3, 16, 1024
_READ_SECONDS = 0.2


@dataclass(frozen=True)
class MeasureCost:
    """What measuring costs.

    Attributes:
        measurer: Measured, under the first checkpoint.
        seconds: Of the images of one pass, under all checkpoints.
        gradient_seconds: Of their gradients alone, under one checkpoint.
        load_seconds: To put the weights of every checkpoint in place once.
        first_seconds: That the first batch takes longer: its gradients are compared with autograd's.
        passes: Times that the network runs forward and backward for those images, under all checkpoints.
        num_batches: That were measured.
        ids: Of images that were measured.
        features: Of some, float32. [num, bins, proj_dim]
    """

    measurer: Measurer
    seconds: Spread
    gradient_seconds: float
    load_seconds: float
    first_seconds: float
    passes: int
    num_batches: int
    ids: list[int | str]
    features: Tensor


def cost_of_measuring(given: Prepared, seconds: float) -> MeasureCost:
    """Measure some batches as ``journey.featurize`` does, under the first checkpoint.

    Args:
        given: What ``prepare`` returned; the featurizer has its prior and scales.
        seconds: That batches may be measured for, about.

    Returns:
        The cost.

    Raises:
        ValueError: If an image cannot be read or does not fit the model, and is not to be skipped; if none can be read.
        NonFiniteGradientError: If a gradient is NaN or infinite.
        GradientCheckError: If the gradients of the first batch are not autograd's.
    """
    size = given.rows.images_per_batch
    measurer = Measurer(given.featurizer, given.draws, given.checkpoints[:1], size, check=True)
    network, run = given.featurizer.denoiser.network, _Run(measurer, given)
    with measurer:
        first, _ = timed(run.batch)
        handle = network.register_forward_hook(run.count)
        try:
            run.until(seconds)
        finally:
            handle.remove()
            run.close()
        encoding = min(timed(lambda: measurer.encode(run.last))[0] for _ in range(2)) / run.passes
    per_pass, times = Spread.of(run.seconds), len(given.checkpoints)
    loading = sum(_loading(network, each) for each in given.checkpoints) if times > 1 else 0.0
    further = per_pass + Spread(-encoding, -encoding, -encoding)
    return MeasureCost(
        measurer,
        per_pass + further * (times - 1),
        further.median,
        loading,
        max(0.0, first - per_pass.median * run.passes),
        run.calls * times,
        len(run.seconds),
        run.ids,
        run.features,
    )


@dataclass
class _Run:
    """Batches, one after the other.

    Attributes:
        seconds: Of each pass.
        passes: Of the last batch.
        calls: Of the network in one of them.
        last: The last batch, without images that were skipped.
        ids: Of the images of all.
        features: Of those of the last batch.
    """

    measurer: Measurer
    given: Prepared
    seconds: list[float] = field(default_factory=list, init=False)
    passes: int = field(default=1, init=False)
    calls: int = field(default=0, init=False)
    last: Batch = field(init=False)
    ids: list[int | str] = field(default_factory=list, init=False)
    features: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self._batches: Generator[Batch, None, None] = _batches(self.given, self.measurer.images_per_batch)
        self._counted = 0

    def close(self) -> None:
        """End the processes that read ahead."""
        self._batches.close()

    def count(self, *_: Any) -> None:
        """Count a call of the network."""
        self._counted += 1

    def batch(self) -> Filled:
        """Read the next batch and measure it."""
        batch, bar = next(self._batches), tqdm(disable=True)
        filled = Filled.measure(self.measurer, [batch], [0], self.given.choices.on_error, lambda _: False, bar)
        if filled.ids:
            readable = [each for each in zip(*batch, strict=True) if each[0] in filled.contents]
            self.last = Batch(*map(list, zip(*readable, strict=True)))
        return filled

    def until(self, seconds: float) -> None:
        """Measure batches until a time is over, at least one in which an image can be read."""
        spent = 0.0
        for _ in range(_MOST_BATCHES):
            self._counted = 0
            taken, filled = timed(self.batch)
            spent += taken
            if filled.ids:
                self.passes = -(-len(filled.ids) // self.measurer.images_per_pass)
                self.seconds.append(taken / self.passes)
                self.calls = self._counted // self.passes
                self.ids += filled.ids
                self.features = torch.cat([found.measured.features for found in filled.found[0]])
            if self.seconds and spent >= seconds:
                return
        if not self.seconds:
            raise ValueError("dataset must hold images that can be read, got none among those that were tried")


def _loading(network: nn.Module, checkpoint: Checkpoint | None) -> float:
    begin = time.perf_counter()
    with loaded(network, checkpoint):
        pass
    return time.perf_counter() - begin


def _batches(given: Prepared, size: int) -> Generator[Batch, None, None]:
    """The batches of the dataset, over and over."""
    source, workers, on_error = given.source, given.choices.workers, given.choices.on_error
    while True:
        if isinstance(source, Stream):
            none = True
            for pairs in read_stream(source, size, workers):
                none = False
                yield as_batch(pairs)
            if none:
                raise ValueError("dataset must hold at least one image, got a stream without any")
        else:
            reading = Reading(source, {i: position for position, i in enumerate(given.ids)}, workers, on_error)
            whole = iter([(ShardName("000000", 0), given.ids)])
            yield from (batch for _, batch in reading.batches(whole, size))


def query_seconds(cost: MeasureCost, given: Prepared, gram: GramMatrix, read_bytes: int) -> tuple[float, float]:
    """Return how long ``journey.score`` takes for one query at three steps, and how fast it reads rows.

    Args:
        cost: Of measuring.
        given: What ``prepare`` returned.
        gram: A matrix such as it solves with.
        read_bytes: Of all shards.

    Returns:
        Seconds; and bytes per second, of rows that the system holds in memory, checksums included.
    """
    times, draws = len(given.checkpoints), given.draws
    rows_per_pass = given.rows.images_per_batch * draws.bins * draws.num_draws
    measuring = QUERY_STEPS * _QUERY_DRAWS * cost.gradient_seconds / rows_per_pass
    query = cost.features[:1].mean(1).expand(QUERY_STEPS, -1).contiguous().cpu()
    there = query.to(given.featurizer.denoiser.device)
    solving, _ = timed(lambda: gram.solve(there, DEFAULT_DAMPING).cpu())
    speed = _read_speed(cost.features, query, given.manifest.row)
    return times * (measuring + solving) + read_bytes / speed, speed


def _read_speed(features: Tensor, query: Tensor, row: RowFormat) -> float:
    """Bytes of rows per second whose checksum is taken and that are multiplied with queries."""
    count = max(1, _QUERY_ROWS // features.shape[1])
    block = features.cpu().repeat(-(-count // len(features)), 1, 1)[:count]
    shard = Shard(row, block.shape[2], pack(row, block))
    packed = shard.tensors["rows"]

    def read() -> None:
        hashlib.sha256(packed.numpy().data.cast("B")).digest()
        shard.products(query)

    spread, _ = timed_often(read, _READ_SECONDS)
    return packed.nbytes / spread.median
