"""LDS finds what is planted, its controls find nothing, and its intervals and its ceiling are what they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from cases import randn
from torch import Tensor

from journey.evaluate.lds import (
    CONSTANT,
    RANDOM,
    head_of,
    lds,
    lds_per_query,
    predict_losses,
    seed_agreement,
    significant,
)
from journey.evaluate.ranks import ranks, spearman
from journey.evaluate.subsets import Subsets, random_subsets

NUM_TRAIN, NUM_SUBSETS, NUM_SEEDS, NUM_QUERIES = 40, 24, 3, 7


def planted(noise: float, num_seeds: int = NUM_SEEDS) -> tuple[Tensor, Tensor, Subsets]:
    """True attributions, losses that follow them but for noise, and the subsets."""
    subsets = random_subsets(NUM_TRAIN, NUM_SUBSETS)
    truth = randn(NUM_QUERIES, NUM_TRAIN)
    exact = predict_losses(truth, subsets).T[:, None].float()
    losses = exact + noise * exact.std() * randn(NUM_SUBSETS, num_seeds, NUM_QUERIES, seed=1)
    return truth, losses, subsets


def test_ranks_of_equal_entries_are_shared() -> None:
    assert ranks(torch.tensor([[3.0, 1.0, 3.0, 2.0]])).tolist() == [[3.5, 1.0, 3.5, 2.0]]


def test_spearman_is_the_pearson_correlation_of_ranks() -> None:
    left, right = randn(5, 11), randn(5, 11, seed=1).round()  # rounded: with ties
    for a, b, found in zip(left, right, spearman(left, right), strict=True):
        assert math.isclose(np.corrcoef(ranks(a), ranks(b))[0, 1], found.item(), abs_tol=1e-12)


def test_a_constant_row_has_no_rank_correlation() -> None:
    assert spearman(torch.ones(4), randn(4)).item() == 0


def test_nan_has_no_rank() -> None:
    with pytest.raises(ValueError, match="right has NaN"):
        spearman(torch.ones(2), torch.tensor([1.0, float("nan")]))


def test_all_subsets_have_one_size_and_are_different() -> None:
    subsets = random_subsets(NUM_TRAIN, NUM_SUBSETS, fraction=0.3)
    assert subsets.members.sum(1).tolist() == [12] * NUM_SUBSETS
    assert len({subsets.indices(j) for j in range(NUM_SUBSETS)}) == NUM_SUBSETS


def test_every_image_is_in_its_share_of_the_subsets() -> None:
    # A count is binomial: 2000 halves, standard deviation 22; six of them cover all forty images.
    counts = random_subsets(NUM_TRAIN, 2000).members.sum(0)
    assert (counts - 1000).abs().max() < 6 * math.sqrt(2000 / 4)


def test_more_subsets_begin_with_the_same_ones() -> None:
    few, many = random_subsets(NUM_TRAIN, 3, seed=5), random_subsets(NUM_TRAIN, 9, seed=5)
    assert torch.equal(few.members, many.members[:3])
    assert not torch.equal(few.members, random_subsets(NUM_TRAIN, 3, seed=6).members)


def test_groups_are_in_or_out_as_a_whole() -> None:
    groups = torch.arange(NUM_TRAIN) % 8
    subsets = random_subsets(NUM_TRAIN, NUM_SUBSETS, groups=groups)
    for group in range(8):
        inside = subsets.members[:, groups == group]
        assert torch.equal(inside.any(1), inside.all(1))
    assert subsets.members.sum(1).tolist() == [NUM_TRAIN // 2] * NUM_SUBSETS


@pytest.mark.parametrize("num_train", [4, 7, 40])
def test_a_manifest_keeps_the_subsets(num_train: int) -> None:
    subsets = random_subsets(num_train, 5)
    assert torch.equal(Subsets.from_json(subsets.to_json()).members, subsets.members)  # type: ignore[arg-type]


def test_the_truth_has_lds_one_and_its_negative_minus_one() -> None:
    truth, losses, subsets = planted(noise=0)
    table = lds({"truth": truth, "negative": -truth}, losses, subsets, num_bootstrap=20)
    assert table.rows["truth"].lds.value == pytest.approx(1, abs=1e-12)
    assert table.rows["negative"].lds.value == pytest.approx(-1, abs=1e-12)


def test_swapped_axes_are_refused_or_find_nothing() -> None:
    truth, losses, subsets = planted(noise=0)
    with pytest.raises(ValueError, match="num_queries, num_train"):
        lds({"truth": truth.T}, losses, subsets)
    shuffled = lds({"truth": truth.flip(0)}, losses, subsets, num_bootstrap=20).rows["truth"].lds.value
    assert shuffled < 0.5, "scores of other queries must not count"


def test_constant_scores_predict_nothing_and_random_ones_little() -> None:
    truth, losses, subsets = planted(noise=0)
    table = lds({"truth": truth}, losses, subsets, num_bootstrap=20)
    assert table.rows[CONSTANT].lds.value == 0
    # The mean of seven correlations of 24 pairs: standard deviation 1 / sqrt(7 * 23).
    assert abs(table.rows[RANDOM].lds.value) < 4 / math.sqrt(NUM_QUERIES * (NUM_SUBSETS - 1))


def test_subsets_of_different_size_would_let_constant_scores_predict() -> None:
    """Why sizes are fixed: the same control on coin flips finds the size."""
    members = torch.rand(NUM_SUBSETS, NUM_TRAIN, generator=torch.Generator().manual_seed(0)) < 0.5
    losses = -members.sum(1).float()[:, None, None].expand(-1, 1, NUM_QUERIES)
    table = lds({}, losses, Subsets(members), num_bootstrap=10)
    assert table.rows[CONSTANT].lds.value > 0.99


def test_the_ceiling_is_what_other_seeds_reach() -> None:
    _, losses, subsets = planted(noise=1.0, num_seeds=40)
    estimated = lds({}, losses[:, :4], subsets, num_bootstrap=10).ceiling
    assert estimated is not None
    reached = torch.stack(
        [spearman(losses[:, :4].mean(1).T, losses[:, s : s + 4].mean(1).T).mean() for s in range(4, 40, 4)]
    ).mean()
    # Each is a mean over seven queries of correlations near 0.8 over 24 subsets, of standard error 0.03.
    assert abs(estimated.value - reached.item()) < 0.1
    assert seed_agreement(planted(noise=0)[1]).item() == pytest.approx(1, abs=1e-12)


def test_one_seed_tells_no_ceiling() -> None:
    _, losses, subsets = planted(noise=1.0, num_seeds=1)
    assert lds({}, losses, subsets, num_bootstrap=10).ceiling is None


def test_intervals_cover_the_long_run_value() -> None:
    """Over repeated experiments 95 % intervals must hold the value of endless data most of the time."""
    hits, generator = 0, torch.Generator().manual_seed(0)
    truth = randn(NUM_QUERIES, NUM_TRAIN)
    guess = truth + 1.5 * randn(NUM_QUERIES, NUM_TRAIN, seed=3)
    endless = random_subsets(NUM_TRAIN, 4000, seed=99)
    exact = predict_losses(truth, endless)
    spread = exact.std()
    noisy = exact + 0.5 * spread * torch.randn(exact.shape, generator=generator)
    target = spearman(predict_losses(guess, endless), noisy).mean().item()
    for trial in range(20):
        subsets = random_subsets(NUM_TRAIN, NUM_SUBSETS, seed=trial)
        losses = predict_losses(truth, subsets).T[:, None]
        losses = losses + 0.5 * spread * torch.randn(losses.shape, generator=generator)
        found = lds({"guess": guess}, losses, subsets, num_bootstrap=200).rows["guess"].lds
        hits += found.low <= target <= found.high
    assert hits >= 15, f"{hits} of 20 intervals held the value; below 15 has probability 1e-3 at 95 %"


def test_a_difference_is_narrower_than_the_intervals_of_methods_that_err_alike() -> None:
    truth, losses, subsets = planted(noise=1.0)
    table = lds({"a": truth, "b": truth + 0.1 * randn(NUM_QUERIES, NUM_TRAIN, seed=2)}, losses, subsets)
    gap, alone = table.difference("a", "b"), table.rows["a"].lds
    assert gap.high - gap.low < 0.5 * (alone.high - alone.low)
    with pytest.raises(ValueError, match="no row 'c'"):
        table.difference("a", "c")


def test_head_and_tail_add_up_and_the_head_holds_the_strongest() -> None:
    scores = randn(3, NUM_TRAIN)
    head = head_of(scores)
    kept = head != 0
    assert kept.sum(1).tolist() == [NUM_TRAIN // 10] * 3
    assert scores.abs()[kept].min(0).values >= 0
    for row, mask in zip(scores.abs(), kept, strict=True):
        assert row[mask].min() > row[~mask].max()


def test_nan_losses_are_refused() -> None:
    _, losses, subsets = planted(noise=0)
    losses[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="every subset needs every seed"):
        lds({}, losses, subsets)


def test_a_control_cannot_be_passed_off_as_a_method() -> None:
    truth, losses, subsets = planted(noise=0)
    with pytest.raises(ValueError, match="must not be named"):
        lds({CONSTANT: truth}, losses, subsets)


def test_scores_within_three_robust_deviations_of_zero_count_as_zero() -> None:
    # The median of |x| over an odd number is its middle: 1. Three of 1.4826 of it are 4.4478.
    scores = torch.tensor([[1.0, -1.0, 1.0, -1.0, 4.447, -4.447, 4.449, -4.449, 1.0]])
    left, share = significant(scores)
    assert left[0].tolist() == pytest.approx([0, 0, 0, 0, 0, 0, 4.449, -4.449, 0])
    assert share == pytest.approx(2 / 9)
    # Of an even number it is the mean of the middle two: 2, so the limit is 8.8956.
    left, share = significant(torch.tensor([[1.0, -8.895, 3.0, 1.0], [1.0, -1.0, 3.0, 8.897]], dtype=torch.float64))
    assert left.tolist() == [[0, 0, 0, 0], [0, 0, 0, 8.897]]
    assert share == 1 / 8


def test_what_is_left_does_not_depend_on_scale_and_sign_and_each_query_has_its_own_limit() -> None:
    scores = randn(NUM_QUERIES, 400) ** 3
    left, share = significant(scores)
    assert 0 < share < 0.5
    alone = [significant(row[None]) for row in scores]
    assert torch.equal(left, torch.cat([row for row, _ in alone]))
    assert share == pytest.approx(sum(part for _, part in alone) / NUM_QUERIES)
    assert torch.equal(significant(-4 * scores)[0], -4 * left)


def test_of_normal_scores_as_many_are_left_as_lie_beyond_three_deviations() -> None:
    _, share = significant(randn(4, 100_000))
    expected = math.erfc(3 / math.sqrt(2))  # 0.0027
    # Counting 400,000 and the median's own error, about six times 1e-4 together.
    assert abs(share - expected) < 6e-4


def test_what_stands_out_is_left_whole_when_most_scores_are_zero() -> None:
    scores = torch.zeros(1, 9)
    scores[0, 3] = 1e-12
    left, share = significant(scores)
    assert torch.equal(left, scores)
    assert share == pytest.approx(1 / 9)


def test_a_query_of_which_nothing_is_left_has_lds_zero() -> None:
    _, losses, subsets = planted(noise=0)
    left, share = significant(torch.ones(NUM_QUERIES, NUM_TRAIN))
    assert share == 0
    assert lds_per_query(predict_losses(left, subsets), losses).tolist() == [0] * NUM_QUERIES


def test_nan_is_not_taken_for_noise() -> None:
    with pytest.raises(ValueError, match="scores have NaN"):
        significant(torch.tensor([[1.0, float("nan")]]))
