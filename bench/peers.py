"""Other packages, each an optional peer: what it computes, or why it is absent."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from bench.case import PROJ_DIM, SEED
from bench.harness import Call, Row

BATCH_OF_FAST_JL = 32  # rows for which it draws its matrix once


class AbsentPeerError(Exception):
    """A peer that cannot be measured here; the message names it and says why."""


def add_peer(row: Row, peers: dict[str, Call], name: str, make: Callable[[], Call]) -> None:
    """Add a peer to those of a row, or note in the row why it is absent.

    Args:
        row: Gets the note.
        peers: Gets the call.
        name: Of the peer.
        make: Returns its call, or raises ``AbsentPeerError``.
    """
    try:
        peers[name] = make()
    except AbsentPeerError as error:
        row.note = f"{row.note}; {error}" if row.note else str(error)


def basic_projector(grad_dim: int, block_size: int, kind: str, device: torch.device, proj_dim: int = PROJ_DIM) -> Any:
    """Return traker's projector that draws a block of columns of the matrix at a time."""
    try:
        from trak.projectors import BasicProjector
    except ImportError as error:
        raise AbsentPeerError(f"traker absent: {error}") from error
    return BasicProjector(
        grad_dim=grad_dim, proj_dim=proj_dim, seed=SEED, proj_type=kind, device=device, block_size=block_size
    )


def dattri_projector(grads: Tensor, block_size: int, kind: str) -> Call:
    """Return the projection of ``grads`` by dattri's projector for the CPU. [batch, grad_dim]"""
    try:
        from dattri.func.projection import BasicProjector
    except ImportError as error:
        raise AbsentPeerError(f"dattri absent: {error}") from error
    projector = BasicProjector(grads.shape[1], PROJ_DIM, SEED, kind, grads.device, block_size)
    return lambda: projector.project(grads, 0)


def fast_jl(grads: Tensor, kind: str) -> Call:
    """Return the projection of ``grads`` by traker's CUDA kernels. [batch, grad_dim]"""
    try:
        import fast_jl  # noqa: F401
        from trak.projectors import CudaProjector
    except ImportError as error:
        reason = "it builds for CUDA only and asks nvcc for compute_70, which CUDA 13 has no more"
        raise AbsentPeerError(f"fast_jl absent: {error}; {reason}") from error
    if grads.device.type != "cuda":
        raise AbsentPeerError("fast_jl absent: it projects on CUDA only")
    projector = CudaProjector(grads.shape[1], PROJ_DIM, SEED, kind, grads.device, max_batch_size=BATCH_OF_FAST_JL)
    return lambda: projector.project(grads, 0)


def sjlt(grad_dim: int, device: torch.device) -> Callable[[Tensor], object]:
    """Return the sparse projection of the package sjlt, one non-zero per entry, of [batch, grad_dim]."""
    try:
        from sjlt import SJLTProjection
    except ImportError as error:
        raise AbsentPeerError(f"sjlt absent: {error}; its build needs torch and nvcc") from error
    if device.type != "cuda":
        raise AbsentPeerError("sjlt absent: it projects on CUDA only")
    try:
        projection: Callable[[Tensor], object] = SJLTProjection(grad_dim, PROJ_DIM, device=device)
    except RuntimeError as error:
        raise AbsentPeerError(f"sjlt absent: {error}") from error
    return projection


def faiss_search(blocks: Iterable[Tensor], queries: Tensor, bits: int, top: int, num_threads: int) -> Call:
    """Return a search of rows that FAISS has quantised with as many bits, a range of its own for each column."""
    try:
        import faiss
    except ImportError as error:
        raise AbsentPeerError(f"faiss-cpu absent: {error}") from error
    faiss.omp_set_num_threads(num_threads)
    quantizer = faiss.ScalarQuantizer.QT_8bit if bits == 8 else faiss.ScalarQuantizer.QT_4bit
    index = faiss.IndexScalarQuantizer(queries.shape[1], quantizer, faiss.METRIC_INNER_PRODUCT)
    for block in blocks:
        if not index.is_trained:
            index.train(block.numpy())
        index.add(block.numpy())
    given = queries.numpy()
    return lambda: index.search(given, top)
