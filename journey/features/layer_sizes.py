"""The layers' gradient sizes of a few training images, kept beside the features for ``journey inspect``.

Files ``layers-CCC-SSSSSS.safetensors``, one for each shard that has a sampled image: ``norms`` and ``largest`` float32
[num, bins, num_layers], ``ids`` int64 [num]. Each names its layers and the run it belongs to, and carries the SHA-256
of its tensors. It is written before its shard, so that a shard that is there has its file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from journey.errors import CorruptShardError, naming_folder
from journey.files.fingerprint import fingerprint_tensors
from journey.files.publish import publish
from journey.gradients.sizes import LayerSizes
from journey.store.store import FeatureStore

_MOST = 64
# One image in so many: gauging one takes twice the time of featurizing it, so this is less than one percent.
_ONE_IN = 256


def sampled_ids(num_samples: int) -> set[int]:
    """Return which training images are gauged: at most 64, evenly spread, one in 256 and at least one."""
    count = min(_MOST, -(-num_samples // _ONE_IN))
    return {(2 * i + 1) * num_samples // (2 * count) for i in range(count)}


def write_sizes(store: FeatureStore, checkpoint: str, index: int, sizes: dict[int, LayerSizes]) -> None:
    """Write the sizes of the sampled images of one shard, if there are any; equal ones give equal bytes.

    Args:
        store: Where to.
        checkpoint: Name of the checkpoint.
        index: Index of the shard.
        sizes: By image; a group is a bin.

    Raises:
        OSError: If the folder cannot be written to.
    """
    if not sizes:
        return
    ids = sorted(sizes)
    tensors = {
        "ids": torch.tensor(ids, dtype=torch.int64, device="cpu"),
        "norms": torch.stack([sizes[i].norms for i in ids]).cpu(),
        "largest": torch.stack([sizes[i].largest for i in ids]).cpu(),
    }
    owner = {
        "layers": sizes[ids[0]].layers,
        "manifest": store.manifest.checksum,
        "sha256": fingerprint_tensors(tensors),
    }
    # One entry only: safetensors writes several in an order that changes from run to run.
    with naming_folder(store.path):
        publish(_path(store, checkpoint, index), [save(tensors, metadata={"layers": json.dumps(owner)})])


def read_sizes(store: FeatureStore, checkpoint: str) -> tuple[list[int], LayerSizes] | None:
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
    ids = torch.cat([tensors["ids"] for _, tensors in parts]).tolist()
    norms, largest = (torch.cat([tensors[name] for _, tensors in parts]) for name in ("norms", "largest"))
    return ids, LayerSizes(layers, norms, largest)


def _parts(store: FeatureStore, checkpoint: str) -> Iterator[tuple[list[str], dict[str, Tensor]]]:
    for index in range(store.num_shards(checkpoint)):
        path = _path(store, checkpoint, index)
        if not path.exists():
            continue
        try:
            with safe_open(path, "pt") as file:
                owner = json.loads((file.metadata() or {})["layers"])
                tensors = {name: file.get_tensor(name) for name in ("ids", "norms", "largest")}
            sound = owner["sha256"] == fingerprint_tensors(tensors) and owner["manifest"] == store.manifest.checksum
        except (SafetensorError, ValueError, KeyError) as error:
            raise CorruptShardError(f"{path} is damaged: {error}. {_CURE}") from error
        if not sound:
            raise CorruptShardError(f"{path} is damaged or belongs to another run. {_CURE}")
        yield owner["layers"], tensors


_CURE = "Delete this file and its shard and run featurize again with the same arguments; it recomputes only these"


def _path(store: FeatureStore, checkpoint: str, index: int) -> Path:
    return store.path / store.shard_path(checkpoint, index).name.replace("checkpoint", "layers").replace("-shard", "")
