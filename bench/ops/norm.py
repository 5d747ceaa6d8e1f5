"""Gradients of normalisation layers: bound by reading input and output gradient once."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.case import Case, Context
from bench.harness import Row, checked, measure, relative_error
from bench.machine import ColdSlices
from journey import ops
from journey.ops import reference_norm

# Sums of 1,000 to 4,000 products in float32, in blocks.
TOLERANCE = 1e-5

EAGER = "torch, operation by operation"


def cases(context: Context) -> Iterator[Case]:
    """Yield the cases: a group norm of a UNet, a layer norm of a transformer, and an RMS norm of queries."""
    rows = 8 if context.device.type == "cpu" else 128
    sizes = {"group norm": ((rows, 128, 1024), 32), "layer norm": ((rows, 1024, 640), 0)}
    sizes["RMS norm"] = (rows, 8192, 64), 0
    for name, (shape, groups) in sizes.items():
        for dtype in (torch.float32, torch.bfloat16):
            run = partial(_run, context=context, shape=shape, groups=groups, centered=name != "RMS norm", dtype=dtype)
            yield Case("norm_grads", f"{name}, {'x'.join(map(str, shape))} {str(dtype)[6:]}", run)


def _run(
    row: Row, *, context: Context, shape: tuple[int, int, int], groups: int, centered: bool, dtype: torch.dtype
) -> None:
    cold = ColdSlices((2, *shape), dtype, context.device)
    x, g = cold.slices[0]
    actual = ops.norm_grads(x[:1], g[:1], groups=groups, centered=centered, eps=1e-5)
    expected = reference_norm.norm_grads(x[:1].cpu(), g[:1].cpu(), groups=groups, centered=centered, eps=1e-5)
    row.error = checked(relative_error(actual, expected), TOLERANCE)
    measure(
        row,
        lambda: ops.norm_grads(*next(cold), groups=groups, centered=centered, eps=1e-5),
        effort=context.effort,
        bound=context.ceilings.read_bound(cold)._replace(work=cold.slice_bytes, probe_work=cold.slice_bytes),
        peers={EAGER: lambda: _eager(*next(cold), groups, centered)},
    )


def _eager(x: Tensor, g: Tensor, groups: int, centered: bool) -> tuple[Tensor, Tensor]:
    """Weight and bias gradient of each row."""
    x, g = x.float(), g.float()
    if groups:
        x = F.group_norm(x, groups)
    elif centered:
        x = F.layer_norm(x, x.shape[2:])
    else:
        x = x * torch.rsqrt(x.square().mean(2, keepdim=True) + 1e-5)
    positions = 2 if groups else 1
    return (x * g).sum(positions), g.sum(positions)
