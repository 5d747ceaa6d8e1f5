"""What the arguments of the ops must be, in words."""

from __future__ import annotations

import torch
from torch import Tensor

from journey.ops.geometry import ConvGeometry

LANES = 32  # proj_dim of a sketch is a multiple of this (csrc/common/sketch_map.h)
MAX_NNZ = 64
INPUT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def check_tensors(**named: Tensor) -> None:
    """Refuse arguments that are no tensors."""
    for name, given in named.items():
        if not isinstance(given, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(given).__name__}")


def check_sketch_dim(features: Tensor) -> None:
    """Refuse features whose length is no multiple of a tile's columns."""
    if features.shape[1] % LANES or features.shape[1] == 0:
        raise ValueError(f"proj_dim must be a positive multiple of {LANES}, got features {list(features.shape)}")


def check_features(features: Tensor, rows: int, rows_name: str) -> None:
    """Refuse features that are not writable float32 rows, one for each of ``rows``."""
    if features.dim() != 2:
        raise ValueError(f"features must be [{rows_name}, proj_dim], got {list(features.shape)}")
    if features.shape[0] != rows:
        raise ValueError(f"features must have one row for each of the {rows} in {rows_name}, got {features.shape[0]}")
    if features.dtype != torch.float32:
        raise TypeError(f"features must be float32, got {features.dtype}")
    if features.shape[1] > 1 and features.stride(1) != 1:
        raise ValueError(f"features must have contiguous rows, got strides {features.stride()}")
    if features.shape[0] > 1 and features.stride(0) < features.shape[1]:
        raise ValueError(f"features must have rows that do not overlap, got strides {features.stride()}")


def check_dims(name: str, tensor: Tensor, form: str, dims: int) -> None:
    """Refuse a tensor with another number of dimensions."""
    if tensor.dim() != dims:
        raise ValueError(f"{name} must be {form}, got {list(tensor.shape)}")


def check_input(name: str, tensor: Tensor, like: Tensor) -> None:
    """Refuse a dtype or a device that the kernels do not take."""
    if tensor.dtype not in INPUT_DTYPES:
        raise TypeError(f"{name} must be float32, float16 or bfloat16, got {tensor.dtype}")
    if tensor.device != like.device:
        raise ValueError(f"{name} must be on {like.device} like the result, got {tensor.device}")


def check_int64_vector(name: str, tensor: Tensor, like: Tensor) -> None:
    """Refuse what is no int64 vector of the length and device of ``like``."""
    length = like.shape[0] if like.dim() else 0
    if tensor.device != like.device:
        raise ValueError(f"{name} must be on {like.device} like keys, got {tensor.device}")
    if tensor.dtype != torch.int64:
        raise TypeError(f"{name} must be int64, got {tensor.dtype}")
    if list(tensor.shape) != [length]:
        raise ValueError(f"{name} must be [{length}], got {list(tensor.shape)}")


def check_key(key: int) -> None:
    """Refuse what is no unsigned 64-bit key."""
    if not 0 <= key < 2**64:
        raise ValueError(f"key must be in [0, 2**64), got {key}")


def check_nnz(nnz: int) -> None:
    """Refuse a number of repetitions that is out of range."""
    if not 1 <= nnz <= MAX_NNZ:
        raise ValueError(f"nnz must be between 1 and {MAX_NNZ}, got {nnz}")


def walk(conv: ConvGeometry) -> tuple[list[int], list[int], list[int], list[int], int]:
    """Return the geometry as the lists that the registered op takes."""
    return list(conv.kernel_size), list(conv.stride), list(conv.padding), list(conv.dilation), conv.groups


def check_conv(a: Tensor, g: Tensor, conv: ConvGeometry) -> None:
    """Refuse input and output gradients whose shapes a convolution does not connect."""
    walk = zip(a.shape[2:], conv.kernel_size, conv.stride, conv.padding, conv.dilation, strict=True)
    spatial = [(size + 2 * pad - dilation * (k - 1) - 1) // stride + 1 for size, k, stride, pad, dilation in walk]
    if g.dim() != a.dim() or g.shape[0] != a.shape[0] or list(g.shape[2:]) != spatial:
        raise ValueError(
            f"g must be [{a.shape[0]}, c_out, {', '.join(map(str, spatial))}] for a {list(a.shape)} and {conv}, "
            f"got {list(g.shape)}"
        )
    if a.shape[1] % conv.groups or g.shape[1] % conv.groups:
        raise ValueError(
            f"channels of a and g must be divisible by {conv.groups} groups, got {a.shape[1]}, {g.shape[1]}"
        )
