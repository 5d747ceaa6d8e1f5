"""Count sketch of a batch of gradients: bound by reading them once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from bench.case import PROJ_DIM, Case, Context
from bench.featurize.layers import CIFAR10, DIT, LORA, SD1, Layer
from bench.harness import Call, Goal, Row, checked, measure, relative_error
from bench.machine import ColdSlices
from bench.peers import add_peer, sjlt
from journey import ops
from journey.ops import reference

KEY = 0x5EED

# Sums of about a thousand float32 numbers per bucket round by some 1e-7; one entry of five million in the wrong bucket
# or with the wrong sign changes a sketch by 5e-4.
TOLERANCE = 1e-5

GOAL_FRACTION = 0.9

NUM_SAMPLES = 8

_CONV, _DEEP, _LINEAR, _LORA = CIFAR10[4], SD1[3], DIT[1], LORA[2]


def cases(context: Context) -> Iterator[Case]:
    """Yield the cases: layer, dtype, nnz and proj_dim."""
    settings = [(layer, torch.float32, 1, PROJ_DIM) for layer in (_CONV, _DEEP, _LORA, _LINEAR)]
    settings += [(_LINEAR, torch.float32, nnz, proj_dim) for nnz, proj_dim in ((2, PROJ_DIM), (1, 32768), (2, 32768))]
    settings += [(_LINEAR, torch.bfloat16, 1, proj_dim) for proj_dim in (PROJ_DIM, 32768)]
    if context.quick:
        settings = [(layer, torch.float32, 1, PROJ_DIM) for layer in (_CONV, _LINEAR)]
    buffers: dict[tuple[Layer, torch.dtype], ColdSlices] = {}  # the current one only
    for layer, dtype, nnz, proj_dim in settings:
        shape = (NUM_SAMPLES, *layer.matrix)
        sizes = f"{'x'.join(map(str, shape))} ({layer.model}) proj_dim={proj_dim} nnz={nnz} "

        def run(row: Row, layer: Layer = layer, dtype: Any = dtype, nnz: int = nnz, proj_dim: int = proj_dim) -> None:
            if (layer, dtype) not in buffers:
                buffers.clear()
                buffers[layer, dtype] = ColdSlices((NUM_SAMPLES, *layer.matrix), dtype, context.device)
            _run(row, context, buffers[layer, dtype], nnz, proj_dim)

        yield Case("sketch", sizes + str(dtype).removeprefix("torch."), run)


def _run(row: Row, context: Context, cold: ColdSlices, nnz: int, proj_dim: int) -> None:
    grads = cold.slices[0]
    features = context.zeros(len(grads), proj_dim)
    ops.sketch_(features, grads, key=KEY, nnz=nnz)
    expected = reference.sketch(grads[-1:].cpu(), proj_dim, KEY, nnz)
    row.error = checked(relative_error(features[-1:], expected), TOLERANCE)

    peers: dict[str, Call] = {}
    if grads.dtype == torch.float32 and nnz == 1 and proj_dim == PROJ_DIM:
        bucket, sign = reference.sketch_map(KEY, grads.shape[1], grads.shape[2], proj_dim)
        bucket, sign = bucket.flatten().to(context.device), sign.float().flatten().to(context.device)
        stored = context.zeros(len(grads), proj_dim)
        peers["index_add_ with a stored map"] = lambda: stored.index_add_(1, bucket, next(cold).flatten(1) * sign)

        def rival() -> Call:
            project = sjlt(grads[0].numel(), context.device)
            return lambda: project(next(cold).flatten(1))

        add_peer(row, peers, "sjlt", rival)
    bound = context.ceilings.read_bound(cold)._replace(work=cold.slice_bytes, probe_work=cold.slice_bytes)
    measure(
        row,
        lambda: ops.sketch_(features, next(cold), key=KEY, nnz=nnz),
        effort=context.effort,
        bound=bound,
        peers=peers,
    )
    if peers and context.device.type == "cpu" and row.fraction is not None:
        row.goal = Goal("fraction of read bandwidth", ">=", GOAL_FRACTION, row.fraction.median)
