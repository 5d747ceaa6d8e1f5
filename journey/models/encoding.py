"""Samples as the network takes them: the frozen parts of a model run here."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from journey import ops
from journey.data.items import Dataset, read_item
from journey.models.condition import Encoded
from journey.models.denoiser import Denoiser
from journey.ops.keys import STREAM_TIMESTEP, derive_key, to_signed

# Samples that go through the frozen parts at once.
_BATCH = 8


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
        items = [read_item(dataset, i, each) for i, each in zip(some, names, strict=True)]
        parts.append(denoiser.encode(items, [first_id + i for i in some], names))
    encoded = Encoded.cat(parts)
    check_encoded(encoded, name)
    return encoded


def choose_captions(seed: int, ids: Sequence[int | str], counts: Sequence[int], num_draws: int) -> Tensor:
    """Return which of its captions each draw of a sample takes: uniform, a function of (seed, id, draw).

    Args:
        seed: Names the choices.
        ids: Of the samples.
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


def check_encoded(encoded: Encoded, what: str) -> None:
    """Refuse encodings that are NaN or infinite.

    Args:
        encoded: What the frozen parts made.
        what: Names the samples in the error.

    Raises:
        ValueError: If there are some; names the tensors.
    """
    told = {} if encoded.condition is None else encoded.condition.tensors
    bad = [name for name, t in {"x0": encoded.x0, **told}.items() if t.is_floating_point() and not t.isfinite().all()]
    if bad:
        raise ValueError(
            f"{', '.join(bad)} of {what} must be finite, got NaN or infinity from the model's encoders; a float16 "
            "encoder may need bfloat16 or float32"
        )
