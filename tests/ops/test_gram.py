"""The blocked Gram update against its reference."""

from __future__ import annotations

import pytest
import torch
from cases import DEVICES, DTYPES, assert_as_exact_as_torch, integers, randn
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from journey import ops
from journey.ops import reference


def gram(features: Tensor, **options: int) -> Tensor:
    """The compiled update into fresh zeros on the device of ``features``. [proj_dim, proj_dim]."""
    result = torch.zeros(features.shape[1], features.shape[1], dtype=torch.float64, device=features.device)
    ops.accumulate_gram_(result, features, **options)
    return result


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("proj_dim", [0, 1, 31, 32, 33, 63, 65, 127, 129, 257])
@pytest.mark.parametrize("num_samples", [0, 1, 31, 33, 257])
def test_upper_triangle_matches_the_reference_as_exactly_as_torch(num_samples, proj_dim, dtype, device):
    features = randn(num_samples, proj_dim, dtype=dtype)
    plain = features.float().T @ features.float()
    actual = gram(features.to(device))
    assert_as_exact_as_torch(actual.triu(), plain.triu(), reference.gram(features).triu())


@pytest.mark.parametrize("device", DEVICES)
def test_many_samples_are_summed_in_float64(device):
    # With 30,000 samples a float32 running sum is off by about 1e-5; blocks of 256 summed in float64 are not.
    features = 1 + randn(30_000, 33)
    expected = reference.gram(features).triu()
    error = (gram(features.to(device), block_size=256).cpu().triu() - expected).abs().max() / expected.max()
    # Each block's float32 sum errs by less than 256 half-ulps of itself, and their errors do not grow with blocks.
    assert error < 256 * torch.finfo(torch.float32).eps / 2


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("proj_dim", [2, 33, 150, 600])
def test_adds_to_the_upper_triangle_and_leaves_the_lower_untouched(proj_dim, device):
    features = integers(70, proj_dim)
    before = integers(proj_dim, proj_dim, seed=3).double()
    actual = before.clone().to(device)
    assert ops.accumulate_gram_(actual, features.to(device), block_size=32) is None
    assert torch.equal(actual.cpu().triu(), before.triu() + reference.gram(features).triu())
    assert torch.equal(actual.cpu().tril(-1), before.tril(-1))


@pytest.mark.parametrize("device", DEVICES)
@given(
    num_samples=st.integers(0, 90),
    proj_dim=st.integers(1, 70),
    block_size=st.integers(1, 100),
    cut=st.integers(0, 90),
)
def test_blocks_and_batches_change_nothing(num_samples, proj_dim, block_size, cut, device):
    features = integers(num_samples, proj_dim).to(device)  # every sum is exact
    expected = reference.gram(features.cpu()).triu()
    assert torch.equal(gram(features, block_size=block_size).cpu().triu(), expected)
    in_two = gram(features[:cut])
    ops.accumulate_gram_(in_two, features[cut:], block_size=block_size)
    assert torch.equal(in_two.cpu().triu(), expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("block_size", [1, 32, 33, 100, 4096])
def test_block_size_changes_the_result_by_rounding_only(block_size, device):
    features = randn(333, 65)
    plain = features.T @ features
    actual = gram(features.to(device), block_size=block_size)
    assert_as_exact_as_torch(actual.triu(), plain.triu(), reference.gram(features).triu())


@pytest.mark.parametrize("device", DEVICES)
def test_equal_inputs_give_equal_bits(device):
    features = randn(501, 130).to(device)
    assert torch.equal(gram(features), gram(features))


def test_the_number_of_threads_changes_no_bit(threads):
    # 600 columns are more than a tile of any side; 300 samples are more than two blocks.
    cases, found = [randn(300, 600), randn(300, 600, dtype=torch.float16), randn(2, 1000)], []
    for count in (1, 2, 5):
        threads(count)
        found.append([gram(features) for features in cases])
    for other in found[1:]:
        assert all(torch.equal(x, y) for x, y in zip(found[0], other, strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_reads_and_writes_through_strides(device):
    base = integers(66, 74).to(device)
    for view in (base.T, base[::2], base[:, ::2], base[3:40, 5:38], base[:1].expand(5, -1)):
        expected = reference.gram(view.cpu()).triu()
        assert torch.equal(gram(view).cpu().triu(), expected)
    buffer = torch.full((80, 90), 7.0, dtype=torch.float64, device=device)
    ops.accumulate_gram_(buffer[2:76, 3:77], base)
    expected = torch.full((80, 90), 7.0, dtype=torch.float64)
    expected[2:76, 3:77] += reference.gram(base.cpu())
    inside = torch.zeros(80, 90, dtype=torch.bool)
    inside[2:76, 3:77] = True
    upper = torch.zeros(80, 90, dtype=torch.bool)
    upper[2:76, 3:77] = torch.ones(74, 74).triu().bool()
    assert torch.equal(buffer.cpu()[upper], expected[upper])
    assert (buffer.cpu()[~inside] == 7).all()


@pytest.mark.parametrize("device", DEVICES)
def test_the_whole_matrix_is_positive_semi_definite(device):
    features = randn(20, 64)  # rank 20 of 64, so 44 eigenvalues are zero and any asymmetry shows as negative ones
    upper = gram(features.to(device)).cpu().triu()
    eigenvalues = torch.linalg.eigvalsh(upper + upper.triu(1).T)
    # Weyl: eigenvalues move by at most the norm of the rounding error, here 64 entries' worth of float32.
    assert eigenvalues.min() > -64 * torch.finfo(torch.float32).eps * eigenvalues.max()


@pytest.mark.parametrize("device", DEVICES)
def test_nan_shows_in_its_row_and_column_alone(device):
    features = integers(40, 70)
    clean = gram(features.to(device)).cpu().triu()
    features[17, 30] = torch.nan
    actual = gram(features.to(device)).cpu().triu()
    touched = torch.zeros(70, 70, dtype=torch.bool)
    touched[30], touched[:, 30] = True, True
    touched = touched.triu()
    assert actual[touched].isnan().all()
    assert torch.equal(actual[~touched], clean[~touched])
