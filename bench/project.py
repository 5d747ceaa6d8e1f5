"""Dense random projection with a matrix generated on the fly, beside traker's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.case import PROJ_DIM, SEED, Case, Context
from bench.harness import Call, Goal, Row, checked, interleave, measure, relative_error
from journey import ops, reference

KEY = 0x5EED
GRAD_DIM = 4096  # cost is linear in it, on both sides
CHECKED_DIM = 1024  # rows of the matrix that are written out in float64

# Products with thousands of terms in float32, and normals from fast logarithms and sines: some 1e-7 to 1e-6. A wrong
# sign among CHECKED_DIM * PROJ_DIM changes the result by 1e-3.
TOLERANCE = 2e-5

GOAL_SPEEDUP = 5.0


def cases(context: Context) -> Iterator[Case]:
    """Yield the cases: kind and batch, and the peer's matrix kept in memory."""
    settings = [(kind, batch) for kind in ("rademacher", "normal") for batch in (1, 8, 32)]
    if context.quick:
        settings = [("rademacher", 8), ("normal", 8)]
    block_sizes: dict[str, int] = {}  # the peer's best, per kind
    for kind, batch in settings:

        def run(row: Row, kind: Any = kind, batch: int = batch) -> None:
            _run(row, context, kind, batch, block_sizes)

        yield Case("project", f"{kind} batch={batch} grad_dim={GRAD_DIM} proj_dim={PROJ_DIM} float32", run)


def _run(row: Row, context: Context, kind: ops.ProjectionKind, batch: int, block_sizes: dict[str, int]) -> None:
    grads = context.randn(batch, GRAD_DIM)
    features = context.zeros(batch, PROJ_DIM)
    head = grads[:, :CHECKED_DIM]
    ops.project_(features, head, key=KEY, kind=kind)
    row.error = checked(relative_error(features, reference.project(head.cpu(), PROJ_DIM, KEY, kind)), TOLERANCE)

    bound = context.ceilings.gemm_bound(2.0 * batch * GRAD_DIM * PROJ_DIM)
    peers: dict[str, Call] = {}
    peer_error = None
    try:
        from trak.projectors import BasicProjector
    except ImportError as error:
        row.note = f"traker absent: {error}"
    else:
        make = _maker(BasicProjector, kind, context.device)
        if kind not in block_sizes:
            block_sizes[kind] = _best_block_size(make, head)
        peer_error = _peer_error(make(CHECKED_DIM, block_sizes[kind]), head)
        peers = _peers(make, grads, block_sizes[kind], keep=batch == 8)
    measure(
        row, lambda: ops.project_(features, grads, key=KEY, kind=kind), effort=context.effort, bound=bound, peers=peers
    )
    for ratio in row.ratios:
        ratio.error = peer_error
    if row.ratios and kind == "rademacher" and context.device.type == "cpu":
        row.goal = Goal("speedup over traker", ">=", GOAL_SPEEDUP, row.ratios[0].value.median)


Maker = Callable[[int, int], Any]


def _maker(projector_class: Any, kind: str, device: torch.device) -> Maker:
    def make(grad_dim: int, block_size: int) -> Any:
        return projector_class(
            grad_dim=grad_dim, proj_dim=PROJ_DIM, seed=SEED, proj_type=kind, device=device, block_size=block_size
        )

    return make


def _best_block_size(make: Maker, grads: Tensor) -> int:
    """Return the fastest of traker's block sizes that do not keep the matrix, which no model's would fit."""
    projectors = {size: make(CHECKED_DIM, size) for size in (32, 100, 512, 2048)}
    calls: dict[str, Call] = {str(size): partial(p.project, grads, 0) for size, p in projectors.items()}
    timings = interleave(calls, grads.device, budget=0, rounds=(2, 2))
    return min(projectors, key=lambda size: timings.of(str(size)).median)


def _peers(make: Maker, grads: Tensor, block_size: int, *, keep: bool) -> dict[str, Call]:
    """Return traker's projections by name.

    With a single block traker keeps the matrix, 4 * grad_dim * proj_dim bytes, and only multiplies. That is fast and
    fits no real model (73 GB for one of 4.4M parameters), but it belongs in the picture.
    """
    projector = make(GRAD_DIM, block_size)
    peers: dict[str, Call] = {f"traker BasicProjector(block_size={block_size})": lambda: projector.project(grads, 0)}
    if keep:
        kept = make(GRAD_DIM, PROJ_DIM)
        peers[f"traker with its {4 * GRAD_DIM * PROJ_DIM >> 20} MiB matrix stored"] = lambda: kept.project(grads, 0)
    return peers


def _peer_error(projector: Any, grads: Tensor) -> float:
    """Return traker's error against float64 with the matrix that it drew."""
    blocks = []
    for state in projector.generator_states:
        projector.generate_sketch_matrix(state)
        blocks.append(grads.double() @ projector.proj_matrix.double())
    expected = torch.cat(blocks, 1)[:, :PROJ_DIM]
    return relative_error(projector.project(grads, 0), expected)
