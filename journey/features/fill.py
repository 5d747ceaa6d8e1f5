"""The loop that measures the images of a store and writes them shard by shard."""

from __future__ import annotations

import warnings

import torch
from tqdm.auto import tqdm

from journey.features.features import Features
from journey.features.layer_sizes import sampled_ids, write_sizes
from journey.gradients.sizes import LayerSizes
from journey.measure.batch import Measured, draw_batch, measure_batch
from journey.models.checkpoints import loaded
from journey.models.condition import Encoded
from journey.models.encoding import EncodedDataset


def fill_store(
    features: Features,
    encoded: EncodedDataset,
    batch_size: int,
    *,
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
        rank: Which of the processes this one is.
        world_size: How many processes share the work.
        check: Compare the first batch with autograd.
        progress: Show a progress bar.

    Raises:
        NonFiniteGradientError: If a gradient is NaN or infinite; the shard that it belongs to is not written.
        GradientCheckError: If the check fails.
        OSError: If the store cannot be written to.
    """
    store, featurizer = features.store, features.featurizer
    names = store.manifest.checkpoints
    todo = {name: [i for i in store.missing(name) if i % world_size == rank] for name in names}
    num_images = sum(end - begin for name in names for begin, end in map(store.shard_range, todo[name]))
    zeros: list[int] = []
    with tqdm(total=num_images, unit="sample", desc="featurize", disable=not progress, dynamic_ncols=True) as bar:
        for name, checkpoint in zip(names, features.checkpoints, strict=True):
            if not todo[name]:
                continue
            with loaded(featurizer.denoiser.network, checkpoint):
                for index in todo[name]:
                    begin, end = store.shard_range(index)
                    measured, sizes = list[Measured](), dict[int, LayerSizes]()
                    read = encoded.reader(index, begin, end)
                    for first in range(begin, end, batch_size):
                        ids = list(range(first, min(first + batch_size, end)))
                        samples = read(ids)
                        found = measure_batch(featurizer, features.draws, samples, ids, check=check)
                        check = False
                        measured.append(Measured(*(part.cpu() for part in found)))
                        sizes |= _layer_sizes(features, samples, ids)
                        zeros += [i for i, row in zip(ids, measured[-1].features, strict=True) if not row.any()]
                        bar.update(len(ids))
                    write_sizes(store, name, index, sizes)
                    parts = zip(*measured, strict=True)
                    store.write_shard(
                        name,
                        index,
                        **dict(zip(Measured._fields, map(torch.cat, parts), strict=True)),
                        ids=torch.arange(begin, end, dtype=torch.int64, device="cpu"),
                    )
    if zeros:
        shown = ", ".join(map(str, zeros[:16]))
        text = f"the gradient of {len(zeros)} samples is zero in every entry: {shown}"
        warnings.warn(text, stacklevel=3)  # the caller of journey.featurize


def _layer_sizes(features: Features, samples: Encoded, ids: list[int]) -> dict[int, LayerSizes]:
    """Gradient sizes by layer of those images of a batch that are looked at for ``journey inspect``."""
    sizes = {}
    for i in sampled_ids(features.num_samples).intersection(ids):
        sample = samples.select(i - ids[0], i - ids[0] + 1)
        drawn = draw_batch(features.featurizer.denoiser, features.draws, sample, [i])
        sizes[i] = features.featurizer.layer_sizes(sample.x0, **drawn._asdict())
    return sizes
