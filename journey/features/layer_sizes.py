"""The layers' gradient sizes of a few training images, kept beside the features for ``journey inspect``.

Files ``layers-CCC-PPPPPP-SSSSSS.safetensors``, one for each shard that has a sampled image: ``norms`` and ``largest``
float32 [num, bins, num_layers], and the ids (``journey.store.ids``). Each names its layers and the run it belongs to,
and carries the SHA-256 of its tensors. It is written before its shard, so that a shard that is there has its file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from journey.data.ids import Ids
from journey.errors import CorruptShardError, naming_folder
from journey.files.copies import local_copy
from journey.files.fingerprint import fingerprint_tensors
from journey.files.paths import Location
from journey.files.publish import publish
from journey.gradients.sizes import LayerSizes
from journey.ops.keys import derive_key
from journey.store.ids import pack_ids, unpack_ids
from journey.store.manifest import Manifest
from journey.store.part import ShardName
from journey.store.store import FeatureStore

# One image in so many: gauging one takes twice the time of featurizing it, so this is less than one percent.
ONE_IN = 256


def sampled_ids(ids: Ids, first: bool = False) -> set[int | str]:
    """Return which images of a shard are gauged: one in 256, by their ids; of a store's first shard at least one."""
    found = {i for i in ids if derive_key(0, "layer sizes", i) % ONE_IN == 0}
    return found or set(ids[: int(first)])


def write_sizes(store: FeatureStore, checkpoint: str, shard: ShardName, sizes: dict[int | str, LayerSizes]) -> None:
    """Write the sizes of the sampled images of one shard, if there are any; equal ones give equal bytes.

    Args:
        store: Where to.
        checkpoint: Name of the checkpoint.
        shard: Which shard.
        sizes: By image; a group is a bin.

    Raises:
        OSError: If the folder cannot be written to.
    """
    if sizes:
        with naming_folder(store.path):
            publish(_path(store, checkpoint, shard), [sizes_bytes(store.manifest, sizes)])


def sizes_bytes(manifest: Manifest, sizes: dict[int | str, LayerSizes]) -> bytes:
    """Return the file of the sizes of some images, at least one."""
    ids = list(sizes)
    tensors = {
        **pack_ids(ids),
        "norms": torch.stack([sizes[i].norms for i in ids]).cpu(),
        "largest": torch.stack([sizes[i].largest for i in ids]).cpu(),
    }
    owner = {
        "layers": sizes[ids[0]].layers,
        "manifest": manifest.checksum,
        "sha256": fingerprint_tensors(tensors),
    }
    # One entry only: safetensors writes several in an order that changes from run to run.
    return save(tensors, metadata={"layers": json.dumps(owner)})


def read_sizes(store: FeatureStore, checkpoint: str) -> tuple[Ids, LayerSizes] | None:
    """Read the sizes of all sampled images of a checkpoint.

    Args:
        store: Where from.
        checkpoint: Name of the checkpoint.

    Returns:
        The images, and their sizes with one more dimension [num_samples, bins, num_layers]; None where the features
        were written by hand or by an earlier version, without sizes.

    Raises:
        CorruptShardError: If a file was damaged or belongs to another run.
    """
    parts = list(_parts(store, checkpoint))
    if not parts:
        return None
    layers = parts[0][0]
    ids = [i for _, tensors in parts for i in unpack_ids(tensors)]
    norms, largest = (torch.cat([tensors[name] for _, tensors in parts]) for name in ("norms", "largest"))
    return ids, LayerSizes(layers, norms, largest)


def _parts(store: FeatureStore, checkpoint: str) -> Iterator[tuple[list[str], dict[str, Tensor]]]:
    files = store.names()
    for shard in store.shards():
        path = _path(store, checkpoint, shard)
        if path.name not in files:
            continue
        try:
            with local_copy(path) as copy, safe_open(copy, "pt") as file:
                owner = json.loads((file.metadata() or {})["layers"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            sound = owner["sha256"] == fingerprint_tensors(tensors) and owner["manifest"] == store.manifest.checksum
        except (SafetensorError, ValueError, KeyError) as error:
            raise CorruptShardError(f"{path} is damaged: {error}. {_CURE}") from error
        if not sound:
            raise CorruptShardError(f"{path} is damaged or belongs to another run. {_CURE}")
        yield owner["layers"], tensors


_CURE = "Delete this file and its shard and run featurize again with the same arguments; it recomputes only these"


def _path(store: FeatureStore, checkpoint: str, shard: ShardName) -> Location:
    return store.path / store.shard_path(checkpoint, shard).name.replace("rows-", "layers-")
