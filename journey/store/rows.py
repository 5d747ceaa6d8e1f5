"""The forms in which the features of an image are kept: numbers of 8 or 4 bits with a scale per row, or floats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from journey.ops.packed import pack_rows, packed_products_, unpack_rows

RowFormat: TypeAlias = Literal["int8", "int4", "float16", "float32"]

_BITS = {"int8": 8, "int4": 4}
_DTYPES = {"int8": torch.int8, "int4": torch.uint8, "float16": torch.float16, "float32": torch.float32}
_UNIT = 32  # packed rows have a multiple of so many numbers: the rest are zeros


def check_row_format(row: str) -> None:
    """Refuse a form that there is none of.

    Raises:
        ValueError: If it is one.
    """
    if row not in get_args(RowFormat):
        raise ValueError(f"row must be one of {', '.join(get_args(RowFormat))}, got {row!r}")


def row_tensors(row: RowFormat, num: int, bins: int, proj_dim: int) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Return names, dtypes and shapes of the tensors that hold the features of some images."""
    width = _padded(proj_dim) * _BITS[row] // 8 if row in _BITS else proj_dim
    found: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {"rows": (_DTYPES[row], (num, bins, width))}
    if row in _BITS:
        found["scales"] = (torch.float32, (num, bins))
    return found


def pack(row: RowFormat, features: Tensor) -> dict[str, Tensor]:
    """Return the tensors that hold some features.

    Args:
        row: In which form.
        features: float32, finite. [num, bins, proj_dim]

    Returns:
        As ``row_tensors`` says.

    Raises:
        ValueError: If a feature is too large for float16.
    """
    if row not in _BITS:
        kept = features.to(_DTYPES[row])
        if not torch.isfinite(kept).all():
            raise ValueError(
                f'features must be at most {torch.finfo(torch.float16).max:g} for row="float16", got '
                f'{features.abs().max():g}; take row="int8" or "float32"'
            )
        return {"rows": kept}
    packed, scales = pack_rows(_pad(features.flatten(0, 1)).contiguous(), _BITS[row])
    return {"rows": packed.view(*features.shape[:2], packed.shape[1]), "scales": scales.view(features.shape[:2])}


def unpack(row: RowFormat, tensors: Mapping[str, Tensor], proj_dim: int) -> Tensor:
    """Return the features of a length that tensors hold, float32. [num, bins, proj_dim]"""
    rows = tensors["rows"]
    if row not in _BITS:
        return rows.to(torch.float32, copy=True)
    whole = unpack_rows(rows.flatten(0, 1), tensors["scales"].flatten(), _BITS[row])
    features: Tensor = whole[:, :proj_dim].unflatten(0, rows.shape[:2])
    return features


def products(row: RowFormat, queries: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the inner products of queries with every feature, which is not unpacked in memory.

    Args:
        row: In which form the features are.
        queries: float32, on the device of the tensors. [num_queries, proj_dim]
        tensors: As ``row_tensors`` says.

    Returns:
        float32. [num_queries, num, bins]
    """
    rows = tensors["rows"]
    flat = rows.flatten(0, 1)
    if row in _BITS:
        found = torch.empty(len(queries), len(flat), dtype=torch.float32, device=queries.device)
        packed_products_(found, _pad(queries).contiguous(), flat, tensors["scales"].flatten(), _BITS[row])
    else:
        found = queries @ flat.float().T
    return found.view(len(queries), *rows.shape[:2])


def _padded(proj_dim: int) -> int:
    return -(-proj_dim // _UNIT) * _UNIT


def _pad(x: Tensor) -> Tensor:
    return F.pad(x, (0, _padded(x.shape[1]) - x.shape[1]))
