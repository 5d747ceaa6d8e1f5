"""The loop that measures the images of a store and writes them shard by shard."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from journey.batch import draw_batch, measure_batch
from journey.checkpoints import loaded
from journey.condition import Encoded
from journey.encoding import EncodedDataset
from journey.features import Features
from journey.layer_gauge import LayerSizes
from journey.layer_sample import sampled_ids, write_sizes
from journey.memory import is_out_of_memory

# Frames between a warning of the loop and the caller of journey.featurize.
_TO_CALLER = 3


def fill_store(
    features: Features,
    encoded: EncodedDataset,
    batch_size: int,
    *,
    adaptive: bool,
    rank: int,
    world_size: int,
    check: bool,
    progress: bool,
) -> None:
    """Compute the shards of this process that are missing.

    Args:
        features: The store and what measures its images.
        encoded: The images as the network takes them.
        batch_size: Images per batch.
        adaptive: Go on with half as many where memory runs out.
        rank: Which of the processes this one is.
        world_size: How many processes share the work.
        check: Compare the first batch with autograd.
        progress: Show a progress bar.

    Raises:
        NonFiniteGradientError: If a gradient is NaN or infinite; the shard that it belongs to is not written.
        GradientCheckError: If the check fails.
        OSError: If the store cannot be written to.
    """
    store = features.store
    names = store.manifest.checkpoints
    todo = {name: [i for i in store.missing(name) if i % world_size == rank] for name in names}
    num_images = sum(end - begin for name in names for begin, end in map(store.shard_range, todo[name]))
    zeros: list[int] = []
    batches = _Batches(features, batch_size, adaptive, check)
    with tqdm(total=num_images, unit="sample", desc="featurize", disable=not progress, dynamic_ncols=True) as bar:
        for name, checkpoint in zip(names, features.checkpoints, strict=True):
            if not todo[name]:
                continue
            with loaded(features.featurizer.denoiser.network, checkpoint):
                for index in todo[name]:
                    begin, end = store.shard_range(index)
                    rows, values, sizes = [], [], dict[int, LayerSizes]()
                    for batch in batches.measured(encoded.reader(index, begin, end), begin, end):
                        rows.append(batch.features.cpu())
                        values.append(batch.values.cpu())
                        sizes |= _layer_sizes(features, batch)
                        zeros += [i for i, row in zip(batch.ids, rows[-1], strict=True) if not row.any()]
                        bar.update(len(batch.ids))
                    write_sizes(store, name, index, sizes)
                    store.write_shard(
                        name, index, features=torch.cat(rows), values=torch.cat(values), ids=torch.arange(begin, end)
                    )
    if zeros:
        shown = ", ".join(map(str, zeros[:16]))
        text = f"the gradient of {len(zeros)} samples is zero in every entry: {shown}"
        warnings.warn(text, stacklevel=_TO_CALLER)


@dataclass(frozen=True)
class _Batch:
    """Images, and what was measured of them."""

    ids: list[int]
    samples: Encoded
    features: Tensor
    values: Tensor


@dataclass
class _Batches:
    """Measures ranges of images, in batches that get smaller where memory runs out."""

    features: Features
    size: int
    adaptive: bool
    check: bool  # the first batch only

    def measured(self, read: Callable[[list[int]], Encoded], begin: int, end: int) -> Iterator[_Batch]:
        """Measure the images of a range."""
        while begin < end:
            ids = list(range(begin, min(begin + self.size, end)))
            try:
                samples = read(ids)
                rows, values = measure_batch(
                    self.features.featurizer, self.features.draws, samples, ids, check=self.check
                )
            except Exception as error:
                if not (self.adaptive and len(ids) > 1 and is_out_of_memory(error)):
                    raise
                self.size = len(ids) // 2
                text = f"memory ran out for a batch of {len(ids)} samples; going on with {self.size}: {error}"
                warnings.warn(text, stacklevel=_TO_CALLER + 1)
                continue
            self.check = False
            yield _Batch(ids, samples, rows, values)
            begin = ids[-1] + 1


def _layer_sizes(features: Features, batch: _Batch) -> dict[int, LayerSizes]:
    """Gradient sizes by layer of those images of a batch that are looked at for ``journey inspect``."""
    sizes = {}
    for i in sampled_ids(features.num_samples).intersection(batch.ids):
        at = i - batch.ids[0]
        sample = batch.samples.select(at, at + 1)
        drawn = draw_batch(features.featurizer.denoiser, features.draws, sample, [i])
        sizes[i] = features.featurizer.layer_sizes(sample.x0, **drawn._asdict())
    return sizes
