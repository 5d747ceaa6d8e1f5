"""Random words and noise: pure functions of a key and a counter, with the same bits on every device."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from journey.ops.checks import check_int64_vector, check_tensors
from journey.ops.keys import derive_key, to_signed


def philox_words(
    keys: Tensor,  # [num_draws]
    indices: Tensor,  # [num_draws]
    minors: Tensor,  # [num_draws]
    *,
    stream: int,
) -> Tensor:
    """Return the four 32-bit words of each draw of the counter-based generator Philox4x32-10.

    ``words[i] = philox(keys[i], counter=(indices[i] low, indices[i] high, minors[i], stream))``

    Args:
        keys: Keys, int64 with the bits of the unsigned key. [num_draws]
        indices: First 64 bits of the counters, int64. [num_draws]
        minors: Next 32 bits of the counters, int64 in [0, 2**32). [num_draws]
        stream: Last 32 bits of the counters: one number for each use, see csrc/common/philox.h.

    Returns:
        Words, int64 in [0, 2**32), bitwise equal on every device. [num_draws, 4]

    Raises:
        ValueError: If the shapes differ or ``stream`` is no 32-bit number.
        TypeError: If a tensor is not int64.

    Reference:
        Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
    """
    check_tensors(keys=keys, indices=indices, minors=minors)
    for name, tensor in (("keys", keys), ("indices", indices), ("minors", minors)):
        check_int64_vector(name, tensor, keys)
    if not 0 <= stream < 2**32:
        raise ValueError(f"stream must be in [0, 2**32), got {stream}")
    result: Tensor = torch.ops.journey.philox_words(keys, indices, minors, stream)
    return result


def philox_normal(
    keys: Tensor,  # [num_rows]
    minors: Tensor,  # [num_rows]
    numel: int,
) -> Tensor:
    """Return rows of standard normal noise, each a pure function of its key and minor.

    Args:
        keys: One key per row, int64 with the bits of the unsigned key. [num_rows]
        minors: One number per row that separates rows of the same key, int64 in [0, 2**32). [num_rows]
        numel: Normals per row.

    Returns:
        Noise, float32, bitwise equal on every device. [num_rows, numel]

    Raises:
        ValueError: If the shapes differ or ``numel`` is negative.
        TypeError: If a tensor is not int64.

    Reference:
        Box and Muller, "A Note on the Generation of Random Normal Deviates", 1958.
    """
    check_tensors(keys=keys, minors=minors)
    for name, tensor in (("keys", keys), ("minors", minors)):
        check_int64_vector(name, tensor, keys)
    if numel < 0:
        raise ValueError(f"numel must not be negative, got {numel}")
    result: Tensor = torch.ops.journey.philox_normal(keys, minors, numel)
    return result


def keyed_noise(
    keys: Tensor, count: int, shape: tuple[int, ...], device: torch.device, *, antithetic: bool, per: int
) -> Tensor:
    """Return standard normal noise for ``count`` draws of each key.

    Args:
        keys: One per sample, int64 (``journey.ops.keys``). [num_samples]
        count: Draws per sample, ``count / per`` runs of ``per`` draws.
        shape: Shape of one image.
        device: Where the noise is made; the bits are the same everywhere.
        antithetic: Within a run, draw 2j + 1 is the negative of draw 2j.
        per: Draws of a run.

    Returns:
        Noise, float32. [num_samples, count / per, per, *shape]
    """
    draws = torch.arange(count, dtype=torch.int64, device="cpu").view(-1, per)
    minors = draws - draws % per % 2 if antithetic else draws  # the draw whose bits are used
    flat = philox_normal(
        keys.repeat_interleave(count).to(device), minors.flatten().repeat(len(keys)).to(device), prod(shape)
    )
    noise = flat.view(len(keys), count // per, per, *shape)
    if antithetic:
        noise[:, :, 1::2] *= -1
    return noise


def query_noise(
    seed: int, ids: Sequence[int | str], timestep: int, num_draws: int, shape: tuple[int, ...], device: torch.device
) -> Tensor:
    """Return the antithetic noise with which queries are re-noised at one timestep. [num_queries, num_draws, *shape]"""
    keys = sample_keys(seed, f"query noise at {timestep}", ids)
    return keyed_noise(keys, num_draws, shape, device, antithetic=True, per=num_draws).squeeze(1)


def sample_keys(seed: int, use: str, ids: Sequence[int | str]) -> Tensor:
    """Return the key of each sample's stream for one use, int64 with the bits of the unsigned key. [num_samples]"""
    names = [i if isinstance(i, str) else int(i) for i in ids]
    return torch.tensor([to_signed(derive_key(seed, use, i)) for i in names], dtype=torch.int64, device="cpu")
