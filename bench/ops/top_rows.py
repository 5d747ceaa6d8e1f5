"""The rows with the largest products, of many: packed rows beside the scalar quantiser of FAISS with as many bits.

``python -m bench.ops.top_rows`` makes rows with a few strong directions and noise; ``--rows FILE.safetensors`` takes
the float tensor ``rows`` of a file instead, and ``queries`` or, without it, the last rows as queries. Both sides search
the same rows with the same threads, and recall is against the float32 products of the rows before they were packed.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.case import PROJ_DIM, SEED
from bench.harness import FULL, Bound, Call, Effort, Row, line, measure
from bench.machine import Ceilings, flat, measure_ceilings
from bench.peers import add_peer, faiss_search
from journey import ops

BLOCK = 8192  # rows whose products are held at once
RANK = 64  # strong directions of rows that are made


class Rows(NamedTuple):
    """Rows to search, a block at a time, so that they need not fit in memory as floats.

    Args:
        num_rows: How many.
        blocks: Yields them, float32. Each [at most BLOCK, proj_dim]
        queries: What to search for, float32. [num_queries, proj_dim]
    """

    num_rows: int
    blocks: Callable[[], Iterator[Tensor]]
    queries: Tensor


def made_rows(num_rows: int, proj_dim: int, num_queries: int) -> Rows:
    """Return rows with ``RANK`` directions of falling strength and as much noise, the same in every run."""
    generator = torch.Generator().manual_seed(SEED)
    strengths = torch.arange(1, RANK + 1).rsqrt().unsqueeze(1)
    directions = strengths * torch.randn(RANK, proj_dim, generator=generator)

    def make(count: int, seed: int) -> Tensor:
        own = torch.Generator().manual_seed(seed)
        shared = torch.randn(count, RANK, generator=own) @ directions
        return shared.add_(torch.randn(count, proj_dim, generator=own), alpha=float(strengths.norm()))

    def blocks() -> Iterator[Tensor]:
        for begin in range(0, num_rows, BLOCK):
            yield make(min(BLOCK, num_rows - begin), SEED + 1 + begin)

    return Rows(num_rows, blocks, make(num_queries, SEED + 1 + num_rows))


def read_rows(path: Path, num_queries: int) -> Rows:
    """Return the rows and the queries of a safetensors file."""
    from safetensors.torch import load_file

    tensors = load_file(path)
    rows = tensors["rows"].float()
    queries = tensors.get("queries")
    if queries is None:
        rows, queries = rows[:-num_queries], rows[-num_queries:]
    return Rows(len(rows), lambda: iter(rows.split(BLOCK)), queries[:num_queries].float())


def top_rows(queries: Tensor, packed: Tensor, scales: Tensor, bits: int, top: int) -> tuple[Tensor, Tensor]:
    """Return the largest products of each query and their rows' numbers. [num_queries, top], [num_queries, top]"""
    scores = torch.empty(len(queries), BLOCK, dtype=torch.float32, device=queries.device)
    values, numbers = [], []
    for begin in range(0, len(packed), BLOCK):
        rows = slice(begin, min(begin + BLOCK, len(packed)))
        block = scores[:, : rows.stop - begin]
        ops.packed_products_(block, queries, packed[rows], scales[rows], bits)
        found = block.topk(min(top, block.shape[1]))
        values.append(found.values)
        numbers.append(found.indices + begin)
    best = torch.cat(values, 1).topk(top)
    return best.values, torch.cat(numbers, 1).gather(1, best.indices)


def compare(row: Row, rows: Rows, bits: int, top: int, effort: Effort, ceilings: Ceilings) -> None:
    """Time both searches of the same rows and note what share of the float32 winners each finds."""
    proj_dim = rows.queries.shape[1]
    dtype = torch.int8 if bits == 8 else torch.uint8
    packed = torch.empty(rows.num_rows, proj_dim * bits // 8, dtype=dtype, device="cpu")
    scales = torch.empty(rows.num_rows, dtype=torch.float32, device="cpu")
    exact = torch.empty(len(rows.queries), rows.num_rows, dtype=torch.float32, device="cpu")
    begin = 0
    for block in rows.blocks():
        span = slice(begin, begin + len(block))
        packed[span], scales[span] = ops.pack_rows(block, bits)
        torch.mm(rows.queries, block.T, out=exact[:, span])
        begin = span.stop
    winners = exact.topk(top).indices
    row.note = f"recall {_recall(top_rows(rows.queries, packed, scales, bits, top)[1], winners):.4f}"

    peers: dict[str, Call] = {}
    add_peer(row, peers, "FAISS", lambda: faiss_search(rows.blocks(), rows.queries, bits, top, torch.get_num_threads()))
    for name, search in peers.items():
        row.note += f", {name} {_recall(torch.as_tensor(_numbers(search())), winners):.4f}"
    chunk = flat(packed)
    bound = Bound("read bandwidth", chunk.nbytes, lambda: ceilings.reader(chunk), chunk.nbytes)
    measure(
        row,
        lambda: top_rows(rows.queries, packed, scales, bits, top),
        effort=effort,
        bound=bound,
        peers=peers,
    )


def main(arguments: list[str] | None = None) -> None:
    """Run what the command line asks for.

    Args:
        arguments: Instead of the command line's.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    fitting = min(1_000_000, memory // (4 * PROJ_DIM))  # ours, FAISS's, and room for blocks and products
    parser = argparse.ArgumentParser(prog="python -m bench.ops.top_rows", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=Path, help="a safetensors file, instead of rows that are made")
    parser.add_argument("--num-rows", type=int, default=fitting, help=f"how many are made (default: {fitting})")
    parser.add_argument("--queries", type=int, default=16, help="how many (default: 16)")
    parser.add_argument("--top", type=int, default=100, help="how many rows of each query (default: 100)")
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 4], choices=[8, 4], help="of a code (default: 8 4)")
    parser.add_argument("--threads", type=int, default=2, help="of both sides (default: 2)")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (default: 5)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    ceilings, _ = measure_ceilings(torch.device("cpu"), Effort(1.0, (2, 3)))
    effort = Effort(FULL.budget, (options.rounds, options.rounds))
    for bits in options.bits:
        if options.rows is None:
            rows = made_rows(options.num_rows, PROJ_DIM, options.queries)
        else:
            rows = read_rows(options.rows, options.queries)
        sizes = f"{options.top} for {options.queries} queries of {rows.num_rows}x{rows.queries.shape[1]} in {bits} bits"
        row = Row("top rows", sizes, "cpu")
        compare(row, rows, bits, options.top, effort, ceilings)
        print(line(row), flush=True)


def _numbers(found: Any) -> Any:
    """Row numbers of what a search of FAISS returns, products and numbers."""
    return found[1]


def _recall(found: Tensor, winners: Tensor) -> float:
    """Mean share of the winners that were found."""
    hits = (found.unsqueeze(2) == winners.unsqueeze(1)).any(1)
    return float(hits.float().mean())


if __name__ == "__main__":
    main()
