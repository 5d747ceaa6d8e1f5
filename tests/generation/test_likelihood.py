"""Bands cover, the monotone fit is the nearest monotone curve, and a rise is found where it is."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from journey.generation.likelihood import Rise, chance_of_more, find_rise, isotonic, wilson_band

scipy_stats = pytest.importorskip("scipy.stats")
scipy_optimize = pytest.importorskip("scipy.optimize")


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_bands_are_those_of_scipy(confidence: float) -> None:
    for n in (1, 16, 33):
        lower, upper = wilson_band(torch.arange(n + 1), torch.full((n + 1,), n), confidence)
        for k in range(n + 1):
            expected = scipy_stats.binomtest(k, n).proportion_ci(confidence, method="wilson")
            assert lower[k].item() == pytest.approx(expected.low, abs=1e-12)
            assert upper[k].item() == pytest.approx(expected.high, abs=1e-12)


def test_bands_cover_the_truth_as_often_as_they_say() -> None:
    n = 24
    lower, upper = wilson_band(torch.arange(n + 1), torch.full((n + 1,), n), 0.95)
    truths = np.linspace(0.02, 0.98, 49)
    masses = scipy_stats.binom.pmf(np.arange(n + 1)[:, None], n, truths)
    inside = (lower.numpy()[:, None] <= truths) & (truths <= upper.numpy()[:, None])
    # The exact coverage jumps with the truth, as that of every band of a discrete number does; its mean does not.
    assert (masses * inside).sum(0).mean() == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95])
def test_a_confidence_out_of_range_is_refused(confidence: float) -> None:
    with pytest.raises(ValueError, match="confidence must be between 0 and 1"):
        wilson_band(torch.zeros(1), torch.ones(1), confidence)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.1, 10)), min_size=1, max_size=20))
def test_the_monotone_fit_is_the_nearest_in_weighted_squares(pairs: list[tuple[float, float]]) -> None:
    values, weights = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    expected = scipy_optimize.isotonic_regression(values.numpy(), weights=weights.numpy()).x
    np.testing.assert_allclose(isotonic(values, weights).numpy(), expected, atol=1e-12)


def test_a_rise_lies_between_the_last_low_step_and_the_first_high_one() -> None:
    fitted = torch.tensor([0.1, 0.1, 0.2, 0.5, 0.9, 0.9])
    # A quarter of the rise is 0.3 and three quarters are 0.7; half is reached at the step with 0.5 itself.
    found = find_rise([90, 70, 60, 50, 30, 10], fitted)
    assert found is not None
    assert (found.before, found.after) == (60, 30)
    assert found.midpoint == pytest.approx(50, abs=1e-4)


def test_a_jump_has_its_midpoint_in_the_middle() -> None:
    assert find_rise([90, 60, 40, 10], torch.tensor([0.0, 0, 1, 1])) == Rise(60, 40, 50.0)
    assert find_rise([90, 60], torch.tensor([0.3, 0.3])) is None


@given(st.integers(150, 850), st.floats(5, 60))
def test_the_rise_of_a_known_curve_is_found_to_the_width_of_the_steps(middle: int, width: float) -> None:
    steps = list(range(990, 0, -10))
    curve = torch.tensor([1 / (1 + math.exp((t - middle) / width)) for t in steps], dtype=torch.float64)
    found = find_rise(steps, isotonic(curve, torch.ones(len(steps))))
    assert found is not None
    # A logistic curve passes a quarter and three quarters at middle +- width ln 3; its ends are cut by at most 0.1.
    assert abs(found.midpoint - middle) < 10 + width / 2
    assert abs(found.before - (middle + width * math.log(3))) < 10 + width / 2
    assert abs(found.after - (middle - width * math.log(3))) < 10 + width / 2


@given(st.integers(0, 80), st.integers(0, 80), st.data())
def test_the_chance_of_more_is_fishers_exact_test(n1: int, n2: int, data: st.DataObject) -> None:
    k1, k2 = data.draw(st.integers(0, n1)), data.draw(st.integers(0, n2))
    expected = scipy_stats.fisher_exact([[k1, n1 - k1], [k2, n2 - k2]], alternative="greater").pvalue
    assert chance_of_more((k1, k2), (n1, n2)) == pytest.approx(expected, rel=1e-9)


def test_more_successes_than_trials_are_refused() -> None:
    with pytest.raises(ValueError, match=r"successes must be between 0 and trials, got \(3, 1\) of \(2, 4\)"):
        chance_of_more((3, 1), (2, 4))
