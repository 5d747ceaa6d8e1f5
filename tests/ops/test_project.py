"""Dense random projections against their reference, and the properties that TRAK relies on."""

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
    assert_as_exact_as_torch,
    assert_estimates,
    assert_exact_to,
    integers,
    largest_error,
    randn,
    unit_pair,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from journey import ops
from journey.ops import reference

KINDS = ["rademacher", "normal"]
MATRIX = {"rademacher": reference.rademacher_matrix, "normal": reference.normal_matrix}
NORMAL_ATOL = 4e-6  # of one compiled normal against float64, see tests/ops/test_philox.py

# Around the columns of a draw (64 normals, 128 signs) and of a vector; none of them has to be a multiple of anything.
PROJ_DIMS = [1, 31, 32, 33, 63, 64, 65, 127, 128, 129, 257]


def project(grads: Tensor, proj_dim: int, key: int = KEY, kind: str = "rademacher", **options: int) -> Tensor:
    """The compiled projection into fresh zeros on the device of ``grads``. [batch, proj_dim]."""
    features = torch.zeros(grads.shape[0], proj_dim, device=grads.device)
    ops.project_(features, grads, key=key, kind=kind, **options)
    return features


def compiled_matrix(grad_dim: int, proj_dim: int, key: int, kind: str, device: str, row_begin: int = 0) -> Tensor:
    """The matrix as the compiled code sees it, float64. [grad_dim, proj_dim].

    Asked for with one-hot gradients in units of sqrt(proj_dim), so that signs come out as signs to one rounding.
    """
    one_hot = torch.eye(grad_dim, device=device)
    return project(one_hot, proj_dim, key, kind, row_begin=row_begin).cpu().double() * math.sqrt(proj_dim)


# -------------------------------------------------------------------------------------------- reference


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
@given(
    key=KEYS,
    grad_dim=st.integers(1, 70),
    proj_dim=st.integers(1, 300),
    row_begin=st.sampled_from([0, 0, 1, 33, 2**31 - 5, 2**32 - 7, 2**45 + 3]),
)
def test_every_entry_is_that_of_the_reference(key, grad_dim, proj_dim, row_begin, kind, device):
    actual = compiled_matrix(grad_dim, proj_dim, key, kind, device, row_begin)
    expected = MATRIX[kind](grad_dim, proj_dim, key, row_begin=row_begin)
    # Scaling to 1/sqrt(proj_dim) in float32 rounds twice, half an ulp each; the largest normal is 5.77.
    rounding = torch.finfo(torch.float32).eps * expected.abs().max().item()
    atol = rounding + (NORMAL_ATOL if kind == "normal" else 0)
    assert (actual - expected).abs().max() <= atol


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("proj_dim", PROJ_DIMS)
@pytest.mark.parametrize("kind", KINDS)
def test_matches_the_reference_as_exactly_as_torch(kind, proj_dim, device):
    for batch, grad_dim in [(0, 5), (3, 0), (1, 1), (3, 31), (2, 257), (33, 33), (5, 509)]:
        # Torch works on at least 40 samples and 64 columns, so that its largest error is no accident and that it
        # multiplies matrices: a single column would be a dot product, which it rounds in another way.
        grads = randn(40, grad_dim)
        matrix = MATRIX[kind](grad_dim, max(proj_dim, 64), HIGH_KEY)
        if kind == "normal" and grad_dim:
            # The entries are checked above; here the compiled ones are used, so that only the rounding of sums remains.
            matrix = compiled_matrix(grad_dim, matrix.shape[1], HIGH_KEY, kind, device).float().double()
        expected = grads.double() @ matrix / math.sqrt(proj_dim)
        plain_error = largest_error(grads @ matrix.float() / math.sqrt(proj_dim), expected)
        actual = project(grads[:batch].to(device), proj_dim, HIGH_KEY, kind)
        assert_exact_to(actual, expected[:batch, :proj_dim], plain_error)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_matches_the_whole_reference_within_the_promise_of_its_normals(kind, device):
    grads = randn(3, 311)
    error = (project(grads.to(device), 200, KEY, kind).cpu() - reference.project(grads, 200, KEY, kind)).abs()
    entry_atol = NORMAL_ATOL if kind == "normal" else 0.0
    # The entries' errors at their worst, plus sums of 311 terms rounded in float32.
    rounding = torch.finfo(torch.float32).eps * math.sqrt(311) * grads.norm(dim=1, keepdim=True).double()
    assert (error <= (entry_atol * grads.abs().sum(1, keepdim=True) + 5 * rounding) / math.sqrt(200)).all()


@pytest.mark.parametrize("device", DEVICES)
def test_long_sums_stay_as_exact_as_torch(device):
    # A mean far from zero: a running float32 sum would lose several times what torch's blocked one loses.
    grads, matrix = 1 + randn(2, 30_011), reference.rademacher_matrix(30_011, 33, KEY)
    plain, expected = grads @ matrix.float() / math.sqrt(33), grads.double() @ matrix / math.sqrt(33)
    assert_as_exact_as_torch(project(grads.to(device), 33), plain, expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_gradients_lose_nothing(kind, dtype, device):
    grads = randn(3, 301, dtype=dtype).to(device)
    difference = (project(grads, 100, KEY, kind) - project(grads.float(), 100, KEY, kind)).abs()
    # Tensor cores sum half types in another order; a lost bit of them would be 2**-11 of an entry at least.
    atol = 0.0 if device == "cpu" else 2**-18 * grads.float().abs().sum(1, keepdim=True) / math.sqrt(100)
    assert (difference <= atol).all()


@pytest.mark.parametrize("device", DEVICES)
def test_reads_through_any_strides(device):
    base = integers(66, 74).to(device)
    views = {
        "transposed": base.T,
        "every other sample": base[::2],
        "every other entry": base[:, ::2],
        "a window": base[3:40, 5:38],
        "one sample seen several times": base[:1].expand(5, -1),
        "one entry seen several times": base[:, :1].expand(-1, 33),
    }
    for what, view in views.items():
        assert torch.equal(project(view, 64), project(view.contiguous(), 64)), what


# ------------------------------------------------------------------------------------------- properties


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("grad_dim", "proj_dim"), [(33, 64), (1009, 129), (4099, 31)])
def test_does_not_depend_on_the_batch(grad_dim, proj_dim, kind, device):
    grads = randn(19, grad_dim).to(device)
    whole = project(grads, proj_dim, KEY, kind)
    for split in (1, 2, 7, 16):
        parts = [project(part, proj_dim, KEY, kind) for part in grads.split(split)]
        assert torch.equal(whole, torch.cat(parts)), f"batches of {split}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("batch", "grad_dim", "proj_dim"), [(1, 9001, 100), (17, 1009, 300), (2, 50, 4096)])
def test_does_not_depend_on_the_number_of_threads(batch, grad_dim, proj_dim, kind, threads):
    grads = randn(batch, grad_dim)
    results = []
    for count in (1, 2, 3, 8):
        threads(count)
        results.append(project(grads, proj_dim, KEY, kind))
    assert all(torch.equal(result, results[0]) for result in results[1:])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_first_columns_are_the_same_for_every_proj_dim(kind, device):
    few, many = (compiled_matrix(20, proj_dim, KEY, kind, device) for proj_dim in (64, 256))  # exact roots
    assert torch.equal(few, many[:, :64])


@pytest.mark.cuda
@pytest.mark.parametrize("kind", KINDS)
def test_both_devices_have_the_same_matrix(kind):
    on_cpu, on_cuda = (compiled_matrix(64, 256, HIGH_KEY, kind, device) for device in ("cpu", "cuda"))
    # Tensor cores multiply a normal as the sum of two numbers of 11 bits.
    torch.testing.assert_close(on_cuda, on_cpu, rtol=0 if kind == "rademacher" else 2**-22, atol=0)


@pytest.mark.parametrize("device", DEVICES)
@given(key=KEYS, grad_dim=st.integers(0, 300), cuts=st.lists(st.integers(0, 300), max_size=4))
def test_pieces_of_the_gradient_add_up_to_the_whole(key, grad_dim, cuts, device):
    grads = integers(2, grad_dim).to(device)
    edges = sorted({0, grad_dim, *(min(cut, grad_dim) for cut in cuts)})
    pieces = torch.zeros(2, 64, device=device)  # 1/sqrt(64) is exact, so every sum is
    for begin, end in itertools.pairwise(edges):
        ops.project_(pieces, grads[:, begin:end], key=key, kind="rademacher", row_begin=begin)
    assert torch.equal(pieces, project(grads, 64, key))


@pytest.mark.parametrize("device", DEVICES)
def test_is_linear(device):
    x, y = integers(2, 301, seed=1).to(device), integers(2, 301, seed=2).to(device)
    assert torch.equal(project(2 * x - 3 * y, 64), 2 * project(x, 64) - 3 * project(y, 64))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_adds_to_the_given_features_and_to_nothing_else(kind, device):
    buffer = torch.full((5, 160), 7.0, device=device)
    expected = buffer.clone()
    grads = integers(3, 301).to(device)
    assert ops.project_(buffer[1:4, 32:96], grads, key=KEY, kind=kind) is None
    expected[1:4, 32:96] += project(grads, 64, KEY, kind)
    torch.testing.assert_close(buffer, expected, rtol=1e-6, atol=1e-6)  # 7 + sum is rounded once, sum + 7 perhaps twice
    outside = torch.ones_like(buffer, dtype=torch.bool)
    outside[1:4, 32:96] = False
    assert (buffer[outside] == 7).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("related", [False, True])
def test_preserves_inner_products_in_expectation_with_the_variance_of_theory(related, kind, threads):
    threads(1)  # many tiny calls
    grad_dim, proj_dim = 60, 100
    x, y = unit_pair(grad_dim, related=related)
    pair = torch.stack([x, y])
    estimates = torch.stack([project(pair, proj_dim, key, kind).double().prod(0).sum() for key in range(800)])
    x, y = x.double(), y.double()
    # Entries with fourth moment 3 (normal) or 1 (signs) and independent rows.
    inner, fourth = (x * y).sum().item(), (x * y).square().sum().item()
    variance = (1 + inner**2 - (2 * fourth if kind == "rademacher" else 0)) / proj_dim
    assert_estimates(estimates, inner, variance, kind)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_shows_in_its_whole_row_and_in_no_other(bad, kind, device):
    grads = randn(3, 301)
    clean = project(grads.to(device), 65, KEY, kind).cpu()
    grads[1, 170] = bad
    actual = project(grads.to(device), 65, KEY, kind).cpu()
    assert not actual[1].isfinite().any()
    assert torch.equal(actual[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("device", DEVICES)
def test_samples_more_than_2_to_the_31_elements_apart_are_found(device):
    # Only the pages of the three samples are touched, so this costs address space and no memory on a CPU.
    stride = 2**30 + 640
    storage = torch.empty(2 * stride + 4096, dtype=torch.bfloat16, device=device)
    grads = storage.as_strided((3, 301), (stride, 1))
    values = integers(3, 301)
    grads.copy_(values)
    assert torch.equal(project(grads, 64), project(values.to(device), 64))
