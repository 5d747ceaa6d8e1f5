"""Every kernel again in slow float64 torch: the specification that the compiled code is tested against.

Nothing compiled is imported here and no code is shared with ``csrc/``. Random words are int64 tensors that hold
unsigned 32-bit values. 64-bit keys and indices are Python ints modulo 2^64, or int64 tensors in two's complement.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from journey.ops.geometry import ConvGeometry

# What a draw is for: the last word of the counter, so that no two uses ever share one.
STREAM_SKETCH_TILE = 1
STREAM_SKETCH_SIGN = 2
STREAM_DENSE_SIGN = 3
STREAM_DENSE_NORMAL = 4
STREAM_NOISE = 5
STREAM_TIMESTEP = 6

LANES = 32
"""Columns of a sketch tile."""

_WORD = 0xFFFFFFFF


# --------------------------------------------------------------------------------------------- random words


def philox(key: int | Tensor, index: int | Tensor, minor: int | Tensor, stream: int | Tensor) -> Tensor:
    """Draw four 32-bit words per counter with Philox4x32-10.

    The counter is ``(index low word, index high word, minor, stream)``; all four arguments broadcast.

    Args:
        key: What the numbers are for, 64 bits. int64. [...]
        index: Which draw, 64 bits. int64. [...]
        minor: Which draw, 32 more bits. int64. [...]
        stream: Which use of the key, 32 bits. int64. [...]

    Returns:
        Words in ``[0, 2^32)``, int64. [..., 4]

    Reference:
        Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011, section 3.3.
    """
    key_a, key_b = _halves(key)
    x0, x1 = _halves(index)
    x2, x3 = _halves(minor)[0], _halves(stream)[0]
    x0, x1, x2, x3, key_a, key_b = torch.broadcast_tensors(x0, x1, x2, x3, key_a, key_b)
    for _ in range(10):
        high_a, low_a = _multiply(0xD2511F53, x0)
        high_b, low_b = _multiply(0xCD9E8D57, x2)
        x0, x1, x2, x3 = high_b ^ x1 ^ key_a, low_b, high_a ^ x3 ^ key_b, low_a
        key_a = (key_a + 0x9E3779B9) & _WORD
        key_b = (key_b + 0xBB67AE85) & _WORD
    return torch.stack([x0, x1, x2, x3], dim=-1)


def uniform(words: Tensor) -> Tensor:
    """Map each word to the middle of one of 2^23 equal cells of (0, 1), float64. [...] -> [...]."""
    return ((words >> 9).double() + 0.5) / 2**23


def normal(words: Tensor) -> Tensor:
    """Turn four words into four standard normals: words (0, 1) into normals (0, 1), words (2, 3) into (2, 3).

    ``sqrt(-2 ln u) * (cos v, sin v)``. The first word of a pair gives ``u``; the top two bits of the second give the
    quadrant of ``v``, the 23 bits below them the angle within it, centred on the axis.

    Args:
        words: Words of `philox`, int64. [..., 4]

    Returns:
        Standard normals, float64. [..., 4]

    Reference:
        Box and Muller, "A Note on the Generation of Random Normal Deviates", Ann. Math. Statist. 1958.
    """
    word_u, word_v = words[..., 0::2], words[..., 1::2]
    radius = torch.sqrt(-2 * torch.log(uniform(word_u)))
    within = uniform((word_v << 2) & _WORD) - 0.5
    angle = (math.pi / 2) * ((word_v >> 30).double() + within)
    return torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=-1).flatten(-2)


def slot(i: Tensor) -> tuple[Tensor, Tensor]:
    """Say where number ``i`` of a long sequence lives: the index of its draw and its word. [...] -> [...], [...]."""
    return (i // 64) * 16 + i % 16, (i % 64) // 16


def noise(key: int, minor: int, numel: int) -> Tensor:
    """Standard normal noise of one sample: number ``i`` is at `slot` ``i`` of the noise stream, float64. [numel]."""
    index, word = slot(_range(numel))
    return _pick(normal(philox(key, index, minor, STREAM_NOISE)), word)


# --------------------------------------------------------------------------------------------------- sketch


def sketch_map(
    key: int, rows: int, cols: int, proj_dim: int, repetition: int = 0, *, row_begin: int = 0
) -> tuple[Tensor, Tensor]:
    """Give the bucket and the sign of every entry of a parameter matrix.

    ``bucket = ((row % R + rotation) % R) * 32 + ((col % 32) ^ lane_mask)`` with ``R = proj_dim / 32``. Rotation and
    lane mask belong to the tile of ``R`` rows by 32 columns that holds the entry.

    Args:
        key: What the map is for, 64 bits: a seed and a parameter's name.
        rows: Rows of the matrix.
        cols: Columns of the matrix.
        proj_dim: Size of the sketch, a multiple of 32.
        repetition: Which of several independent maps.
        row_begin: Number of the first row.

    Returns:
        Bucket in ``[0, proj_dim)``, int64, and sign in {-1, +1}, float64. [rows, cols], [rows, cols]
    """
    bucket_rows = proj_dim // LANES
    chunks = (cols + LANES - 1) // LANES  # of 32 columns, the last one perhaps partial
    row = (row_begin + _range(rows)).unsqueeze(1)  # [rows, 1]
    chunk, lane = _range(cols) // LANES, _range(cols) % LANES  # [cols], [cols]

    # A tile's shape is the sketch's shape, and inside it the map is a permutation: its entries never collide.
    tile = (row // bucket_rows) * chunks + _range(chunks)  # [rows, chunks]
    draw = philox(key, tile, repetition, STREAM_SKETCH_TILE)
    rotation = (draw[:, chunk, 0] * bucket_rows) >> 32  # [rows, cols]
    lane_mask = draw[:, chunk, 1] % LANES
    bucket = ((row % bucket_rows + rotation) % bucket_rows) * LANES + (lane ^ lane_mask)

    # One word signs 32 neighbours in a row; a set bit is a minus.
    index, word = slot(row * chunks + _range(chunks))  # [rows, chunks], [rows, chunks]
    words = _pick(philox(key, index, repetition, STREAM_SKETCH_SIGN), word)
    return bucket, _sign(words[:, chunk] >> lane)


def sketch_matrix(key: int, rows: int, cols: int, proj_dim: int, nnz: int = 1, *, row_begin: int = 0) -> Tensor:
    """Write the sketch as a matrix, float64, for small cases. [rows * cols, proj_dim]."""
    entries = torch.eye(rows * cols, dtype=torch.float64, device="cpu").reshape(-1, rows, cols)
    return sketch(entries, proj_dim, key, nnz, row_begin=row_begin)


def sketch(grads: Tensor, proj_dim: int, key: int, nnz: int = 1, *, row_begin: int = 0) -> Tensor:
    """Sketch a batch of gradients of one parameter.

    ``features[b, bucket(row, col)] += sign(row, col) * grads[b, row, col] / sqrt(nnz)``, summed over ``nnz`` maps.

    Args:
        grads: Gradients of the parameter as a matrix, any floating dtype. [batch, rows, cols]
        proj_dim: Size of the sketch, a multiple of 32.
        key: What the map is for, 64 bits.
        nnz: How many independent maps are summed.
        row_begin: Number of the first row.

    Returns:
        Features, float64. [batch, proj_dim]
    """
    batch, rows, cols = grads.shape
    features = torch.zeros(batch, proj_dim, dtype=torch.float64, device="cpu")
    for repetition in range(nnz):
        bucket, sign = sketch_map(key, rows, cols, proj_dim, repetition, row_begin=row_begin)
        features.index_add_(1, bucket.flatten(), (grads.double() * sign).reshape(batch, rows * cols))
    return features / math.sqrt(nnz)


# --------------------------------------------------------------------------------------- dense projections


def rademacher_matrix(grad_dim: int, proj_dim: int, key: int, *, row_begin: int = 0) -> Tensor:
    """Signs: column k is bit ``k % 128`` of its row's draw ``k / 128``, set = minus, float64. [grad_dim, proj_dim]."""
    d = (row_begin + _range(grad_dim)).unsqueeze(1)
    k = _range(proj_dim)
    words = philox(key, d, _range((proj_dim + 127) // 128), STREAM_DENSE_SIGN)  # [grad_dim, draws, 4]
    return _sign(words[:, k // 128, (k % 128) // 32] >> (k % 32))


def normal_matrix(grad_dim: int, proj_dim: int, key: int, *, row_begin: int = 0) -> Tensor:
    """Standard normals: column k of a row is at `slot` k of that row's draws, float64. [grad_dim, proj_dim]."""
    d = (row_begin + _range(grad_dim)).unsqueeze(1)
    counter, word = slot(_range(proj_dim))
    draws = (proj_dim + 63) // 64 * 16  # of four normals: 64 columns share 16
    normals = normal(philox(key, d, _range(draws), STREAM_DENSE_NORMAL))  # [grad_dim, draws, 4]
    return normals[:, counter, word]


def project(
    grads: Tensor, proj_dim: int, key: int, kind: Literal["rademacher", "normal"], *, row_begin: int = 0
) -> Tensor:
    """Project gradients: ``grads @ P / sqrt(proj_dim)``, float64. [batch, grad_dim] -> [batch, proj_dim]."""
    matrix = {"rademacher": rademacher_matrix, "normal": normal_matrix}[kind]
    return grads.double() @ matrix(grads.shape[1], proj_dim, key, row_begin=row_begin) / math.sqrt(proj_dim)


# ------------------------------------------------------------------------------------- per-sample gradients


def per_sample_weight_grad(
    a: Tensor,  # [rows, positions, d_in] or [rows, c_in, *size_in]
    g: Tensor,  # [rows, positions, d_out] or [rows, c_out, *size_out]
    *,
    rows_per_group: int,
    conv: ConvGeometry | None = None,
) -> Tensor:
    """Gradient of a Linear or convolution weight for each group of consecutive rows, one autograd call per group.

    Args:
        a: Layer input, any floating dtype. [rows, positions, d_in] or [rows, c_in, *size_in]
        g: Gradient with respect to the layer output. [rows, positions, d_out] or [rows, c_out, *size_out]
        rows_per_group: Consecutive rows that are summed; it divides ``rows``.
        conv: The convolution; None for Linear.

    Returns:
        Weight gradients viewed as matrices, float64. [rows / rows_per_group, d_out, d_in] or
        [rows / rows_per_group, c_out, kernel elements * c_in / conv.groups], column (kernel element, channel)
    """
    if conv is None:
        weight = torch.zeros(g.shape[-1], a.shape[-1], dtype=torch.float64, device="cpu", requires_grad=True)
    else:
        shape = (g.shape[1], a.shape[1] // conv.groups, *conv.kernel_size)
        weight = torch.zeros(shape, dtype=torch.float64, device="cpu", requires_grad=True)
    per_group = []
    for a_group, g_group in zip(a.double().split(rows_per_group), g.double().split(rows_per_group), strict=True):
        with torch.enable_grad():
            output = _layer(a_group, weight, conv)
            grad = torch.autograd.grad(output, weight, grad_outputs=g_group)[0]
            per_group.append(grad.movedim(1, -1).flatten(1))  # channels last
    return torch.stack(per_group) if len(a) else weight.new_zeros(0, *weight.flatten(1).shape)


def sketch_outer(
    a: Tensor,  # [rows, positions, d_in] or [rows, c_in, *size_in]
    g: Tensor,  # [rows, positions, d_out] or [rows, c_out, *size_out]
    proj_dim: int,
    key: int,
    *,
    rows_per_group: int,
    nnz: int = 1,
    conv: ConvGeometry | None = None,
) -> Tensor:
    """Sketch of `per_sample_weight_grad`, float64. [rows / rows_per_group, proj_dim]."""
    return sketch(per_sample_weight_grad(a, g, rows_per_group=rows_per_group, conv=conv), proj_dim, key, nnz)


def gram(features: Tensor) -> Tensor:
    """``features.T @ features``, both triangles, float64. [num_samples, proj_dim] -> [proj_dim, proj_dim]."""
    return features.double().T @ features.double()


# -------------------------------------------------------------------------------------------------- helpers


def _range(count: int) -> Tensor:
    """The numbers from zero on, int64. [count]."""
    return torch.arange(count, dtype=torch.int64, device="cpu")


def _halves(x: int | Tensor) -> tuple[Tensor, Tensor]:
    """Low and high 32 bits of a 64-bit integer, each as int64. [...] -> [...], [...]."""
    if isinstance(x, int):
        x = torch.tensor(x - 2**64 if x >= 2**63 else x, dtype=torch.int64, device="cpu")
    return x & _WORD, (x >> 32) & _WORD


def _multiply(constant: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of ``constant * x``, in steps that never exceed int64. [...] -> [...], [...]."""
    low = constant * (x & 0xFFFF)
    high = constant * (x >> 16) + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def _pick(draws: Tensor, word: Tensor) -> Tensor:
    """One of the four numbers of each draw. [..., 4], [...] -> [...]."""
    return draws.gather(-1, word.unsqueeze(-1)).squeeze(-1)


def _sign(words: Tensor) -> Tensor:
    """Sign that the lowest bit stands for, set = minus, float64. [...] -> [...]."""
    return 1.0 - 2.0 * (words & 1).double()


def _layer(a: Tensor, weight: Tensor, conv: ConvGeometry | None) -> Tensor:
    """The forward pass whose weight gradient is asked for."""
    if conv is None:
        return torch.nn.functional.linear(a, weight)
    forward = {1: torch.nn.functional.conv1d, 2: torch.nn.functional.conv2d, 3: torch.nn.functional.conv3d}
    return forward[conv.spatial_dims](a, weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)
