"""One shard, measured: what is written of its images, and what is told of those that are odd."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from tqdm.auto import tqdm

from journey.data.items import raise_named
from journey.data.stream import Failed
from journey.features.contents import OnError, content_of
from journey.features.layer_sizes import write_sizes
from journey.features.measurer import Batch, Found, Measurer
from journey.files.paths import exists
from journey.measure.batch import Measured
from journey.store.part import ShardName, write_skipped
from journey.store.store import FeatureStore


@dataclass
class Filled:
    """The images of one shard.

    Attributes:
        numbers: The checkpoints that they were measured under.
        contents: Of each image, see ``journey.features.contents``.
        skipped: Images that were left out, with the reason.
        found: Under each of those checkpoints, batch by batch.
    """

    numbers: list[int]
    contents: dict[int | str, int] = field(default_factory=dict)
    skipped: dict[int | str, str] = field(default_factory=dict)
    found: list[list[Found]] = field(default_factory=list)

    @property
    def ids(self) -> list[int | str]:
        """The images that have rows."""
        return list(self.contents)

    @staticmethod
    def measure(
        measurer: Measurer,
        batches: Iterable[Batch],
        numbers: list[int],
        on_error: OnError,
        gauged: Callable[[int | str], bool],
        bar: tqdm,
        only: Collection[int | str] | None = None,
    ) -> Filled:
        """Measure batches of items under some checkpoints.

        Args:
            measurer: Measures.
            batches: The items; ``Failed`` stands for those that could not be read.
            numbers: Which checkpoints.
            on_error: As for ``journey.featurize``.
            gauged: Tells the images whose gradients are gauged layer by layer.
            bar: Shows the progress.
            only: The images that the shard has under other checkpoints, which are measured, and no others; None is all.

        Returns:
            The shard.

        Raises:
            ValueError: If an image cannot be read or does not fit the model, and is not to be skipped; names it.
            NonFiniteGradientError: If a gradient is NaN or infinite.
            GradientCheckError: If the check fails.
        """
        filled = Filled(numbers, found=[[] for _ in numbers])
        readable = filled._readable(measurer.featurizer.denoiser, batches, on_error, bar, only)
        for batch, of_checkpoints in measurer.measure(readable, numbers, gauged):
            for parts, part in zip(filled.found, of_checkpoints, strict=True):
                parts.append(part)
            bar.update(len(batch.ids) * len(numbers))
        return filled

    def write(self, store: FeatureStore, shard: ShardName) -> list[int | str]:
        """Write the shard, and return the images whose gradient is zero."""
        if self.skipped:
            write_skipped(store.path, shard, self.skipped)
        zeros, content = [], torch.tensor(list(self.contents.values()), dtype=torch.int64, device="cpu")
        for number, parts in zip(self.numbers, self.found, strict=True):
            name, rows = store.manifest.checkpoints[number], _joined(store, parts)
            write_sizes(store, name, shard, {i: sizes for part in parts for i, sizes in part.sizes.items()})
            store.write_shard(name, shard, self.ids, content=content, **rows._asdict())
            zeros += [i for i, row in zip(self.ids, rows.features, strict=True) if not row.any()]
        return zeros

    def _readable(
        self, denoiser: Any, batches: Iterable[Batch], on_error: OnError, bar: tqdm, only: Collection[int | str] | None
    ) -> Iterator[Batch]:
        """The batches without images that cannot be read or do not fit the model."""
        for batch in batches:
            kept = []
            for i, item, name in zip(*batch, strict=True):
                if only is not None and i not in only:  # as under the checkpoints that are done
                    self.skipped[i] = "it was left out when other checkpoints were measured"
                    continue
                try:
                    if isinstance(item, Failed):
                        raise item.error
                    self.contents[i] = content_of(denoiser, item, name)
                    kept.append((i, item, name))
                except Exception as error:
                    if on_error == "error" or only is not None:
                        raise_named(error, name)
                    self.skipped[i] = f"{type(error).__name__}: {error}"
            bar.update((len(batch.ids) - len(kept)) * len(self.numbers))
            if kept:
                yield Batch(*map(list, zip(*kept, strict=True)))


@dataclass
class Told:
    """What is told of images when all is done."""

    zeros: list[int | str] = field(default_factory=list)
    skipped: dict[int | str, str] = field(default_factory=dict)

    def add(self, filled: Filled, zeros: list[int | str]) -> None:
        """Add one shard, and its images whose gradient is zero."""
        self.zeros += zeros
        self.skipped |= filled.skipped

    def warn(self, stacklevel: int) -> None:
        """Warn of images whose gradient is zero, and of those that were left out."""
        for count, text, some in (
            (len(self.zeros), "the gradient of {} samples is zero in every entry", map(str, self.zeros)),
            (len(self.skipped), "{} images were left out", (f"{i} ({why})" for i, why in self.skipped.items())),
        ):
            if count:
                warnings.warn(f"{text.format(count)}: {', '.join(islice(some, 16))}", stacklevel=stacklevel + 1)


def absent(store: FeatureStore, shard: ShardName) -> list[int]:
    """Return the checkpoints that a shard is missing of, by number."""
    names = store.manifest.checkpoints
    return [number for number, name in enumerate(names) if not exists(store.shard_path(name, shard))]


def _joined(store: FeatureStore, parts: list[Found]) -> Measured:
    """The rows of a shard, which may be none."""
    if parts:
        return Measured(*map(torch.cat, zip(*(part.measured for part in parts), strict=True)))
    bins, proj_dim = store.manifest.bins, store.manifest.proj_dim
    shapes = (0, bins, proj_dim), (0,), (0,), (0, bins)
    return Measured(*(torch.empty(shape, dtype=torch.float32, device="cpu") for shape in shapes))
