"""The count sketch against its reference, and the properties that attribution relies on."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from cases import (
    DEVICES,
    DTYPES,
    HIGH_KEY,
    KEY,
    KEYS,
    MATRICES,
    assert_as_exact_as_torch,
    assert_estimates,
    integers,
    randn,
    unit_pair,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from journey import ops
from journey.ops import reference

PROJ_DIMS = [32, 96, 1024]  # one bucket row, a number of rows that is no power of two, a common size


def sketch(grads: Tensor, proj_dim: int, key: int = KEY, **options: int) -> Tensor:
    """The compiled sketch into fresh zeros on the device of ``grads``. [batch, proj_dim]."""
    features = torch.zeros(grads.shape[0], proj_dim, device=grads.device)
    ops.sketch_(features, grads, key=key, **options)
    return features


def plain_sketch(grads: Tensor, proj_dim: int, key: int, nnz: int = 1) -> Tensor:
    """The sketch as plain torch float32 does it: the yardstick of rounding. [batch, proj_dim]."""
    batch, rows, cols = grads.shape
    features = torch.zeros(batch, proj_dim)
    for repetition in range(nnz):
        bucket, sign = reference.sketch_map(key, rows, cols, proj_dim, repetition)
        features.index_add_(1, bucket.flatten(), (grads.float() * sign.float()).reshape(batch, rows * cols))
    return features / math.sqrt(nnz)


def estimate_variance(x: Tensor, y: Tensor, proj_dim: int, nnz: int) -> float:
    """Exact variance of the sketched inner product of two matrices, float64. [rows, cols], [rows, cols].

    With signs that are independent, each unordered pair of entries (i, j) adds (x_i y_j + x_j y_i)^2 times the
    probability that i and j collide: 0 within a tile and 1 / proj_dim otherwise. Two different ones of the nnz maps
    collide anywhere, also within a tile and at i = j.
    """

    def pairs(u: Tensor, v: Tensor) -> Tensor:
        return u.square().sum() * v.square().sum() + (u * v).sum() ** 2 - 2 * (u.square() * v.square()).sum()

    tile_rows = proj_dim // 32
    inside = sum(
        pairs(u, v)
        for x_rows, y_rows in zip(x.split(tile_rows), y.split(tile_rows), strict=True)
        for u, v in zip(x_rows.split(32, dim=1), y_rows.split(32, dim=1), strict=True)
    )
    one_map = (pairs(x, y) - inside) / proj_dim
    two_maps = (x.square().sum() * y.square().sum() + (x * y).sum() ** 2) / proj_dim
    return float((one_map + (nnz - 1) * two_maps) / nnz)


# -------------------------------------------------------------------------------------------- reference


@pytest.mark.parametrize("device", DEVICES)
@given(
    key=KEYS,
    rows=st.integers(1, 24),
    cols=st.integers(1, 70),
    bucket_rows=st.integers(1, 40),
    row_begin=st.sampled_from([0, 0, 1, 31, 10**6, 2**31 - 5, 2**45 + 3]),
)
def test_every_entry_has_the_bucket_and_the_sign_of_the_reference(key, rows, cols, bucket_rows, row_begin, device):
    one_hot = torch.eye(rows * cols).reshape(-1, rows, cols).to(device)
    actual = sketch(one_hot, 32 * bucket_rows, key, row_begin=row_begin)
    expected = reference.sketch_matrix(key, rows, cols, 32 * bucket_rows, row_begin=row_begin)
    assert torch.equal(actual.cpu().double(), expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("proj_dim", PROJ_DIMS)
@pytest.mark.parametrize(("rows", "cols"), MATRICES)
def test_matches_the_reference_as_exactly_as_torch(rows, cols, proj_dim, dtype, device):
    for batch, nnz in [(0, 1), (1, 1), (3, 1), (2, 3)]:
        grads = randn(batch, rows, cols, dtype=dtype)
        actual = sketch(grads.to(device), proj_dim, HIGH_KEY, nnz=nnz)
        plain = plain_sketch(grads, proj_dim, HIGH_KEY, nnz)
        assert_as_exact_as_torch(actual, plain, reference.sketch(grads, proj_dim, HIGH_KEY, nnz))


@pytest.mark.parametrize("device", DEVICES)
def test_long_sums_stay_as_exact_as_torch(device):
    grads = 1 + randn(1, 307, 1501)  # a mean far from zero, 14,400 terms in each bucket, more than one segment
    expected = reference.sketch(grads, 32, KEY)
    assert_as_exact_as_torch(sketch(grads.to(device), 32), plain_sketch(grads, 32, KEY), expected)


@pytest.mark.parametrize("device", DEVICES)
def test_reads_through_any_strides(device):
    base = integers(12, 66, 74).to(device)
    views = {
        "transposed": base.transpose(1, 2),
        "every other sample": base[::2],
        "every other row": base[:, ::2],
        "every other column": base[:, :, ::2],
        "a window": base[2:7, 3:40, 5:38],
        "a permuted batch": base.permute(2, 0, 1)[:9],
        "one sample seen several times": base[:1].expand(5, -1, -1),
        "one row seen several times": base[:, :1].expand(-1, 33, -1),
    }
    for what, view in views.items():
        assert torch.equal(sketch(view, 96), sketch(view.contiguous(), 96)), what


# ------------------------------------------------------------------------------------------- properties


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("rows", "cols"), [(1, 4099), (33, 65), (131, 37), (300, 1003)])
def test_does_not_depend_on_the_batch(rows, cols, device):
    grads = randn(9, rows, cols).to(device)
    whole = sketch(grads, 96, nnz=2)
    for split in (1, 2, 4, 7):
        parts = [sketch(part, 96, nnz=2) for part in grads.split(split)]
        assert torch.equal(whole, torch.cat(parts)), f"batches of {split}"
    order = torch.tensor([3, 8, 0, 5, 1, 7, 2, 6, 4], device=device)
    assert torch.equal(sketch(grads[order], 96, nnz=2), whole[order])


@pytest.mark.parametrize(("batch", "rows", "cols"), [(1, 1201, 2003), (2, 64, 9000), (13, 70, 70), (3, 1, 100_003)])
def test_does_not_depend_on_the_number_of_threads(batch, rows, cols, threads):
    grads = randn(batch, rows, cols)
    results = []
    for count in (1, 2, 3, 8):
        threads(count)
        results.append(sketch(grads, 128, nnz=2))
    assert all(torch.equal(result, results[0]) for result in results[1:])


@pytest.mark.cuda
def test_both_devices_agree_on_the_map_and_to_rounding_on_sums():
    grads = integers(3, 200, 300)
    assert torch.equal(sketch(grads, 1024), sketch(grads.cuda(), 1024).cpu())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("nnz", [1, 4])  # dividing by sqrt(nnz) is exact
def test_is_linear(nnz, device):
    x, y = integers(2, 40, 75, seed=1).to(device), integers(2, 40, 75, seed=2).to(device)
    combined = sketch(2 * x - 3 * y, 96, nnz=nnz)
    assert torch.equal(combined, 2 * sketch(x, 96, nnz=nnz) - 3 * sketch(y, 96, nnz=nnz))


@pytest.mark.parametrize("device", DEVICES)
def test_adds_to_what_the_features_hold(device):
    grads, before = integers(3, 40, 75).to(device), integers(3, 96, seed=5).to(device)
    features = before.clone()
    assert ops.sketch_(features, grads, key=KEY) is None
    assert torch.equal(features, before + sketch(grads, 96))


@pytest.mark.parametrize("device", DEVICES)
def test_writes_nothing_outside_the_given_features(device):
    buffer = torch.full((5, 160), 7.0, device=device)
    expected = buffer.clone()
    grads = integers(3, 40, 75).to(device)
    ops.sketch_(buffer[1:4, 32:128], grads, key=KEY)
    expected[1:4, 32:128] += sketch(grads, 96)
    assert torch.equal(buffer, expected)


@pytest.mark.parametrize("device", DEVICES)
@given(
    key=KEYS,
    rows=st.integers(0, 80),
    cols=st.integers(0, 70),
    nnz=st.sampled_from([1, 4]),
    cuts=st.lists(st.integers(0, 80), max_size=4),
)
def test_pieces_of_rows_add_up_to_the_whole(key, rows, cols, nnz, cuts, device):
    grads = integers(2, rows, cols).to(device)
    edges = sorted({0, rows, *(min(cut, rows) for cut in cuts)})
    pieces = torch.zeros(2, 96, device=device)
    for begin, end in itertools.pairwise(edges):
        ops.sketch_(pieces, grads[:, begin:end], key=key, row_begin=begin, nnz=nnz)
    assert torch.equal(pieces, sketch(grads, 96, key, nnz=nnz))


@pytest.mark.parametrize("device", DEVICES)
def test_subsets_of_layers_add_up_to_the_whole(device):
    layers = [(KEY + i, integers(2, *shape, seed=i)) for i, shape in enumerate([(40, 75), (1, 40), (64, 9), (3, 3)])]

    def total(subset: list[tuple[int, Tensor]]) -> Tensor:
        features = torch.zeros(2, 96, device=device)
        for key, grads in subset:
            ops.sketch_(features, grads.to(device), key=key)
        return features

    for cut in range(len(layers) + 1):
        assert torch.equal(total(layers[:cut]) + total(layers[cut:]), total(layers))
    matrix = torch.cat([reference.sketch_matrix(key, *grads.shape[1:], 96) for key, grads in layers])
    assert torch.equal(total(layers).cpu().double(), torch.cat([g.flatten(1) for _, g in layers], 1).double() @ matrix)


@pytest.mark.parametrize("nnz", [1, 3])
@pytest.mark.parametrize(("rows", "cols", "proj_dim"), [(64, 96, 512), (33, 70, 1024), (300, 1, 64), (1, 900, 32)])
@pytest.mark.parametrize("related", [False, True])
def test_preserves_inner_products_in_expectation_with_the_variance_of_theory(
    rows, cols, proj_dim, nnz, related, threads
):
    threads(1)  # many tiny calls
    x, y = unit_pair(rows, cols, related=related)
    estimates = torch.tensor(
        [sketch(torch.stack([x, y]), proj_dim, key, nnz=nnz).double().prod(0).sum() for key in range(800)]
    )
    variance = estimate_variance(x.double(), y.double(), proj_dim, nnz)
    assert_estimates(estimates, (x.double() * y.double()).sum().item(), variance, f"nnz {nnz}")


def test_cosines_of_many_tiles_err_by_one_over_the_root_of_proj_dim(threads):
    threads(1)  # many tiny calls
    x, y = (randn(128, 288, seed=s) for s in (1, 2))
    x, y = x / x.norm(), y / y.norm()
    sketches = [sketch(torch.stack([x, y]), 256, key).double() for key in range(400)]
    errors = torch.stack([s.prod(0).sum() for s in sketches]) - (x.double() * y.double()).sum()
    assert 0.85 < errors.square().mean().sqrt() * math.sqrt(256) < 1.15


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_shows_in_its_own_bucket_alone(bad, device):
    grads = integers(3, 40, 75)
    clean = sketch(grads.to(device), 96).cpu()
    grads[1, 17, 53] = bad
    actual = sketch(grads.to(device), 96).cpu()
    bucket = reference.sketch_map(KEY, 40, 75, 96)[0][17, 53]
    assert not actual[1, bucket].isfinite()
    actual[1, bucket] = clean[1, bucket]
    assert torch.equal(actual, clean)


# ------------------------------------------------------------------------------------------------- size


@pytest.mark.parametrize("device", DEVICES)
def test_samples_more_than_2_to_the_31_elements_apart_are_found(device):
    # Only the pages of the three samples are touched, so this costs address space and no memory on a CPU.
    stride = 2**30 + 640
    storage = torch.empty(2 * stride + 4096, dtype=torch.bfloat16, device=device)
    grads = storage.as_strided((3, 60, 64), (stride, 64, 1))
    values = integers(3, 60, 64)
    grads.copy_(values)
    assert torch.equal(sketch(grads, 96), sketch(values.to(device), 96))


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_a_parameter_of_more_than_2_to_the_31_elements_is_read_to_its_end(device):
    rows, cols = 2**16 + 3, 2**15 + 1
    grads = torch.zeros(1, rows, cols, dtype=torch.bfloat16, device=device)
    expected = torch.zeros(1, 1024, dtype=torch.float64)
    for row in (0, 1, rows // 2, rows - 2, rows - 1):
        grads[0, row] = integers(cols, seed=row)
        expected += reference.sketch(grads[:, row : row + 1].cpu(), 1024, KEY, row_begin=row)
    assert torch.equal(sketch(grads, 1024).cpu().double(), expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("proj_dim", [96, 16384])
def test_many_parameters_at_once_are_the_sketches_of_each(proj_dim, device):
    grads = [randn(3, rows, cols, seed=i) for i, (rows, cols) in enumerate(MATRICES * 9)]
    keys, row_begins = [KEY + i for i in range(len(grads))], [i % 4 for i in range(len(grads))]
    scales = [0.3 * i - 1 for i in range(len(grads))]
    expected = torch.zeros(3, proj_dim, device=device)
    for grad, key, row_begin, scale in zip(grads, keys, row_begins, scales, strict=True):
        ops.sketch_(expected, scale * grad.to(device), key=key, row_begin=row_begin, nnz=2)
    flat, shapes = torch.cat([grad.flatten(1) for grad in grads], 1).to(device), [tuple(x.shape[1:]) for x in grads]
    actual = torch.zeros(3, proj_dim, device=device)
    ops.sketch_many_(actual, flat, keys=keys, shapes=shapes, row_begins=row_begins, scales=scales, nnz=2)
    if device == "cpu":
        assert torch.equal(actual, expected)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-5 * expected.abs().max().item())
    ops.sketch_many_(actual, flat[:, :0], keys=[], shapes=[])
