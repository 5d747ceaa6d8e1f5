"""How many bytes a store and a fit will have."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple

import torch

from journey.data.ids import Ids
from journey.features.layer_sizes import ONE_IN, sampled_ids, sizes_bytes
from journey.gradients.sizes import LayerSizes
from journey.store.manifest import Manifest
from journey.store.part import FIRST_PART, Part, ShardName
from journey.store.store import FeatureStore


class StoreBytes(NamedTuple):
    """Bytes of a finished store.

    Attributes:
        total: Of manifest, parts, shards and the layers' sizes.
        shards: Of shards alone, which a query reads.
        num_shards: How many there are, of one checkpoint.
    """

    total: int
    shards: int
    num_shards: int


def exact_bytes(manifest: Manifest, ids: Ids, shard_size: int, layers: Sequence[str]) -> StoreBytes:
    """Return the bytes of the store of known images, without the files that locks are held on, which are empty.

    Args:
        manifest: Of the store.
        ids: Of the images.
        shard_size: Images per shard.
        layers: Names of the measured layers.
    """
    store, part = FeatureStore(Path(), manifest), Part.of(FIRST_PART, ids, shard_size)
    shards = sizes = 0
    for shard in part.shards:
        some = part.ids_of(shard.number)
        gauged = sampled_ids(some, shard.number == 0)
        shards += sum(store.shard_bytes(name, shard, some) for name in manifest.checkpoints)
        sizes += _layer_bytes(manifest, list(gauged), layers) * len(manifest.checkpoints)
    whole = len(manifest.to_json().encode()) + len(part.to_bytes()) + shards + sizes
    return StoreBytes(whole, shards, len(part.shards))


def likely_bytes(
    manifest: Manifest, ids: Ids, num_images: int, shard_size: int, layers: Sequence[str], *, planned: bool
) -> StoreBytes:
    """Return about the bytes of a store of images of which some ids are known.

    Args:
        manifest: Of the store.
        ids: Some ids, at least one.
        num_images: How many images there will be.
        shard_size: Images per shard.
        layers: Names of the measured layers.
        planned: Whether parts name the images, as they do unless they come as a stream.
    """
    store, some = FeatureStore(Path(), manifest), list(islice(cycle(ids), min(num_images, shard_size)))
    times, num_checkpoints = num_images / len(some), len(manifest.checkpoints)
    shard = ShardName(FIRST_PART if planned else "0" * 16, 0)
    shards = round(store.shard_bytes(manifest.checkpoints[0], shard, some) * times) * num_checkpoints
    part = round(len(Part.of(FIRST_PART, some, shard_size).to_bytes()) * times) if planned else 0
    sizes = round(_layer_bytes(manifest, some[:1], layers) * num_images / ONE_IN) * num_checkpoints
    total = len(manifest.to_json().encode()) + part + shards + sizes
    return StoreBytes(total, shards, -(-num_images // shard_size))


def gram_bytes(num_rows: int, num_images: int, proj_dim: int) -> int:
    """Return the bytes of a Gram matrix of so many rows, which is no larger than square, and its noise."""
    return 4 * proj_dim * (min(num_rows, proj_dim) + num_images)


def _layer_bytes(manifest: Manifest, gauged: Ids, layers: Sequence[str]) -> int:
    if not gauged:
        return 0
    zeros = torch.zeros(manifest.bins, len(layers), dtype=torch.float32, device="cpu")
    return len(sizes_bytes(manifest, {i: LayerSizes(list(layers), zeros, zeros) for i in gauged}))
