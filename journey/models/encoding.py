"""Samples as the network takes them: the frozen parts of a model run once per sample, and what they give is kept.

A cache is a folder of files ``samples-SSSSSS.safetensors``, one for each shard of the feature store beside it: ``x0``
[num, C, H, W], ``counts`` int64 [num] (captions per sample) and ``condition.NAME`` [sum of counts, ...]. Each names
what it belongs to and carries the SHA-256 of its tensors, and exists as a whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from journey import ops
from journey.data.items import Dataset
from journey.errors import CorruptShardError
from journey.files.fingerprint import fingerprint_json, fingerprint_tensors
from journey.files.publish import publish, remove_leftovers
from journey.models.condition import Condition, Encoded
from journey.models.denoiser import Denoiser
from journey.ops.keys import STREAM_TIMESTEP, derive_key, to_signed

# Samples that go through the frozen parts at once.
_BATCH = 8
_PREFIX = "condition."


class EncodedDataset:
    """The samples of a dataset, encoded when they are first needed.

    Args:
        dataset: The dataset.
        denoiser: The model that encodes it.
        folder: Where encodings are kept; used only if the model has frozen parts.
        belongs_to: What the encodings depend on, as JSON values.
    """

    def __init__(self, dataset: Dataset, denoiser: Denoiser, folder: Path, belongs_to: dict[str, Any]) -> None:
        self.dataset = dataset
        self.denoiser = denoiser
        self.folder = folder
        self._key = fingerprint_json(belongs_to)
        if denoiser.caches:
            folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(folder)

    def reader(self, index: int, begin: int, end: int) -> Callable[[list[int]], Encoded]:
        """Return a function that gives samples of one shard by their positions, which must be consecutive.

        Args:
            index: Which shard.
            begin: Its first position in the dataset.
            end: One past its last.

        Raises:
            CorruptShardError: If a kept file is damaged or belongs elsewhere.
            OSError: If the folder cannot be written to.
        """
        if not self.denoiser.caches:
            return lambda ids: self.denoiser.encode([self.dataset[i] for i in ids], ids)
        shard = self._shard(index, begin, end)
        return lambda ids: shard.select(ids[0] - begin, ids[-1] + 1 - begin)

    def _shard(self, index: int, begin: int, end: int) -> Encoded:
        path = self.folder / f"samples-{index:06d}.safetensors"
        if not path.exists():
            parts = []
            for first in range(begin, end, _BATCH):
                ids = list(range(first, min(first + _BATCH, end)))
                parts.append(self.denoiser.encode([self.dataset[i] for i in ids], ids))
            _write(path, Encoded.cat(parts), self._owner(begin, end))
        # Also what was just computed is read, so that an interrupted run measures the same bits.
        return _read(path, self._owner(begin, end))

    def _owner(self, begin: int, end: int) -> dict[str, Any]:
        return {"key": self._key, "begin": begin, "end": end}


def encode_all(
    denoiser: Denoiser, dataset: Dataset | Tensor | Encoded, *, first_id: int = 0, name: str = "dataset"
) -> Encoded:
    """Return all samples of a dataset as the network takes them, in memory.

    Args:
        denoiser: The model.
        dataset: Images, with captions or the like where the model needs them; or samples that are encoded already,
            which stay as they are.
        first_id: The id of the first of them, by which what is random in an encoding is keyed.
        name: What the dataset is called in errors.

    Returns:
        The samples.

    Raises:
        ValueError: If there is no sample, an image does not fit the model or is not finite, a caption or label is
            missing, or an encoding is NaN or infinite.
        TypeError: If an item has an unknown form.
    """
    if isinstance(dataset, Encoded):
        return dataset
    if not len(dataset):
        raise ValueError(f"{name} must hold at least one image, got an empty one")
    return encode_some(denoiser, dataset, range(len(dataset)), first_id=first_id, name=name)


def encode_some(
    denoiser: Denoiser, dataset: Dataset | Tensor, positions: Sequence[int], *, first_id: int = 0, name: str = "dataset"
) -> Encoded:
    """Return some samples of a dataset as the network takes them, in memory; see ``encode_all``."""
    parts = []
    for first in range(0, len(positions), _BATCH):
        some = positions[first : first + _BATCH]
        names = [f"{name}[{i}]" for i in some]
        parts.append(denoiser.encode([dataset[i] for i in some], [first_id + i for i in some], names))
    encoded = Encoded.cat(parts)
    _check_finite(_tensors(encoded), name)
    return encoded


def choose_captions(seed: int, ids: Sequence[int], counts: Sequence[int], num_draws: int) -> Tensor:
    """Return which of its captions each draw of a sample takes: uniform, a function of (seed, id, draw).

    Args:
        seed: Names the choices.
        ids: Positions in the dataset.
        counts: Captions of each.
        num_draws: Draws of each.

    Returns:
        int64. [num_samples, num_draws]
    """
    keys = torch.tensor(
        [to_signed(derive_key(seed, "caption", i)) for i in ids], dtype=torch.int64, device="cpu"
    ).repeat_interleave(num_draws)
    draws = torch.arange(num_draws, dtype=torch.int64, device="cpu").repeat(len(ids))
    words = ops.philox_words(keys, draws, torch.zeros_like(keys), stream=STREAM_TIMESTEP)[:, 0]
    return (words.view(len(ids), num_draws) * torch.tensor(counts, dtype=torch.int64, device="cpu")[:, None]) >> 32


def _write(path: Path, encoded: Encoded, owner: dict[str, Any]) -> None:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _tensors(encoded).items()}
    _check_finite(tensors, f"samples {owner['begin']} to {owner['end']}")
    text = json.dumps({**owner, "sha256": fingerprint_tensors(tensors)}, sort_keys=True)
    # One entry only: safetensors writes several in an order that changes from run to run.
    publish(path, [save(tensors, metadata={"encoding": text})])


def _tensors(encoded: Encoded) -> dict[str, Tensor]:
    told = {} if encoded.condition is None else encoded.condition.tensors
    named = {_PREFIX + name: tensor for name, tensor in told.items()}
    return {"x0": encoded.x0, "counts": torch.tensor(encoded.counts, dtype=torch.int64, device="cpu"), **named}


def _check_finite(tensors: dict[str, Tensor], what: str) -> None:
    bad = [name for name, t in tensors.items() if t.is_floating_point() and not torch.isfinite(t).all()]
    if bad:
        raise ValueError(
            f"{', '.join(bad)} of {what} must be finite, got NaN or infinity from the model's encoders; a float16 "
            "encoder may need bfloat16 or float32"
        )


def _read(path: Path, owner: dict[str, Any]) -> Encoded:
    cure = "Delete this file and run featurize again with the same arguments; it encodes only these samples."
    try:
        with safe_open(path, "pt") as file:
            found = json.loads((file.metadata() or {}).get("encoding", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError) as error:
        raise CorruptShardError(f"{path} is damaged: {error}. {cure}") from error
    sha256 = found.pop("sha256", None)
    if found != owner:
        raise CorruptShardError(f"{path} belongs elsewhere: expected {owner}, found {found}. {cure}")
    if sha256 != fingerprint_tensors(tensors):
        raise CorruptShardError(f"{path} is damaged: its tensors do not have the SHA-256 that it says. {cure}")
    told = {name.removeprefix(_PREFIX): t for name, t in tensors.items() if name.startswith(_PREFIX)}
    return Encoded(tensors["x0"], Condition(told) if told else None, tensors["counts"].tolist())
