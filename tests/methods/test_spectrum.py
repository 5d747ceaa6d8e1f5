"""The damped solve agrees with the formulas written out, for every damping and either form."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from cases import randn
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from journey.methods.spectrum import Spectrum, decompose

# [num_samples, proj_dim]: dual, square, primal.
SIZES = [(5, 12), (8, 8), (30, 6)]
each_size = pytest.mark.parametrize(("num_samples", "proj_dim"), SIZES)


def spectrum_of(phi: Tensor, *cuts: int) -> Spectrum:
    """Decompose features that come in blocks which end at the cuts."""
    edges = [0, *cuts, len(phi)]

    def blocks() -> Iterator[Tensor]:
        return (phi[a:b] for a, b in itertools.pairwise(edges))

    return decompose(blocks, *phi.shape)


def hat_matrix(phi: Tensor, damping: float) -> np.ndarray:
    """``Phi (Phi^T Phi + damping * mean eigenvalue * I)^-1 Phi^T`` in float64. [num_samples, num_samples]."""
    x = phi.double().numpy()
    return x @ inverse(phi, damping) @ x.T


def inverse(phi: Tensor, damping: float) -> np.ndarray:
    """The damped inverse of the Gram matrix. [proj_dim, proj_dim]."""
    x = phi.double().numpy()
    gram = x.T @ x
    ridge = damping * np.trace(gram) / min(x.shape)
    return np.linalg.inv(gram + ridge * np.eye(len(gram)))


@each_size
@pytest.mark.parametrize("damping", [1e-6, 0.1, 1.0, 100.0])
def test_scores_are_the_explicit_formula(num_samples: int, proj_dim: int, damping: float) -> None:
    phi, query = randn(num_samples, proj_dim, seed=1), randn(3, proj_dim, seed=2)
    expected = query.double().numpy() @ inverse(phi, damping) @ phi.double().numpy().T
    found = spectrum_of(phi).scores(query, damping)
    assert found.shape == (3, num_samples)
    # In the dual case the explicit inverse is of a singular matrix plus the ridge: 1e-16 / 1e-6 is its own error.
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-7, atol=1e-7 * np.abs(expected).max())


@each_size
def test_the_magnitude_of_the_inverse_is_the_mean_of_its_entries(num_samples: int, proj_dim: int) -> None:
    phi = randn(num_samples, proj_dim, seed=1)
    expected = np.abs(inverse(phi, 0.1)).mean()
    np.testing.assert_allclose(spectrum_of(phi).inverse_magnitude(0.1), expected, rtol=1e-9)


def test_the_magnitude_of_the_inverse_does_not_depend_on_how_its_rows_are_cut() -> None:
    phi = randn(3, 4500, seed=1)  # more than one block of rows
    expected = np.abs(inverse(phi, 1.0)).mean()
    np.testing.assert_allclose(spectrum_of(phi).inverse_magnitude(1.0), expected, rtol=1e-9)


@each_size
def test_the_inverse_at_damping_zero_is_the_pseudo_inverse(num_samples: int, proj_dim: int) -> None:
    phi, query = randn(num_samples, proj_dim, seed=1), randn(3, proj_dim, seed=2)
    phi[1] = 2 * phi[0]  # one direction less
    phi[:, 2] = phi[:, 1]
    with_null_space = phi.double().numpy()
    expected = query.double().numpy() @ np.linalg.pinv(with_null_space)
    found = spectrum_of(phi).scores(query, 0.0)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


def test_primal_and_dual_form_agree() -> None:
    phi, query = randn(9, 4, seed=1), randn(3, 4, seed=2)
    wide = torch.cat([phi, torch.zeros(9, 20)], 1)  # the same features, solved in the dual form
    primal, dual = spectrum_of(phi), spectrum_of(wide)
    assert (len(primal.eigenvalues), len(dual.eigenvalues)) == (4, 9)
    in_units_of_dual = 0.3 * primal.mean_eigenvalue / dual.mean_eigenvalue
    found = dual.scores(torch.cat([query, randn(3, 20)], 1), in_units_of_dual)
    torch.testing.assert_close(found, primal.scores(query, 0.3), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(dual.leverages(in_units_of_dual), primal.leverages(0.3), rtol=1e-9, atol=1e-12)


@given(cuts=st.lists(st.integers(1, 29), max_size=4, unique=True), shape=st.sampled_from([(30, 6), (30, 40)]))
def test_blocks_may_be_cut_anywhere(cuts: list[int], shape: tuple[int, int]) -> None:
    phi, query = randn(*shape, seed=1), randn(2, shape[1], seed=2)
    found = spectrum_of(phi, *sorted(cuts)).scores(query, 0.1)
    torch.testing.assert_close(found, spectrum_of(phi).scores(query, 0.1), rtol=1e-9, atol=1e-12)


@each_size
@pytest.mark.parametrize("damping", [1e-3, 1.0])
def test_leverages_and_effective_rank_are_diagonal_and_trace_of_the_hat_matrix(
    num_samples: int, proj_dim: int, damping: float
) -> None:
    phi = randn(num_samples, proj_dim)
    hat, spectrum = hat_matrix(phi, damping), spectrum_of(phi)
    np.testing.assert_allclose(spectrum.leverages(damping).numpy(), np.diag(hat), rtol=1e-9)
    np.testing.assert_allclose(spectrum.effective_rank(damping), np.trace(hat), rtol=1e-9)
    assert spectrum.leverages(0.0).max() <= 1 + 1e-12


@each_size
def test_leverages_give_the_error_of_leaving_one_sample_out(num_samples: int, proj_dim: int) -> None:
    phi, y, damping = randn(num_samples, proj_dim, seed=1), randn(num_samples, seed=2).double().numpy(), 0.2
    spectrum, x = spectrum_of(phi), phi.double().numpy()
    ridge = damping * spectrum.mean_eigenvalue
    left_out = []
    for i in range(num_samples):
        others = np.arange(num_samples) != i
        gram = x[others].T @ x[others] + ridge * np.eye(proj_dim)
        left_out.append(y[i] - x[i] @ np.linalg.solve(gram, x[others].T @ y[others]))
    residual = y - hat_matrix(phi, damping) @ y
    np.testing.assert_allclose(residual / (1 - spectrum.leverages(damping).numpy()), left_out, rtol=1e-8)


def gcv(phi: Tensor, values: Tensor, damping: float) -> float:
    """Generalised cross-validation error, by ``I - H = (I + Phi Phi^T / ridge)^-1``: no difference of like numbers."""
    y, x = values.double().numpy() - values.double().numpy().mean(), phi.double().numpy()
    kernel = x @ x.T
    left = np.linalg.inv(np.eye(len(y)) + kernel * (min(x.shape) / (damping * np.trace(kernel))))
    return float(np.mean((left @ y) ** 2) / (np.trace(left) / len(y)) ** 2)


@pytest.mark.parametrize(("num_samples", "proj_dim"), [(20, 50), (40, 10), (30, 30)])
@pytest.mark.parametrize("noise", [0.1, 1.0, 10.0])
def test_the_chosen_damping_has_the_least_generalised_cross_validation_error(
    num_samples: int, proj_dim: int, noise: float
) -> None:
    scales = torch.logspace(0, -2, proj_dim)  # a spectrum that decays, as that of gradients
    grid = np.logspace(-6, 1, 71)
    for seed in range(0, 30, 3):
        phi = randn(num_samples, proj_dim, seed=seed + 1) * scales
        values = 5 + phi @ randn(proj_dim, seed=seed + 2) + noise * randn(num_samples, seed=seed + 3)
        chosen = spectrum_of(phi).choose_damping(values)
        assert np.isclose(grid, chosen, rtol=1e-12).any()
        errors = [gcv(phi, values, damping) for damping in grid]
        assert gcv(phi, values, chosen) <= min(errors) * (1 + 1e-6)


def test_more_noise_in_the_values_asks_for_more_damping() -> None:
    phi = randn(200, 20, seed=1) * torch.logspace(0, -2, 20)
    signal, disturbance = phi @ randn(20, seed=2), randn(200, seed=3)
    spectrum = spectrum_of(phi)
    chosen = [spectrum.choose_damping(signal + noise * disturbance) for noise in (1e-3, 0.3, 100.0)]
    assert chosen[0] < chosen[1] < chosen[2]


def test_a_damping_that_is_no_number_of_the_right_kind_is_refused() -> None:
    spectrum = spectrum_of(randn(5, 12))
    for damping in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match='damping must be "auto" or a number >= 0'):
            spectrum.check(damping)


@each_size
def test_features_that_are_all_zero_are_refused(num_samples: int, proj_dim: int) -> None:
    with pytest.raises(ValueError, match="all features are zero: there is nothing to score with"):
        spectrum_of(torch.zeros(num_samples, proj_dim)).check(0.1)


def test_a_damping_below_the_rounding_noise_is_reported() -> None:
    phi = randn(30, 6)
    phi[:, 5] = phi[:, 4]
    with pytest.warns(UserWarning, match="damping 1e-20 is below the rounding noise .* these directions are dropped"):
        spectrum_of(phi).check(1e-20)


def test_an_effective_rank_far_below_the_number_of_directions_is_reported() -> None:
    with pytest.warns(UserWarning, match=r"use only 0\.\d of 6 directions \(effective rank\)"):
        spectrum_of(randn(30, 6)).check(1000.0)


@pytest.mark.parametrize("damping", [0.0, 1e-3, 1.0])
def test_sound_features_give_no_warning(damping: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spectrum_of(randn(30, 6)).check(damping)
