"""Dense random projection with a matrix generated on the fly, beside those of other packages."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from bench.case import PROJ_DIM, Case, Context
from bench.featurize.layers import CIFAR10, DIT, LORA
from bench.harness import Call, Goal, Row, checked, interleave, measure, relative_error
from bench.peers import BATCH_OF_FAST_JL, AbsentPeerError, add_peer, basic_projector, dattri_projector, fast_jl
from journey import ops
from journey.ops import reference

KEY = 0x5EED
GRAD_DIM = 4096  # beside peers, of which some take seconds for it; cost is linear in it on all sides
CHECKED_DIM = 1024  # rows of the matrix that are written out in float64

# Products with thousands of terms in float32, and normals from fast logarithms and sines: some 1e-7 to 1e-6. A wrong
# sign among CHECKED_DIM * PROJ_DIM changes the result by 1e-3.
TOLERANCE = 2e-5

GOAL_SPEEDUP = {"cpu": 15.0, "cuda": 5.0}


def cases(context: Context) -> Iterator[Case]:
    """Yield the cases: kind and batch beside peers, then whole layers of real models."""
    block_sizes: dict[str, int] = {}  # the peers' best, per kind
    settings: list[tuple[ops.ProjectionKind, int]] = [("rademacher", batch) for batch in (1, 8, 32)]
    settings += [("normal", batch) for batch in (1, 8)]
    for kind, batch in settings:
        if not context.quick or (kind, batch) == ("rademacher", 8):
            name = f"{kind} batch={batch} grad_dim={GRAD_DIM} proj_dim={PROJ_DIM} float32"
            run = partial(_run_beside_peers, context=context, kind=kind, batch=batch, block_sizes=block_sizes)
            yield Case("project", name, run)
    for layer in () if context.quick else (LORA[2], CIFAR10[4], DIT[0]):
        grads = context.randn(8, layer.matrix[0] * layer.matrix[1])
        name = f"rademacher batch=8 {layer} proj_dim={PROJ_DIM} float32"
        yield Case("project", name, partial(_run, context=context, kind="rademacher", grads=grads, peers={}))


def _run_beside_peers(
    row: Row, context: Context, kind: ops.ProjectionKind, batch: int, block_sizes: dict[str, int]
) -> None:
    grads = context.randn(batch, GRAD_DIM)
    head = grads[:, :CHECKED_DIM]
    peers: dict[str, Call] = {}
    peer_error = None
    try:
        if kind not in block_sizes:
            block_sizes[kind] = _best_block_size(kind, head, (512, 2048) if context.quick else (32, 100, 512, 2048))
        block_size = block_sizes[kind]
        peer_error = _peer_error(kind, head, block_size)
        peers |= _traker(kind, grads, block_size, keep=batch == 8)
    except AbsentPeerError as error:
        row.note = str(error)
    else:
        if batch == 8 and not context.quick:
            add_peer(row, peers, "dattri BasicProjector", lambda: dattri_projector(grads, block_size, kind))
    if kind == "rademacher" and batch == BATCH_OF_FAST_JL:
        add_peer(row, peers, "fast_jl", lambda: fast_jl(grads, kind))
    _run(row, context, kind, grads, peers)
    for ratio in row.ratios:
        if ratio.against.startswith("traker"):
            ratio.error = peer_error
    if row.ratios and kind == "rademacher":
        goal = GOAL_SPEEDUP[context.device.type]
        row.goal = Goal("speedup over traker", ">=", goal, row.ratios[0].value.median)


def _run(row: Row, context: Context, kind: ops.ProjectionKind, grads: Tensor, peers: dict[str, Call]) -> None:
    """Check the operation, then time it beside its bound and the peers."""
    features = context.zeros(len(grads), PROJ_DIM)
    head = grads[:, :CHECKED_DIM]
    ops.project_(features, head, key=KEY, kind=kind)
    row.error = checked(relative_error(features, reference.project(head.cpu(), PROJ_DIM, KEY, kind)), TOLERANCE)
    bound = context.ceilings.gemm_bound(2.0 * grads.numel() * PROJ_DIM)
    measure(
        row, lambda: ops.project_(features, grads, key=KEY, kind=kind), effort=context.effort, bound=bound, peers=peers
    )


def _best_block_size(kind: str, grads: Tensor, sizes: tuple[int, ...]) -> int:
    """Return the fastest of traker's block sizes that do not keep the matrix, which no model's would fit."""
    projectors = {size: basic_projector(CHECKED_DIM, size, kind, grads.device) for size in sizes}
    calls: dict[str, Call] = {str(size): partial(p.project, grads, 0) for size, p in projectors.items()}
    timings = interleave(calls, grads.device, budget=0, rounds=(2, 2))
    return min(projectors, key=lambda size: timings.of(str(size)).median)


def _traker(kind: str, grads: Tensor, block_size: int, *, keep: bool) -> dict[str, Call]:
    """Return traker's projections by name.

    With a single block traker keeps the matrix, 4 * grad_dim * proj_dim bytes, and only multiplies. That is fast and
    fits no real model (73 GB for one of 4.4M parameters), but it belongs in the picture.
    """
    projector = basic_projector(GRAD_DIM, block_size, kind, grads.device)
    peers: dict[str, Call] = {f"traker BasicProjector(block_size={block_size})": lambda: projector.project(grads, 0)}
    if keep:
        kept = basic_projector(GRAD_DIM, PROJ_DIM, kind, grads.device)
        peers[f"traker with its {4 * GRAD_DIM * PROJ_DIM >> 20} MiB matrix stored"] = lambda: kept.project(grads, 0)
    return peers


def _peer_error(kind: str, grads: Tensor, block_size: int) -> float:
    """Return traker's error against float64 with the matrix that it drew."""
    projector = basic_projector(CHECKED_DIM, block_size, kind, grads.device)
    blocks = []
    for state in projector.generator_states:
        projector.generate_sketch_matrix(state)
        blocks.append(grads.double() @ projector.proj_matrix.double())
    expected = torch.cat(blocks, 1)[:, :PROJ_DIM]
    return relative_error(projector.project(grads, 0), expected)
