"""Rows of features in few bits, and products with them."""

from __future__ import annotations

import torch
from torch import Tensor

from journey.ops.checks import LANES, check_dims, check_tensors

BITS = (8, 4)


def pack_rows(rows: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    """Return rows in 8 or 4 bits with a scale for each.

    ``codes[i, j] = round(rows[i, j] / scales[i])``, ties to even, between -127 and 127 in 8 bits, -7 and 7 in 4. In 8
    bits a row's scale is its largest magnitude over 127, so that an entry is off by at most half a scale. In 4 bits it
    is the largest magnitude over 7 times the one of 16 clips, 1 down to 19/64, that gives the row the least squared
    error, ties to the larger. Scales are cut to 17 significant bits: a code times its scale is a float without
    rounding, and packing what was unpacked gives the same codes and scales. Rows whose scale would be below 2**-100 are
    zero.

    In 4 bits byte ``j`` of each 16 holds entry ``j`` of 32 in its low four bits and entry ``16 + j`` in its high ones,
    both in two's complement.

    Args:
        rows: Features, float32; ``proj_dim`` a multiple of 32. [num_rows, proj_dim]
        bits: 8 or 4.

    Returns:
        Codes, int8 [num_rows, proj_dim] in 8 bits and uint8 [num_rows, proj_dim / 2] in 4, and scales, float32
        [num_rows]. Bitwise equal on every device and for any split into rows.

    Raises:
        ValueError: If the shape is another one, ``bits`` is neither 8 nor 4 or a row holds NaN or infinity.
        TypeError: If ``rows`` is not float32.
        NotImplementedError: For CUDA tensors when the package was built without CUDA kernels.

    Note:
        On CUDA it waits for the kernel, to find rows that must be refused.
    """
    check_tensors(rows=rows)
    _check_bits(bits)
    check_dims("rows", rows, "[num_rows, proj_dim]", 2)
    _check_dtype("rows", rows, torch.float32)
    _check_length("rows", rows, rows.shape[1])
    packed, scales = torch.ops.journey.pack_rows(rows, bits)
    refused = scales.isnan().nonzero()
    if len(refused):
        raise ValueError(f"rows must be finite, got NaN or infinity in row {int(refused[0])}")
    return packed, scales


def unpack_rows(packed: Tensor, scales: Tensor, bits: int = 8) -> Tensor:
    """Return the rows that packed rows stand for: ``codes * scales``, without rounding.

    Args:
        packed: Codes, as ``pack_rows`` gives them. [num_rows, proj_dim * bits / 8]
        scales: Scale of each row, float32. [num_rows]
        bits: 8 or 4.

    Returns:
        Rows, float32. [num_rows, proj_dim]

    Raises:
        ValueError: If the shapes disagree or ``bits`` is neither 8 nor 4.
        TypeError: If a dtype is not that of ``pack_rows``.
    """
    check_tensors(packed=packed, scales=scales)
    _check_packed(packed, scales, bits)
    codes = packed
    if bits == 4:
        blocks = packed.unflatten(1, (-1, LANES // 2))
        nibbles = torch.cat([blocks & 15, blocks >> 4], dim=2).flatten(1)
        codes = (nibbles ^ 8).to(torch.int8) - 8  # two's complement
    return codes.float() * scales.unsqueeze(1)


def packed_products_(
    out: Tensor,  # [num_queries, num_rows]
    queries: Tensor,  # [num_queries, proj_dim]
    packed: Tensor,  # [num_rows, proj_dim * bits / 8]
    scales: Tensor,  # [num_rows]
    bits: int = 8,
) -> None:
    """Write the inner products of queries with packed rows.

    ``out = queries @ unpack_rows(packed, scales, bits).T``, in one pass through the packed rows.

    Args:
        out: Products, float32, overwritten; columns of a larger matrix are taken. [num_queries, num_rows]
        queries: Float32. [num_queries, proj_dim]
        packed: Codes, as ``pack_rows`` gives them. [num_rows, proj_dim * bits / 8]
        scales: Scale of each row, float32. [num_rows]
        bits: 8 or 4.

    Raises:
        ValueError: If the shapes disagree or ``bits`` is neither 8 nor 4.
        TypeError: If a dtype is not one of those above.
        NotImplementedError: For CUDA tensors when the package was built without CUDA kernels.

    Note:
        Products and sums are in float32: a product is off by at most ``(proj_dim / 8 + 40) * 2**-24`` of its sum of
        magnitudes. Bitwise equal for any number of threads and whatever other rows and queries come with it, on one
        device and instruction set. On the CPU it needs a copy of the queries, on CUDA nothing, but rows that do not
        begin at multiples of 16 bytes are copied there.
    """
    check_tensors(out=out, queries=queries, packed=packed, scales=scales)
    _check_packed(packed, scales, bits)
    check_dims("queries", queries, "[num_queries, proj_dim]", 2)
    check_dims("out", out, "[num_queries, num_rows]", 2)
    proj_dim = packed.shape[1] * 8 // bits
    if queries.shape[1] != proj_dim:
        raise ValueError(f"queries must be [num_queries, {proj_dim}] for packed rows, got {list(queries.shape)}")
    if list(out.shape) != [queries.shape[0], packed.shape[0]]:
        raise ValueError(f"out must be {[queries.shape[0], packed.shape[0]]}, got {list(out.shape)}")
    _check_dtype("queries", queries, torch.float32)
    _check_dtype("out", out, torch.float32)
    for name, tensor in (("out", out), ("queries", queries)):
        _check_device(name, tensor, packed)
    if out.shape[1] > 1 and out.stride(1) != 1:
        raise ValueError(f"out must have contiguous rows, got strides {out.stride()}")
    if out.shape[0] > 1 and out.stride(0) < out.shape[1]:
        raise ValueError(f"out must have rows that do not overlap, got strides {out.stride()}")
    torch.ops.journey.packed_products_(out, queries, packed, scales, bits)


def _check_packed(packed: Tensor, scales: Tensor, bits: int) -> None:
    """Refuse what ``pack_rows`` does not give."""
    _check_bits(bits)
    check_dims("packed", packed, "[num_rows, proj_dim * bits / 8]", 2)
    _check_dtype("packed", packed, torch.int8 if bits == 8 else torch.uint8)
    _check_length("packed", packed, packed.shape[1] * 8 // bits)
    if list(scales.shape) != [packed.shape[0]]:
        raise ValueError(f"scales must be [{packed.shape[0]}], one for each packed row, got {list(scales.shape)}")
    _check_dtype("scales", scales, torch.float32)
    _check_device("scales", scales, packed)


def _check_bits(bits: int) -> None:
    if bits not in BITS:
        raise ValueError(f"bits must be 8 or 4, got {bits!r}")


def _check_dtype(name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    if tensor.dtype != dtype:
        raise TypeError(f"{name} must be {str(dtype).removeprefix('torch.')}, got {tensor.dtype}")


def _check_device(name: str, tensor: Tensor, packed: Tensor) -> None:
    if tensor.device != packed.device:
        raise ValueError(f"{name} must be on {packed.device} like packed, got {tensor.device}")


def _check_length(name: str, tensor: Tensor, proj_dim: int) -> None:
    if proj_dim % LANES or proj_dim == 0:
        shape = list(tensor.shape)
        raise ValueError(f"proj_dim must be a positive multiple of {LANES}, got {proj_dim} of {name} {shape}")
