"""Every kernel and path on shapes that have many tiles, stages and slices, small enough for the race detector."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from cases import CONVS, KEY, integers
from cuda_emulation.emulated import Emulated
from torch import Tensor

from journey.ops import reference_packed


def _outer(kernels: Emulated, c_in: int, c_out: int, dtype: torch.dtype, proj_dim: int = 96, nnz: int = 1) -> Tensor:
    positions = 160 // dtype.itemsize  # two and a half stages
    a, g = integers(2, positions, c_in, seed=1).to(dtype), integers(2, positions, c_out, seed=2).to(dtype)
    return kernels.sketch_outer(a, g, proj_dim, KEY, 2, nnz=nnz)


def _conv(kernels: Emulated, name: str, dtype: torch.dtype, *, channels_last: bool = False) -> Tensor:
    conv = replace(CONVS[name], c_in=24, c_out=40) if channels_last else CONVS[name]
    order = torch.channels_last if channels_last else torch.contiguous_format
    a = integers(4, conv.c_in, *conv.size, seed=1).to(dtype).contiguous(memory_format=order)
    g = integers(4, conv.c_out, *conv.size_out, seed=2).to(dtype).contiguous(memory_format=order)
    return kernels.sketch_outer(a, g, 96, KEY, 2, conv=conv.geometry, nnz=2)


def _norm(
    kernels: Emulated, shape: tuple[int, ...], groups: int, dtype: torch.dtype = torch.float32, *, centered: bool = True
) -> Tensor:
    x, g = integers(*shape, seed=1).to(dtype), integers(*shape, seed=2).to(dtype)
    return kernels.norm_grads(x, g, groups=groups, centered=centered, eps=0.1)


def _gram(kernels: Emulated, samples: int, columns: int, dtype: torch.dtype) -> Tensor:
    gram = torch.zeros(columns, columns, dtype=torch.float64)
    kernels.accumulate_gram_(gram, integers(samples, columns).to(dtype))
    return gram


def _products(kernels: Emulated, num_queries: int, bits: int) -> Tensor:
    rows = integers(70, 1120)  # two steps and more than a block of rows
    return kernels.packed_products(integers(num_queries, 1120, seed=1), *reference_packed.pack_rows(rows, bits), bits)


# Each returns what a kernel computed, the same in every run.
EXERCISES: dict[str, Callable[[Emulated], Tensor]] = {
    "sketch, aligned": lambda k: k.sketch(integers(2, 50, 100), 96, KEY, nnz=2),
    "sketch, any columns": lambda k: k.sketch(integers(1, 20, 99).bfloat16(), 96, KEY, nnz=2),
    "sketch_many": lambda k: k.sketch_many([(integers(2, 3, 50), KEY, 0), (integers(2, 1, 3300), KEY, 0)], 2, 96, 2),
    "project signs": lambda k: k.project(integers(3, 400), 40, KEY, "rademacher"),
    "project signs, bf16": lambda k: k.project(integers(3, 401).bfloat16(), 40, KEY, "rademacher"),
    "project normals": lambda k: k.project(integers(3, 100), 40, KEY, "normal"),
    "linear, bf16": lambda k: _outer(k, 72, 136, torch.bfloat16),
    "linear, float32": lambda k: _outer(k, 72, 20, torch.float32, nnz=2),
    "linear, odd channels": lambda k: _outer(k, 73, 131, torch.float16),
    "linear, sums in memory": lambda k: _outer(k, 72, 40, torch.bfloat16, proj_dim=32_768),
    "3x3": lambda k: _conv(k, "3x3", torch.bfloat16),
    "3x3, channels last": lambda k: _conv(k, "3x3", torch.bfloat16, channels_last=True),
    "1x1": lambda k: _conv(k, "1x1", torch.float32),
    "wide": lambda k: _conv(k, "wide", torch.float16),
    "group norm": lambda k: _norm(k, (2, 12, 200), 2),
    "group norm, vectors": lambda k: _norm(k, (1, 12, 256), 2, torch.bfloat16),
    "layer norm": lambda k: _norm(k, (2, 300, 262), 0, torch.bfloat16),
    "RMS norm": lambda k: _norm(k, (1, 40, 33), 0, centered=False),
    "gram": lambda k: _gram(k, 520, 40, torch.bfloat16),
    "pack_rows, 8 bits": lambda k: k.pack_rows(integers(9, 288), 8)[0],
    "pack_rows, 4 bits": lambda k: k.pack_rows(integers(18, 288), 4)[0],
    "packed_products, 8 bits": lambda k: _products(k, 9, 8),
    "packed_products, 4 bits": lambda k: _products(k, 3, 4),
    "packed_products, one query": lambda k: _products(k, 1, 4),
    "gram, odd columns": lambda k: _gram(k, 40, 67, torch.float32),
}
