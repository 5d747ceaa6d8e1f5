"""Sums of scores of groups, held to float64 sums; and what splitting a group must not change."""

from __future__ import annotations

import csv
from decimal import Decimal
from fractions import Fraction
from itertools import permutations
from math import factorial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from journey.scores.errors import ScoreErrors
from journey.scores.groups import COLUMNS, Groups
from journey.scores.payments import divide
from journey.scores.scores import Scores

NAMES = [f"image-{i}.png" for i in range(12)]
THREE = {"ann": NAMES[:5], "ben": NAMES[5:7], "cat": NAMES[7:10]}


def make_scores(num_train: int = 12, checkpoints: int = 2, seed: int = 0, ids: Any = None) -> Scores:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator)

    errors = ScoreErrors(
        random(checkpoints, num_train),
        random(checkpoints, num_train),
        random(checkpoints, 2, 3),
        random(checkpoints, 2, 3),
    )
    values = torch.randn(2, 3, num_train, generator=generator) * 3
    return Scores(values, torch.tensor([80, 40, 10]), NAMES[:num_train] if ids is None else ids, 0.1, errors=errors)


def of(sums: list[float], errors: list[float], names: list[str | None] | None = None) -> Groups:
    """Groups of one query and step."""
    names = [f"g{i}" for i in range(len(sums))] if names is None else names
    value, unsure = (torch.tensor(x, dtype=torch.float64)[None, None] for x in (sums, errors))
    return Groups(names, [1] * len(sums), torch.tensor([0]), value, unsure, value.abs().sum(-1))


def test_sums_errors_and_shares_are_those_of_float64() -> None:
    scores = make_scores()
    groups = scores.groups(THREE)
    values, parts = scores.values.double().numpy(), scores.errors
    assert parts is not None
    assert groups.names == ["ann", "ben", "cat", None]
    assert groups.sizes == [5, 2, 3, 2]
    for g, columns in enumerate(([0, 1, 2, 3, 4], [5, 6], [7, 8, 9], [10, 11])):
        np.testing.assert_allclose(groups.sums[..., g], values[..., columns].sum(-1), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(
            groups.shares()[..., g], values[..., columns].sum(-1) / np.abs(values).sum(-1), rtol=1e-12, atol=1e-12
        )
        noise = np.sqrt((parts.noise.double().numpy()[:, columns] ** 2).sum(1))
        norm = parts.norm.double().numpy()[:, columns].sum(1)
        rows = (parts.row_gain.double().numpy() * noise[:, None, None]).mean(0)
        query = (parts.query_gain.double().numpy() * norm[:, None, None]).mean(0)
        np.testing.assert_allclose(groups.errors[..., g], np.hypot(rows, query), rtol=1e-12)
        total = scores.total([NAMES[c] for c in columns])
        torch.testing.assert_close(groups.sums[..., g].float(), total.values, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(groups.errors[..., g].float(), total.errors)


def test_the_error_of_a_group_of_one_is_that_of_its_score() -> None:
    scores = make_scores()
    alone = scores.groups({name: [name] for name in NAMES})
    assert alone.names == NAMES
    torch.testing.assert_close(alone.errors.float(), scores.standard_errors())
    torch.testing.assert_close(alone.sums.float(), scores.values)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.booleans())
def test_splitting_a_group_changes_no_sum_no_share_and_no_rank_among_others(seed: int, cut: int, named: bool) -> None:
    scores = make_scores(seed=seed)
    rest = {} if not named else {"dan": NAMES[10:]}
    whole = scores.groups({**THREE, **rest})
    split = scores.groups(
        {"ann 1": NAMES[:cut], "ann 2": NAMES[cut:5], "ben": THREE["ben"], "cat": THREE["cat"], **rest}
    )
    for first, second in ((whole.sums, split.sums), (whole.shares(), split.shares())):
        torch.testing.assert_close(second[..., 0] + second[..., 1], first[..., 0], rtol=1e-12, atol=1e-12)
        assert torch.equal(second[..., 2:], first[..., 1:])
    assert torch.equal(whole.errors[..., 1:], split.errors[..., 2:])
    assert torch.equal(whole.above_noise()[..., 1:], split.above_noise()[..., 2:])
    # Who is above whom among the others: their ranks less those who are above them of the group that was split.
    for groups, parts in ((whole, [0]), (split, [0, 1])):
        others = [g for g in range(groups.num_named) if g not in parts]
        low, high = groups.sums - 2 * groups.errors, groups.sums + 2 * groups.errors
        over = (low[..., parts, None] > high[..., None, others]).sum(-2)
        under = (high[..., parts, None] < low[..., None, others]).sum(-2)
        ranks = groups.ranks()[..., others, :]
        reduced = torch.stack([ranks[..., 0] - over, ranks[..., 1] - len(parts) + under], -1)
        if len(parts) == 1:
            expected = reduced
    assert torch.equal(reduced, expected)
    # Shapley payments of the parts are those of the whole, up to the cent that each was rounded by.
    if (whole.sums.sum(-1) > 1).all():
        first, second = (groups.payments(1000, rule="shapley").amounts for groups in (whole, split))
        assert abs(second[0] + second[1] - first[0]) <= Decimal("0.03")
        assert all(abs(a - b) <= Decimal("0.02") for a, b in zip(first[1:], second[2:], strict=True))


def test_shares_are_within_one_and_of_nothing_zero() -> None:
    assert (make_scores().groups(THREE).shares().abs() <= 1).all()
    assert of([2.0, 3.0, 5.0], [1.0] * 3).shares().flatten().tolist() == [0.2, 0.3, 0.5]
    nothing = Scores(torch.zeros(1, 1, 2), torch.tensor([0]), [0, 1], 0.1).groups({"a": [0]})
    assert nothing.shares().tolist() == [[[0.0, 0.0]]]


def test_ranks_are_shared_where_intervals_overlap() -> None:
    # Intervals: [8, 12], [7, 9], [3, 5], [4, 4.4], [-2, 0].
    groups = of([10, 8, 4, 4.2, -1], [1, 0.5, 0.5, 0.1, 0.5])
    assert groups.ranks()[0, 0].tolist() == [[1, 2], [1, 2], [3, 4], [3, 4], [5, 5]]
    assert groups.above_noise()[0, 0].tolist() == [True] * 4 + [False]  # 2 errors away exactly is not above
    exact = of([1, 3, 2], [0, 0, 0])
    assert exact.ranks()[0, 0].tolist() == [[3, 3], [1, 1], [2, 2]]


def test_without_errors_nothing_is_above_the_noise_and_every_rank_is_possible() -> None:
    groups = Scores(torch.randn(1, 1, 4), torch.tensor([0]), [0, 1, 2, 3], 0.1).groups({"a": [0], "b": [1, 2]})
    assert groups.errors.isnan().all()
    assert not groups.above_noise().any()
    assert groups.ranks()[0, 0].tolist() == [[1, 2], [1, 2]]
    assert groups.informativeness().isnan().all()


def test_informativeness_is_the_part_of_the_variance_that_is_not_noise() -> None:
    assert of([1, 2, 3], [0, 0, 0]).informativeness().item() == 1
    assert of([1, 2, 3], [0.5, 0.5, 0.5]).informativeness().item() == pytest.approx(0.75)  # variance 1, noise 1/4
    assert of([1, 2, 3], [2, 2, 2]).informativeness().item() == 0
    assert of([1, 1, 1], [0, 0, 0]).informativeness().item() == 0
    assert of([1, 2, 100], [0.5, 0.5, 9], ["a", "b", None]).informativeness().item() == pytest.approx(0.5)  # var 1/2
    assert of([1, 100], [0.5, 9], ["a", None]).informativeness().isnan()


def test_informativeness_of_pure_noise_is_small_and_of_clear_differences_large() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(200, generator=generator, dtype=torch.float64)
    signal = 3 * torch.randn(200, generator=generator, dtype=torch.float64)
    assert of(noise.tolist(), [1.0] * 200).informativeness() < 0.25
    # The reliability: 9 / (9 + 1).
    assert of((signal + noise).tolist(), [1.0] * 200).informativeness().item() == pytest.approx(0.9, abs=0.03)


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        ({}, ValueError, "groups must have a group or more, got none"),
        ({"a": []}, ValueError, r"groups\['a'\] must have an image or more, got none"),
        ({"a": [NAMES[0]], "b": [NAMES[1], NAMES[0]]}, ValueError, "got the image 'image-0.png' in 'a' and in 'b'"),
        ({"a": [NAMES[0], NAMES[0]]}, ValueError, "got the image 'image-0.png' in 'a' and in 'a'"),
        ({"a": ["other.png"]}, ValueError, r"groups\['a'\] must be of images that have a score, got 'other.png'"),
        ({"a": [0]}, ValueError, r"groups\['a'\] must be of images that have a score, got 0"),
        ({"": [NAMES[0]]}, TypeError, "named by strings that are not empty, got ''"),
        ({3: [NAMES[0]]}, TypeError, "named by strings that are not empty, got 3"),
        ({"a": NAMES[0]}, TypeError, r"groups\['a'\] must be a list of ids, got '"),
        ({"a": 1}, TypeError, r"groups\['a'\] must be a list of ids, got 1"),
        ([NAMES], TypeError, "groups must be lists of ids by name"),
    ],
)
def test_groups_that_cannot_be_are_refused_by_name(groups: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_scores().groups(groups)


def test_scores_that_are_not_finite_have_no_sums() -> None:
    with pytest.raises(ValueError, match="values must be finite to be added up"):
        Scores(torch.tensor([[[1.0, float("nan")]]]), torch.tensor([0]), [0, 1], 0.1).groups({"a": [0]})


# Payments.


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 10**12),
    st.lists(st.floats(-1e6, 1e6, allow_nan=False), min_size=1, max_size=12).filter(
        lambda w: sum(map(Fraction, w)) > 0
    ),
)
def test_amounts_add_up_to_the_pool_and_are_within_a_cent_of_their_share(cents: int, weights: list[float]) -> None:
    pool = Decimal(cents).scaleb(-2)
    amounts = divide(pool, weights)
    assert sum(amounts) == pool
    total = sum(map(Fraction, weights))
    for amount, weight in zip(amounts, weights, strict=True):
        assert amount.as_tuple().exponent == -2
        assert abs(Fraction(amount) - Fraction(pool) * Fraction(weight) / total) < Fraction(1, 100)


def test_the_cents_that_are_left_go_to_the_largest_remainders_and_then_to_the_first() -> None:
    assert divide("0.10", [1, 1, 1]) == [Decimal("0.04"), Decimal("0.03"), Decimal("0.03")]
    assert divide(1, [1, 2, 4]) == [Decimal("0.14"), Decimal("0.29"), Decimal("0.57")]
    assert divide("0.01", [0.4, 0.6]) == [Decimal("0.00"), Decimal("0.01")]


@pytest.mark.parametrize("pool", [0, -1, "0.001", 10.005, float("nan"), float("inf"), "much"])
def test_a_pool_that_is_no_amount_is_refused(pool: Any) -> None:
    with pytest.raises(ValueError, match="pool must be a positive amount with two decimals at most"):
        of([1.0], [0.0]).payments(pool)


def test_every_query_and_step_divides_an_equal_part_of_the_pool() -> None:
    sums = torch.tensor([[[3.0, 1.0]], [[0.0, 500.0]]], dtype=torch.float64)
    groups = Groups(["a", "b"], [1, 1], torch.tensor([0]), sums, torch.zeros_like(sums), sums.abs().sum(-1))
    assert groups.payments(100).amounts == [Decimal("37.50"), Decimal("62.50")]


def test_negative_sums_get_nothing_or_owe() -> None:
    groups = of([6, -2, 4], [0, 0, 0], ["a", "b", None])
    assert groups.payments(80).amounts == [Decimal("48.00"), Decimal("0.00"), Decimal("32.00")]
    assert groups.payments(80, rule="shapley").amounts == [Decimal("60.00"), Decimal("-20.00"), Decimal("40.00")]
    with pytest.raises(ValueError, match="query 0 at step 0: no group has a positive sum"):
        of([-1, 0], [0, 0]).payments(1)
    with pytest.raises(ValueError, match="query 0 at step 0: the sum of all scores is not positive"):
        of([1, -2], [0, 0]).payments(1, rule="shapley")
    with pytest.raises(ValueError, match='rule must be "positive" or "shapley"'):
        groups.payments(1, rule="equal")  # type: ignore[arg-type]


def test_the_shapley_payment_is_the_mean_of_what_a_group_adds_over_all_orders() -> None:
    groups = make_scores(seed=3).groups(THREE)
    sums = groups.sums.sum((0, 1)).tolist()  # one game
    worth = lambda members: sum(sums[g] for g in members)  # noqa: E731
    shapley = [0.0] * 4
    for order in permutations(range(4)):
        for place, g in enumerate(order):
            shapley[g] += (worth(order[: place + 1]) - worth(order[:place])) / factorial(4)
    total = worth(range(4))
    if total <= 0:
        sums, shapley, total = [-s for s in sums], [-s for s in shapley], -total
    found = of(sums, [0.0] * 4).payments(10_000, rule="shapley").amounts
    for amount, value in zip(found, shapley, strict=True):
        assert float(amount) == pytest.approx(10_000 * value / total, abs=0.0101)


# Tables.


def test_the_table_has_a_line_for_each_query_step_and_group(tmp_path: Path) -> None:
    scores = make_scores()
    hostile = {
        '=HYPERLINK("http://a")': NAMES[:5],
        'b, "quoted"\nline': NAMES[5:7],
        "+1": NAMES[7:8],
        " -c": NAMES[8:9],
        "@d": [NAMES[9]],
    }
    groups = scores.groups(hostile)
    path = groups.to_csv(tmp_path / "new" / "groups.csv")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == 2 * 3 * 6
    names = ["'" + '=HYPERLINK("http://a")', 'b, "quoted"\nline', "'+1", "' -c", "'@d", ""]
    for number, row in enumerate(rows):
        query, step, group = number // 18, number // 6 % 3, number % 6
        assert (row["query"], row["step"], row["group"]) == (str(query), str([80, 40, 10][step]), names[group])
        assert int(row["images"]) == [5, 2, 1, 1, 1, 2][group]
        assert float(row["sum"]) == pytest.approx(groups.sums[query, step, group].item(), rel=1e-8)
        assert float(row["standard_error"]) == pytest.approx(groups.errors[query, step, group].item(), rel=1e-8)
        assert float(row["share"]) == pytest.approx(groups.shares()[query, step, group].item(), rel=1e-8)
        assert row["above_noise"] == str(int(groups.above_noise()[query, step, group]))
        ranks = ["", ""] if group == 5 else list(map(str, groups.ranks()[query, step, group].tolist()))
        assert [row["rank_best"], row["rank_worst"]] == ranks
    paid = of([3, 1], [0, 0], ["=a", None]).payments("1.00").to_csv(tmp_path / "payments.csv")
    assert paid.read_bytes() == b"group,amount\r\n'=a,0.75\r\n,0.25\r\n"


def test_unknown_errors_are_empty_in_the_table(tmp_path: Path) -> None:
    groups = Scores(torch.tensor([[[1.0, -2.0]]]), torch.tensor([0]), [0, 1], 0.1).groups({"a": [0]})
    lines = groups.to_csv(tmp_path / "groups.csv").read_text().splitlines()
    assert lines[1] == "0,0,a,1,1.0,,0.333333333,,1,1"
    assert lines[2] == "0,0,,1,-2.0,,-0.666666667,,,"
