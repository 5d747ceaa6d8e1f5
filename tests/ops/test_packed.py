"""Rows in few bits and products with them, against their reference."""

from __future__ import annotations

import pytest
import torch
from cases import DEVICES, integers, randn
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from journey import ops
from journey.ops import reference_packed as reference

BITS = pytest.mark.parametrize("bits", [8, 4])
ON_EVERY_DEVICE = pytest.mark.parametrize("device", DEVICES)


@st.composite
def some_rows(draw: st.DrawFn) -> Tensor:
    """Rows of normals, some of them zero, sparse, with a heavy tail or of very large or small scale."""
    num_rows, proj_dim = draw(st.integers(0, 5)), 32 * draw(st.integers(1, 7))
    rows = randn(num_rows, proj_dim, seed=draw(st.integers(0, 1000)))
    for row in rows:
        row *= 2.0 ** draw(st.integers(-120, 100))
        kind = draw(st.sampled_from(["normal", "zero", "sparse", "heavy", "flat"]))
        if kind == "zero":
            row.zero_()
        elif kind == "sparse":
            row[1:] = 0.0
        elif kind == "heavy":
            row[: proj_dim // 8] *= 20
        elif kind == "flat":
            row.copy_(row.abs().amax() * row.sign())
    return rows


def products(queries: Tensor, packed: Tensor, scales: Tensor, bits: int) -> Tensor:
    """The compiled products into memory that held NaN. [num_queries, num_rows]."""
    out = torch.full((len(queries), len(packed)), torch.nan, device=packed.device)
    assert ops.packed_products_(out, queries, packed, scales, bits) is None
    return out


# -------------------------------------------------------------------------------------------------- rows


@ON_EVERY_DEVICE
@BITS
@given(rows=some_rows())
def test_codes_and_scales_have_the_bits_of_the_reference(rows, bits, device):
    packed, scales = ops.pack_rows(rows.to(device), bits)
    expected = reference.pack_rows(rows, bits)
    assert torch.equal(packed.cpu(), expected[0])
    assert torch.equal(scales.cpu(), expected[1])
    unpacked = ops.unpack_rows(packed, scales, bits)
    assert torch.equal(unpacked.cpu().double(), reference.unpack_rows(*expected, bits)), "a product was rounded"


@BITS
@given(rows=some_rows())
def test_packing_what_was_unpacked_changes_nothing(rows, bits):
    packed, scales = ops.pack_rows(rows, bits)
    again = ops.pack_rows(ops.unpack_rows(packed, scales, bits), bits)
    assert torch.equal(again[0], packed)
    assert torch.equal(again[1], scales)


@given(rows=some_rows())
def test_an_entry_of_8_bits_is_off_by_at_most_half_a_scale(rows):
    packed, scales = ops.pack_rows(rows)
    error = (ops.unpack_rows(packed, scales).double() - rows).abs()
    zero = scales == 0
    assert torch.all(rows[zero].abs() < 128 * 2.0**-100)
    # A scale is cut to 17 bits, an entry times its reciprocal rounded: together less than 2^-9 of a scale.
    assert torch.all(error[~zero] <= (0.5 + 2.0**-9) * scales[~zero].double().unsqueeze(1))


@given(rows=some_rows())
def test_4_bits_choose_the_clip_of_least_squared_error(rows):
    packed, scales = ops.pack_rows(rows, 4)
    found = (ops.unpack_rows(packed, scales, 4).double() - rows).square().sum(1)
    largest = rows.double().abs().amax(1)
    for clip in reference.CLIPS:
        scale = (largest * clip / 7).unsqueeze(1)
        codes = (rows / scale.clamp(min=2.0**-140)).clamp(-7, 7).round()
        error = (codes * scale - rows).square().sum(1)
        # Sums are in float32 and scales cut to 17 bits; of an error of nothing but rounding nothing is known.
        slack = 1e-4 * error + rows.shape[1] * (2.0**-16 * largest).square()
        assert torch.all((found <= error + slack) | (scales == 0))


def test_a_heavy_tail_is_clipped_in_4_bits_and_an_even_row_is_not():
    heavy, flat = randn(1, 4096), randn(1, 4096).sign()
    heavy[0, 0] = 40.0
    assert ops.pack_rows(heavy, 4)[1].item() < 0.4 * 40 / 7
    assert ops.pack_rows(flat, 4)[1].item() == pytest.approx(1 / 7, rel=2.0**-16)


@BITS
@ON_EVERY_DEVICE
def test_a_row_does_not_depend_on_those_beside_it_nor_on_how_it_lies(bits, device):
    rows = randn(45, 224).to(device)
    whole = ops.pack_rows(rows, bits)
    for part in (slice(0, 1), slice(1, 20), slice(20, 45), slice(3, 45, 5)):
        for found, expected in zip(ops.pack_rows(rows[part], bits), whole, strict=True):
            assert torch.equal(found, expected[part])
    for view in (torch.nn.functional.pad(rows, (3, 2))[:, 3:-2], rows.T.contiguous().T):
        assert all(map(torch.equal, ops.pack_rows(view, bits), whole))


@BITS
def test_neither_rows_nor_products_depend_on_the_number_of_threads(bits, threads):
    rows, queries, found = randn(500, 1024), randn(9, 1024, seed=1), []
    for count in (1, 2, 5):
        threads(count)
        packed, scales = ops.pack_rows(rows, bits)
        found.append((packed, scales, products(queries, packed, scales, bits)))
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


def test_two_entries_share_a_byte_as_documented():
    rows = torch.zeros(1, 64)
    rows[0, 0], rows[0, 16], rows[0, 33], rows[0, 49] = 7.0, -7.0, 2.0, 1.0
    packed, scales = ops.pack_rows(rows, 4)
    assert scales.item() == 1.0
    assert packed[0].nonzero().flatten().tolist() == [0, 17]
    assert packed[0, [0, 17]].tolist() == [0x97, 0x12]


@BITS
@ON_EVERY_DEVICE
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_rows_that_are_not_finite_are_refused_by_number(value, bits, device):
    rows = randn(20, 96)
    rows[13, 95], rows[17, 0] = value, value
    with pytest.raises(ValueError, match="rows must be finite, got NaN or infinity in row 13"):
        ops.pack_rows(rows.to(device), bits)


@pytest.mark.parametrize("value", [torch.finfo(torch.float32).max, 1e-45, 2.0**-100, 127 * 2.0**-100, 7 * 2.0**-100])
@BITS
def test_the_ends_of_the_range_of_floats_are_packed(value, bits):
    rows = torch.full((1, 32), value)
    packed, scales = ops.pack_rows(rows, bits)
    unpacked = ops.unpack_rows(packed, scales, bits)
    assert unpacked.isfinite().all()
    assert torch.allclose(unpacked, rows, rtol=2.0**-15, atol=128 * 2.0**-100)
    assert all(map(torch.equal, ops.pack_rows(unpacked, bits), (packed, scales)))


# ---------------------------------------------------------------------------------------------- products


@ON_EVERY_DEVICE
@BITS
@pytest.mark.parametrize("num_queries", [0, 1, 2, 3, 4, 5, 8, 9, 17])
@pytest.mark.parametrize(("num_rows", "proj_dim"), [(0, 32), (1, 32), (2, 96), (3, 512), (4, 544), (100, 1056)])
def test_products_are_exact_where_sums_are(num_rows, proj_dim, num_queries, bits, device):
    packed, _ = reference.pack_rows(randn(num_rows, proj_dim), bits)
    scales, queries = 2.0 ** torch.arange(num_rows).remainder(7), integers(num_queries, proj_dim)
    found = products(queries.to(device), packed.to(device), scales.to(device), bits)
    assert torch.equal(found.cpu().double(), reference.packed_products(queries, packed, scales, bits))


@ON_EVERY_DEVICE
@BITS
@given(
    num_rows=st.integers(1, 9), blocks=st.integers(1, 130), num_queries=st.integers(1, 10), seed=st.integers(0, 1000)
)
def test_products_err_at_most_as_promised(num_rows, blocks, num_queries, seed, bits, device):
    proj_dim = 32 * blocks
    queries = randn(num_queries, proj_dim, seed=seed)
    packed, scales = ops.pack_rows(1 + randn(num_rows, proj_dim, seed=seed + 1), bits)
    rows = reference.unpack_rows(packed, scales, bits)
    found = products(queries.to(device), packed.to(device), scales.to(device), bits).cpu()
    error = (found - reference.packed_products(queries, packed, scales, bits)).abs()
    promised = (proj_dim / 8 + 40) * 2.0**-24
    assert torch.all(error <= promised * (queries.double().abs() @ rows.abs().T))


@ON_EVERY_DEVICE
@BITS
def test_nothing_beside_a_row_and_a_query_changes_a_bit_of_their_product(bits, device):
    queries = randn(17, 1120).to(device)
    packed, scales = ops.pack_rows(randn(301, 1120, seed=1).to(device), bits)
    whole = products(queries, packed, scales, bits)
    for rows in (slice(0, 1), slice(1, 98), slice(98, 301), slice(7, 301, 3)):
        assert torch.equal(products(queries, packed[rows], scales[rows], bits), whole[:, rows])
    for some in (slice(0, 1), slice(1, 3), slice(3, 16), slice(16, 17), slice(0, 17, 2)):
        assert torch.equal(products(queries[some], packed, scales, bits), whole[some])


@ON_EVERY_DEVICE
@BITS
def test_products_are_read_and_written_through_strides(bits, device):
    queries, (packed, scales) = integers(6, 96).to(device), ops.pack_rows(randn(20, 96).to(device), bits)
    expected = products(queries, packed, scales, bits)
    buffer = torch.full((6, 50), torch.nan, device=device)
    ops.packed_products_(buffer[:, 11:31], queries, packed, scales, bits)
    assert torch.equal(buffer[:, 11:31], expected)
    assert buffer[:, :11].isnan().all()
    assert buffer[:, 31:].isnan().all()
    wide = torch.nn.functional.pad(packed, (1, 3))[:, 1:-3]
    spread = torch.stack([scales, scales + 1], 1)[:, 0]
    for some in (queries, queries.T.contiguous().T, torch.nn.functional.pad(queries, (1, 1))[:, 1:-1]):
        assert torch.equal(products(some, wide, spread, bits), expected)
    every_other = packed.repeat_interleave(2, 0)[::2]
    assert torch.equal(products(queries, every_other, scales, bits), expected)


@ON_EVERY_DEVICE
@BITS
def test_nan_in_a_query_shows_in_its_products_alone(bits, device):
    queries, (packed, scales) = integers(10, 96).to(device), ops.pack_rows(randn(20, 96).to(device), bits)
    clean = products(queries, packed, scales, bits)
    queries[3, 5] = torch.nan
    found = products(queries, packed, scales, bits)
    assert found[3].isnan().all()
    rest = torch.arange(10) != 3
    assert torch.equal(found[rest], clean[rest])
