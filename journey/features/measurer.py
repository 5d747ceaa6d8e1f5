"""Items of a dataset in, rows of a store out: what every worker does, on one machine or on many."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from journey.data.ids import Ids
from journey.gradients.sizes import LayerSizes
from journey.measure.batch import Measured, draw_batch, measure_batch
from journey.measure.draws import Draws
from journey.measure.featurizer import Featurizer
from journey.models.checkpoints import Checkpoint, loaded
from journey.models.condition import Encoded
from journey.models.encoding import check_encoded

# Images that go through the frozen parts at once, at least; a multiple of those that are measured at once.
_ENCODED = 8


class Batch(NamedTuple):
    """Some items of a dataset.

    Attributes:
        ids: Their ids.
        items: The items.
        names: How errors call them.
    """

    ids: Ids
    items: list[Any]
    names: list[str]


class Found(NamedTuple):
    """Some images under one checkpoint.

    Attributes:
        measured: Their rows, on the CPU.
        sizes: Gradient sizes by layer of those that are gauged.
    """

    measured: Measured
    sizes: dict[int | str, LayerSizes]


@dataclass
class Measurer:
    """Measures images under every checkpoint, a fixed number at once.

    A batch that is short is filled up with its last image, whose other rows are dropped: so the bits of a row depend
    neither on the order of the images nor on how they are dealt out.

    Args:
        featurizer: Measures.
        draws: Timesteps and noise.
        checkpoints: Weights to measure under.
        images_per_pass: Images that are measured at once.
        check: Compare the first batch with autograd.
    """

    featurizer: Featurizer
    draws: Draws
    checkpoints: Sequence[Checkpoint | None]
    images_per_pass: int
    check: bool = False
    _held: ExitStack = field(default_factory=ExitStack, init=False, repr=False)

    @property
    def images_per_batch(self) -> int:
        """Images that are encoded at once."""
        return -(-_ENCODED // self.images_per_pass) * self.images_per_pass

    def __enter__(self) -> Measurer:
        if len(self.checkpoints) == 1:  # stays loaded
            self._held.enter_context(loaded(self.featurizer.denoiser.network, self.checkpoints[0]))
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def measure(
        self, batches: Iterable[Batch], numbers: Sequence[int], gauged: Callable[[int | str], bool] = lambda _: False
    ) -> Iterator[tuple[Batch, list[Found]]]:
        """Measure batches of items under some checkpoints, inside ``with``.

        Args:
            batches: Each of at most ``images_per_batch`` items, at least one.
            numbers: Which checkpoints.
            gauged: Tells the images whose gradients are gauged layer by layer.

        Yields:
            Each batch with its rows under each of those checkpoints.

        Raises:
            ValueError: If an image does not fit the model or is not finite, or a caption or label is missing.
            NonFiniteGradientError: If a gradient is NaN or infinite.
            GradientCheckError: If the check fails.
        """
        encoded = ((batch, self.encode(batch)) for batch in batches)
        if len(numbers) == 1 and len(self.checkpoints) == 1:
            for batch, samples in encoded:
                yield batch, [self._found(samples, batch.ids, gauged)]
            return
        kept, found = list(encoded), []  # each checkpoint is loaded once
        for number in numbers:
            with loaded(self.featurizer.denoiser.network, self.checkpoints[number]):
                found.append([self._found(samples, batch.ids, gauged) for batch, samples in kept])
        for i, (batch, _) in enumerate(kept):
            yield batch, [of_checkpoint[i] for of_checkpoint in found]

    def encode(self, batch: Batch) -> Encoded:
        """Return the images of a batch as the network takes them, the last one again and again to fill it up."""
        ids, items, names = (_filled(part, self.images_per_batch) for part in batch)
        samples = self.featurizer.denoiser.encode(items, ids, names)
        check_encoded(samples, f"{batch.names[0]} to {batch.names[-1]}")
        return samples

    def _found(self, samples: Encoded, ids: Ids, gauged: Callable[[int | str], bool]) -> Found:
        sizes = {}
        for at, i in enumerate(ids):
            if gauged(i):
                sample = samples.select(at, at + 1)
                drawn = draw_batch(self.featurizer.denoiser, self.draws, sample, [i])
                sizes[i] = self.featurizer.layer_sizes(sample.x0, **drawn._asdict())
        return Found(self._measure(samples, ids), sizes)

    def _measure(self, samples: Encoded, ids: Ids) -> Measured:
        found, size = [], self.images_per_pass
        for first in range(0, len(ids), size):
            some = ids[first : first + size]
            filled = _filled(some, size)
            measured = measure_batch(
                self.featurizer, self.draws, samples.select(first, first + size), filled, check=self.check
            )
            self.check = False
            found.append([part[: len(some)].cpu() for part in measured])
        return Measured(*map(torch.cat, zip(*found, strict=True)))


def _filled(part: Any, size: int) -> Any:
    return part if len(part) == size else [*part, *[part[-1]] * (size - len(part))]
