"""Packing rows of features, products with packed rows, and the largest of them: bound by reading the rows once."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bench.case import PROJ_DIM, Case, Context
from bench.harness import Call, Row, checked, measure, relative_error
from bench.machine import ColdSlices
from bench.ops.top_rows import compare, made_rows
from journey import ops
from journey.ops import reference_packed as reference

NUM_QUERIES = (1, 8, 16)
TOP_QUERIES, TOP = 16, 100

# Sums of 4096 products in float32, sixteen at a time.
TOLERANCE = 1e-6


def cases(context: Context) -> Iterator[Case]:
    """Yield the cases: packing in 8 and 4 bits, products with 1, 8 and 16 queries, and a search for the largest."""
    rows = 4096 if context.quick else 16_384
    for bits in reference.LARGEST:

        def pack(row: Row, bits: int = bits) -> None:
            _pack(row, context, rows, bits)

        yield Case("pack_rows", f"{rows}x{PROJ_DIM} float32 -> {bits} bits", pack)
    for bits in reference.LARGEST:
        for num_queries in NUM_QUERIES:

            def multiply(row: Row, bits: int = bits, num_queries: int = num_queries) -> None:
                _multiply(row, context, 2 * rows, bits, num_queries)

            yield Case("packed_products", f"{num_queries} x {2 * rows}x{PROJ_DIM} in {bits} bits", multiply)
    if context.device.type == "cpu":
        for bits in reference.LARGEST:

            def search(row: Row, bits: int = bits) -> None:
                compare(row, made_rows(2 * rows, PROJ_DIM, TOP_QUERIES), bits, TOP, context.effort, context.ceilings)

            yield Case("top rows", f"{TOP} for {TOP_QUERIES} queries of {2 * rows}x{PROJ_DIM} in {bits} bits", search)


def _pack(row: Row, context: Context, num_rows: int, bits: int) -> None:
    cold = ColdSlices((num_rows, PROJ_DIM), torch.float32, context.device)
    some = cold.slices[0][:64]
    expected = reference.pack_rows(some.cpu(), bits)
    packed, scales = ops.pack_rows(some, bits)
    same = torch.equal(packed.cpu(), expected[0]) and torch.equal(scales.cpu(), expected[1])
    row.error = checked(0.0 if same else 1.0, 0.0)
    bound = context.ceilings.read_bound(cold)._replace(work=cold.slice_bytes, probe_work=cold.slice_bytes)
    peers: dict[str, Call] = {}
    if bits == 8:

        def eager() -> object:
            given = next(cold)
            scale = given.abs().amax(1, keepdim=True) / 127
            return (given / scale).round().to(torch.int8)

        peers["abs, amax, divide, round and convert in torch"] = eager
    measure(row, lambda: ops.pack_rows(next(cold), bits), effort=context.effort, bound=bound, peers=peers)


def _multiply(row: Row, context: Context, num_rows: int, bits: int, num_queries: int) -> None:
    queries, rows = context.randn(num_queries, PROJ_DIM, seed=1), context.randn(num_rows, PROJ_DIM)
    packed, scales = ops.pack_rows(rows, bits)
    out = context.zeros(num_queries, num_rows)
    ops.packed_products_(out, queries, packed, scales, bits)
    some = slice(0, 256)
    expected = reference.packed_products(queries.cpu(), packed[some].cpu(), scales[some].cpu(), bits)
    row.error = checked(relative_error(out[:, some], expected), TOLERANCE)
    cold = ColdSlices(tuple(packed.shape), torch.int8, context.device)
    for copy in cold.slices:
        copy.copy_(packed.view(torch.int8))

    def multiply() -> None:
        ops.packed_products_(out, queries, next(cold).view(packed.dtype), scales, bits)

    wide = ops.unpack_rows(packed, scales, bits)
    product = torch.empty_like(out)
    bound = context.ceilings.read_bound(cold)._replace(work=cold.slice_bytes, probe_work=cold.slice_bytes)
    peers = {"queries @ rows.T of the unpacked rows": lambda: torch.mm(queries, wide.T, out=product)}
    measure(row, multiply, effort=context.effort, bound=bound, peers=peers)
