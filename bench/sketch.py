"""Count sketch of a batch of gradients: bound by reading them once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from bench.case import PROJ_DIM, Case, Context
from bench.harness import Goal, Row, checked, measure, relative_error
from bench.machine import SLICE_BYTES, ColdSlices
from journey import ops, reference

KEY = 0x5EED

# Sums of about a thousand float32 numbers per bucket round by some 1e-7; one entry of five million in the wrong bucket
# or with the wrong sign changes a sketch by 5e-4.
TOLERANCE = 1e-5

GOAL_FRACTION = 0.8


def cases(context: Context) -> Iterator[Case]:
    """Yield the cases: dtype, nnz and proj_dim."""
    settings = [(torch.float32, nnz, proj_dim) for proj_dim in (PROJ_DIM, 32768) for nnz in (1, 2)]
    settings += [(torch.bfloat16, 1, proj_dim) for proj_dim in (PROJ_DIM, 32768)]
    if context.quick:
        settings = [(torch.float32, 1, PROJ_DIM), (torch.float32, 1, 32768), (torch.bfloat16, 1, PROJ_DIM)]
    buffers: dict[torch.dtype, ColdSlices] = {}  # of the current dtype only
    for dtype, nnz, proj_dim in settings:
        shape = (SLICE_BYTES // (4608 * 1024 * dtype.itemsize), 4608, 1024)
        sizes = f"{'x'.join(map(str, shape))} proj_dim={proj_dim} nnz={nnz} {str(dtype).removeprefix('torch.')}"

        def run(row: Row, dtype: Any = dtype, nnz: int = nnz, proj_dim: int = proj_dim, shape: Any = shape) -> None:
            if dtype not in buffers:
                buffers.clear()
                buffers[dtype] = ColdSlices(shape, dtype, context.device)
            _run(row, context, buffers[dtype], nnz, proj_dim)

        yield Case("sketch", sizes, run)


def _run(row: Row, context: Context, cold: ColdSlices, nnz: int, proj_dim: int) -> None:
    grads = cold.slices[0]
    features = context.zeros(len(grads), proj_dim)
    ops.sketch_(features, grads, key=KEY, nnz=nnz)
    expected = reference.sketch(grads[-1:].cpu(), proj_dim, KEY, nnz)
    row.error = checked(relative_error(features[-1:], expected), TOLERANCE)

    peers = {}
    if grads.dtype == torch.float32 and nnz == 1 and proj_dim == PROJ_DIM:
        bucket, sign = reference.sketch_map(KEY, grads.shape[1], grads.shape[2], proj_dim)
        bucket, sign = bucket.flatten().to(context.device), sign.float().flatten().to(context.device)
        stored = context.zeros(len(grads), proj_dim)
        peers["index_add_ with a stored map"] = lambda: stored.index_add_(1, bucket, next(cold).flatten(1) * sign)
    bound = context.ceilings.read_bound(cold)._replace(work=cold.slice_bytes, probe_work=cold.slice_bytes)
    measure(
        row,
        lambda: ops.sketch_(features, next(cold), key=KEY, nnz=nnz),
        effort=context.effort,
        bound=bound,
        peers=peers,
    )
    if grads.dtype == torch.float32 and nnz == 1 and context.device.type == "cpu" and row.fraction is not None:
        row.goal = Goal("fraction of read bandwidth", ">=", GOAL_FRACTION, row.fraction.median)
