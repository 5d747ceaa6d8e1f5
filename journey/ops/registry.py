"""Registers every op with ``torch.library`` under ``journey::``: a CPU and a CUDA kernel, and a fake kernel.

The functions of this package check their arguments, say in words what is wrong, and call ``torch.ops.journey``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from journey.ops.cpu import CpuKernels
from journey.ops.cuda import CudaKernels

_library = torch.library.Library("journey", "DEF")
for _schema in (
    "philox_words(Tensor keys, Tensor indices, Tensor minors, int stream) -> Tensor",
    "philox_normal(Tensor keys, Tensor minors, int numel) -> Tensor",
    "sketch_(Tensor(a!) features, Tensor grads, int key, int row_begin, int nnz) -> ()",
    "sketch_many_(Tensor(a!) features, Tensor grads, int[] keys, int[] rows, int[] cols, int[] row_begins, "
    "float[] scales, int nnz) -> ()",
    "project_(Tensor(a!) features, Tensor grads, int key, int kind, int row_begin) -> ()",
    "sketch_outer_(Tensor(a!) features, Tensor a, Tensor g, int key, int nnz, int[] kernel_size, int[] stride, "
    "int[] padding, int[] dilation, int groups) -> ()",
    "sketch_outer_many_(Tensor(a!) features, Tensor[] a, Tensor[] g, int[] keys, int[] geometries, float[] scales, "
    "int nnz, Tensor(b!)[] sums, int[] summed) -> ()",
    "norm_grads(Tensor x, Tensor g, int groups, bool centered, float eps) -> Tensor",
    "accumulate_gram_(Tensor(a!) gram, Tensor features, int block_size) -> ()",
    "pack_rows(Tensor rows, int bits) -> (Tensor, Tensor)",
    "packed_products_(Tensor(a!) out, Tensor queries, Tensor packed, Tensor scales, int bits) -> ()",
):
    _library.define(_schema)
    _name = _schema.split("(")[0]
    _library.impl(_name, getattr(CpuKernels(), _name), "CPU")
    _library.impl(_name, getattr(CudaKernels(), _name), "CUDA")
    if _name.endswith("_"):  # changes its first argument and returns nothing: neither has a shape to tell
        torch.library.register_fake(f"journey::{_name}", lambda *_: None)


@torch.library.register_fake("journey::philox_words")
def _(keys: Tensor, indices: Tensor, minors: Tensor, stream: int) -> Tensor:
    return keys.new_empty((keys.shape[0], 4), dtype=torch.int64)


@torch.library.register_fake("journey::philox_normal")
def _(keys: Tensor, minors: Tensor, numel: int) -> Tensor:
    return keys.new_empty((keys.shape[0], numel), dtype=torch.float32)


@torch.library.register_fake("journey::norm_grads")
def _(x: Tensor, g: Tensor, groups: int, centered: bool, eps: float) -> Tensor:
    return x.new_empty((x.shape[0], 2, x.shape[1 if groups else 2]), dtype=torch.float32)


@torch.library.register_fake("journey::pack_rows")
def _(rows: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    dtype = torch.int8 if bits == 8 else torch.uint8
    packed = rows.new_empty((rows.shape[0], rows.shape[1] * bits // 8), dtype=dtype)
    return packed, rows.new_empty(rows.shape[0])
