"""Packed rows again in slow torch: the specification that the compiled code is tested against, to the bit.

Nothing compiled is imported here and no code is shared with ``csrc/``. What is rounded to float32 is named as such:
codes and scales are a format, and part of it is where its numbers are rounded.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 32
"""Entries of which 4 bits each are 16 bytes."""

LARGEST = {8: 127, 4: 7}
"""Largest code of so many bits."""

CLIPS = [(64 - 3 * i) / 64 for i in range(16)]
"""Fractions of the largest magnitude at which 4 bits may clip a row."""


def pack_rows(rows: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Quantise finite rows, float32, to codes of ``largest`` levels on either side.

    Args:
        rows: Features, float32. [num_rows, proj_dim]
        bits: 8 or 4.

    Returns:
        Codes, int8 [num_rows, proj_dim] or, two in a byte, uint8 [num_rows, proj_dim / 2]; scales, float32. [num_rows]
    """
    largest = LARGEST[bits]
    peak = rows.double().abs().amax(1)
    scales = _scale(peak, largest)
    if bits == 4:
        errors = torch.full_like(scales, torch.inf)
        best = scales
        for clip in CLIPS:
            candidate = _scale(_rounded(peak * clip), largest)
            exact = _in_scales(rows, candidate)
            sums = _sum_of_squares(exact - exact.clamp(-largest, largest).round())
            error = _rounded(sums * _rounded(torch.tensor(clip, dtype=torch.float64, device="cpu") ** 2)).float()
            better = (error < errors) & (candidate > 0)
            errors, best = torch.where(better, error, errors), torch.where(better, candidate, best)
        scales = best
    codes = _in_scales(rows, scales).clamp(-largest, largest).round().to(torch.int8)
    return codes if bits == 8 else _two_in_a_byte(codes), scales


def codes_of(packed: Tensor, bits: int) -> Tensor:
    """Codes as float64. [num_rows, proj_dim * bits / 8] -> [num_rows, proj_dim]."""
    if bits == 8:
        return packed.double()
    blocks = packed.to(torch.int64).unflatten(1, (-1, BLOCK // 2))
    nibbles = torch.cat([blocks % 16, blocks // 16], dim=2).flatten(1)
    return torch.where(nibbles >= 8, nibbles - 16, nibbles).double()


def unpack_rows(packed: Tensor, scales: Tensor, bits: int) -> Tensor:
    """Rows as float64, which float32 can hold. [num_rows, proj_dim * bits / 8] -> [num_rows, proj_dim]."""
    return codes_of(packed, bits) * scales.double().unsqueeze(1)


def packed_products(queries: Tensor, packed: Tensor, scales: Tensor, bits: int) -> Tensor:
    """Inner products of queries with rows, float64. [num_queries, proj_dim], ... -> [num_queries, num_rows]."""
    return queries.double() @ unpack_rows(packed, scales, bits).T


def _rounded(x: Tensor) -> Tensor:
    """The nearest float32 numbers, as float64. [...] -> [...]."""
    return x.float().double()


def _scale(peak: Tensor, largest: int) -> Tensor:
    """Largest magnitude over largest code, in float32, cut to 17 bits; below 2^-100 zero. [num_rows] -> [num_rows]."""
    scales = (peak / largest).float()
    cut = (scales.view(torch.int32) & ~0x7F).view(torch.float32)
    return torch.where(cut < 2.0**-100, torch.zeros_like(cut), cut)


def _in_scales(rows: Tensor, scales: Tensor) -> Tensor:
    """Rows times the float32 reciprocal of their scale, in float32; zero where that is. [num_rows, proj_dim]."""
    inverse = torch.where(scales > 0, _rounded(1 / scales.double()), torch.zeros_like(scales).double())
    return _rounded(rows.double() * inverse.unsqueeze(1))


def _sum_of_squares(errors: Tensor) -> Tensor:
    """Sums in float32: 32 lanes, block after block, then the lanes in halves. [num_rows, proj_dim] -> [num_rows]."""
    squares = _rounded(errors).square().float().unflatten(1, (-1, BLOCK))
    lanes = torch.zeros_like(squares[:, 0])
    for block in squares.unbind(1):
        lanes = lanes + block
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    return lanes.squeeze(1).double()


def _two_in_a_byte(codes: Tensor) -> Tensor:
    """Entry j of 32 in the low four bits of byte j of 16, entry 16 + j in the high ones. [num_rows, proj_dim / 2]."""
    halves: Tensor = (codes.to(torch.int64) % 16).unflatten(1, (-1, 2, BLOCK // 2))
    return (halves[:, :, 0] + 16 * halves[:, :, 1]).flatten(1).to(torch.uint8)
