"""Draws are a function of seed, sample and draw alone, and they cover the timesteps as they say."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from cases import DEVICES, randn
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from journey.measure.draws import Draws, ExplicitDraws, GridDraws, StratifiedDraws, UniformDraws
from journey.ops.noise import query_noise

KINDS = [StratifiedDraws, UniformDraws, GridDraws]
CPU = torch.device("cpu")
IMAGE = (1, 3, 5)


def draw(draws: Draws, ids: list[int], steps: int = 100, device: torch.device = CPU) -> tuple[Tensor, Tensor]:
    """Timesteps [num_samples, bins, num_draws] and noise [num_samples, bins, num_draws, *IMAGE]."""
    return draws.timesteps(ids, steps), draws.noise(ids, IMAGE, device).cpu()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("antithetic", [True, False])
@given(ids=st.lists(st.integers(0, 2**40), min_size=1, max_size=12, unique=True), data=st.data())
def test_draws_have_the_same_bits_in_any_batch_and_order(
    kind: type[Draws], antithetic: bool, device: str, ids: list[int], data: st.DataObject
) -> None:
    draws = kind(num_draws=3, bins=2, antithetic=antithetic, seed=5)
    timesteps, noise = draw(draws, ids, device=torch.device(device))
    order = data.draw(st.permutations(range(len(ids))))[: data.draw(st.integers(1, len(ids)))]
    some_timesteps, some_noise = draw(draws, [ids[i] for i in order])
    assert torch.equal(some_timesteps, timesteps[order])
    assert torch.equal(some_noise, noise[order])


@pytest.mark.parametrize("kind", KINDS)
def test_draws_have_the_form_that_is_documented(kind: type[Draws]) -> None:
    timesteps, noise = draw(kind(num_draws=5, bins=3), [1, 2])
    assert (timesteps.dtype, noise.dtype) == (torch.int64, torch.float32)
    assert (timesteps.shape, noise.shape) == ((2, 3, 5), (2, 3, 5, *IMAGE))


@given(steps=st.integers(1, 1200), bins=st.integers(1, 12), num_draws=st.integers(1, 9), seed=st.integers(0, 2**62))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("antithetic", [True, False])
def test_timesteps_stay_in_their_bin(
    kind: type[Draws], antithetic: bool, steps: int, bins: int, num_draws: int, seed: int
) -> None:
    bins = min(bins, steps)
    draws = kind(num_draws=num_draws, bins=bins, seed=seed, antithetic=antithetic)
    timesteps = draws.timesteps(list(range(6)), steps)
    for b in range(bins):
        low, high = b * steps // bins, (b + 1) * steps // bins
        assert timesteps[:, b].min() >= low
        assert timesteps[:, b].max() < high


@given(steps=st.integers(1, 1200), bins=st.integers(1, 12))
def test_the_weights_of_the_bins_are_their_shares_of_the_timesteps(steps: int, bins: int) -> None:
    bins = min(bins, steps)
    weights = StratifiedDraws(bins=bins).weights(steps)
    widths = [(b + 1) * steps // bins - b * steps // bins for b in range(bins)]
    assert torch.allclose(weights * steps, torch.tensor(widths, dtype=torch.float64), atol=1e-9)
    assert math.isclose(weights.sum().item(), 1, abs_tol=1e-12)


@given(num_draws=st.integers(1, 10), seed=st.integers(0, 1000))
def test_stratified_draws_have_one_timestep_in_each_stratum(num_draws: int, seed: int) -> None:
    width = 40
    draws = StratifiedDraws(num_draws=num_draws, bins=2, antithetic=False, seed=seed)
    timesteps = draws.timesteps([0, 1, 2], 2 * num_draws * width)
    within = timesteps - torch.tensor([0, num_draws * width])[:, None]
    strata = torch.div(within, width, rounding_mode="floor").sort(-1).values
    assert torch.equal(strata, torch.arange(num_draws).expand_as(strata))


def test_stratified_timesteps_are_uniform_within_their_stratum() -> None:
    timesteps = StratifiedDraws(num_draws=4, antithetic=False).timesteps(list(range(4000)), 40)
    for stratum in range(4):
        counts = torch.bincount(timesteps[:, 0, stratum] - 10 * stratum, minlength=10).double()
        chi_squared = ((counts - 400) ** 2 / 400).sum().item()
        assert chi_squared < 36, (
            f"stratum {stratum}: chi-squared {chi_squared:.1f} with 9 degrees of freedom"
        )  # p = 4e-5


def test_uniform_timesteps_are_independent_and_uniform() -> None:
    timesteps = UniformDraws(num_draws=2, antithetic=False).timesteps(list(range(5000)), 10)[:, 0]
    pairs = torch.bincount(timesteps[:, 0] * 10 + timesteps[:, 1], minlength=100).double()
    chi_squared = ((pairs - 50) ** 2 / 50).sum().item()
    assert chi_squared < 165, f"chi-squared {chi_squared:.1f} with 99 degrees of freedom"  # p = 4e-5


@pytest.mark.parametrize(("bins", "expected"), [(1, [[0, 25, 50, 75]]), (2, [[0, 12, 25, 37], [50, 62, 75, 87]])])
def test_grid_timesteps_are_equally_spaced_for_every_sample(bins: int, expected: list[list[int]]) -> None:
    timesteps = GridDraws(num_draws=4, bins=bins, antithetic=False).timesteps([3, 9], 100)
    assert timesteps.tolist() == [expected, expected]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_draws", [4, 5])
def test_antithetic_draws_are_pairs_of_one_timestep_and_opposite_noise(kind: type[Draws], num_draws: int) -> None:
    timesteps, noise = draw(kind(num_draws=num_draws, bins=2, antithetic=True), [0, 1, 2], steps=1000)
    for first in (0, 2):
        assert torch.equal(timesteps[..., first], timesteps[..., first + 1])
        assert torch.equal(noise[:, :, first], -noise[:, :, first + 1])
    assert not torch.equal(noise[:, :, 0].abs(), noise[:, :, 2].abs())
    independent = StratifiedDraws(num_draws=num_draws, bins=2, antithetic=False)
    free = independent.noise([0, 1, 2], IMAGE, CPU)
    assert not torch.equal(free[:, :, 0], -free[:, :, 1])


def test_noise_differs_between_seeds_samples_bins_and_draws() -> None:
    arrays = [StratifiedDraws(num_draws=3, bins=2, antithetic=False, seed=s).noise([0, 1], IMAGE, CPU) for s in (0, 1)]
    images = torch.cat([array.reshape(-1, 15) for array in arrays])  # [2 seeds * 2 samples * 2 bins * 3 draws, pixels]
    assert len(images.unique(dim=0)) == 24
    assert images.flatten().unique().numel() == images.numel(), "noise shares numbers between draws"


def test_timesteps_differ_between_seeds_samples_bins_and_draws() -> None:
    timesteps = [
        UniformDraws(num_draws=3, bins=2, antithetic=False, seed=s).timesteps([0, 1], 2 * 10**6) for s in (0, 1)
    ]
    within = torch.stack(timesteps) - torch.tensor([0, 10**6])[:, None]  # 24 numbers below a million: equal ones do not
    assert within.unique().numel() == 24  # happen by chance (p = 3e-4, and the seeds are fixed)


def test_noise_is_standard_normal() -> None:
    noise = StratifiedDraws(num_draws=2, antithetic=False).noise(list(range(500)), (1, 10, 20), CPU).double()
    count = noise.numel()  # 200,000
    flat = noise.flatten()
    # Five standard errors of each moment of a standard normal.
    assert abs(flat.mean().item()) < 5 / math.sqrt(count)
    assert abs(flat.square().mean().item() - 1) < 5 * math.sqrt(2 / count)
    assert abs(flat.pow(3).mean().item()) < 5 * math.sqrt(15 / count)
    assert abs(flat.pow(4).mean().item() - 3) < 5 * math.sqrt(96 / count)
    draws = noise.view(500, 2, -1)
    correlation = (draws[:, 0] * draws[:, 1]).mean().item()
    assert abs(correlation) < 5 / math.sqrt(count / 2), "the draws of a sample are correlated"


def test_query_noise_is_keyed_by_seed_query_and_timestep_and_antithetic() -> None:
    whole = query_noise(3, [0, 1, 2], 40, 4, IMAGE, CPU)
    assert whole.shape == (3, 4, *IMAGE)
    assert torch.equal(query_noise(3, [2, 0], 40, 4, IMAGE, CPU), whole[[2, 0]])
    assert torch.equal(whole[:, 0], -whole[:, 1])
    for other in (query_noise(4, [0, 1, 2], 40, 4, IMAGE, CPU), query_noise(3, [0, 1, 2], 41, 4, IMAGE, CPU)):
        assert not torch.isin(other, whole).any()
    assert not torch.isin(StratifiedDraws(num_draws=4, seed=3).noise([0, 1, 2], IMAGE, CPU), whole).any(), (
        "a query would be noised as the training image of the same number is"
    )


def test_explicit_draws_give_the_rows_of_their_samples() -> None:
    timesteps, noise = torch.arange(6).view(3, 2), randn(3, 2, *IMAGE)
    draws = ExplicitDraws(timesteps, noise)
    assert (draws.bins, draws.num_draws) == (1, 2)
    found_timesteps, found_noise = draw(draws, [2, 0])
    assert torch.equal(found_timesteps, timesteps[[2, 0]].unsqueeze(1))
    assert torch.equal(found_noise, noise[[2, 0]].unsqueeze(1))


def test_explicit_draws_without_samples_are_shared() -> None:
    timesteps, noise = torch.tensor([3, 8]), randn(2, *IMAGE)
    found_timesteps, found_noise = draw(ExplicitDraws(timesteps, noise), [7, 11, 13])
    assert torch.equal(found_timesteps, timesteps.expand(3, 1, 2))
    assert torch.equal(found_noise, noise.expand(3, 1, 2, *IMAGE))


@pytest.mark.parametrize(
    ("timesteps", "noise", "error", "message"),
    [
        (torch.rand(3, 2), randn(3, 2, *IMAGE), TypeError, r"timesteps must be integers, got torch\.float32"),
        (
            torch.ones(3, 2, dtype=torch.bool),
            randn(3, 2, *IMAGE),
            TypeError,
            r"timesteps must be integers, got torch\.bool",
        ),
        (torch.ones(3, 2).long(), torch.ones(3, 2, *IMAGE).int(), TypeError, "noise must be floating point"),
        (torch.ones(3, 2).long(), randn(2, 3, *IMAGE), ValueError, r"got \[3, 2\] and \[2, 3, 1, 3, 5\]"),
        (
            torch.ones(3, 2, 1).long(),
            randn(3, 2, 1, *IMAGE),
            ValueError,
            r"timesteps must be \[num_samples, num_draws\]",
        ),
        (torch.ones(0, 2).long(), randn(0, 2, *IMAGE), ValueError, r"got \[0, 2\]"),
    ],
)
def test_explicit_draws_refuse_arrays_that_do_not_belong_together(
    timesteps: Tensor, noise: Tensor, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ExplicitDraws(timesteps, noise)


@pytest.mark.parametrize(("bad", "found"), [(-1, "-1 to 5"), (100, "5 to 100")])
def test_explicit_timesteps_outside_the_schedule_are_refused(bad: int, found: str) -> None:
    draws = ExplicitDraws(torch.tensor([5, bad]), randn(2, *IMAGE))
    with pytest.raises(ValueError, match=rf"timesteps must be in \[0, 100\), got {found}"):
        draws.timesteps([0], 100)


def test_explicit_draws_refuse_samples_and_images_that_they_do_not_have() -> None:
    draws = ExplicitDraws(torch.ones(3, 2).long(), randn(3, 2, *IMAGE))
    with pytest.raises(ValueError, match="a row for every sample, got 3 for sample 3"):
        draws.timesteps([1, 3], 100)
    with pytest.raises(ValueError, match=r"noise must be of images \[1, 4, 4\], got \[1, 3, 5\]"):
        draws.noise([0], (1, 4, 4), CPU)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["num_draws", "bins"])
def test_numbers_that_are_not_positive_are_refused(kind: type[Draws], name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be positive, got 0"):
        kind(**{name: 0})


def test_more_bins_than_timesteps_are_refused() -> None:
    with pytest.raises(ValueError, match="bins must be at most the 10 timesteps of the schedule, got 11"):
        StratifiedDraws(bins=11).timesteps([0], 10)


def test_fingerprints_differ_when_the_draws_do() -> None:
    timesteps, noise = torch.ones(3, 2).long(), randn(3, 2, *IMAGE)
    all_draws = [
        *(kind() for kind in KINDS),
        *(StratifiedDraws(**{name: value}) for name, value in [("num_draws", 4), ("bins", 2), ("seed", 1)]),
        StratifiedDraws(antithetic=False),
        ExplicitDraws(timesteps, noise),
        ExplicitDraws(timesteps, noise + 1),
        ExplicitDraws(timesteps + 1, noise),
    ]
    found = [repr(draws.fingerprint()) for draws in all_draws]
    assert len(set(found)) == len(found)
    assert (
        ExplicitDraws(timesteps, noise).fingerprint() == ExplicitDraws(timesteps.clone(), noise.clone()).fingerprint()
    )


@given(st.integers(1, 12), st.integers(12, 1000), st.data())
def test_weights_of_intervals_count_timesteps_and_add_up(
    bins: int, num_train_timesteps: int, data: st.DataObject
) -> None:
    draws = StratifiedDraws(num_draws=2, bins=bins)
    cuts = data.draw(st.lists(st.integers(1, num_train_timesteps - 1), max_size=3, unique=True).map(sorted))
    edges = [0, *cuts, num_train_timesteps]
    parts = [draws.weights(num_train_timesteps, interval) for interval in itertools.pairwise(edges)]
    bin_of = torch.bucketize(torch.arange(num_train_timesteps), draws.edges(num_train_timesteps)[1:], right=True)
    for (first, end), weights in zip(itertools.pairwise(edges), parts, strict=True):
        counts = torch.bincount(bin_of[first:end], minlength=bins).double()
        torch.testing.assert_close(weights, counts / num_train_timesteps)
    torch.testing.assert_close(sum(parts), draws.weights(num_train_timesteps))
