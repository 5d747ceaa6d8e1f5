"""Captions are compared with a prompt as a reader would, and tested as a statistician would."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import pytest
import torch

from journey.demo.captions import chance_of_count, distinct_proponents, match, nearest, share_a_word, words
from journey.scores.scores import Scores


def test_words_are_compared_without_case_punctuation_and_words_that_say_nothing() -> None:
    assert words("A Jack-O-Lantern, with the MOON") == {"jack", "o", "lantern", "moon"}
    captions = ["red apple", "pineapple", "red heart", "face with tears of joy", "green APPLE"]
    assert share_a_word("a red apple", captions) == [True, False, True, False, True]
    assert share_a_word("tears without joy", captions) == [False, False, False, True, False]
    assert share_a_word("with of", captions) == [False] * 5


def test_the_nearest_caption_is_the_prompt_itself_or_the_most_similar_one() -> None:
    captions, vectors = ["red apple", "tulip"], torch.eye(2)
    assert nearest("  Red  APPLE ", captions, vectors[1], vectors) == 0
    assert nearest("fruit", captions, torch.tensor([0.6, 0.8]), vectors) == 1


def test_proponents_of_several_images_are_counted_once() -> None:
    values = torch.tensor([[[3.0, 2.0, 1.0, 0.0]] * 2, [[3.0, 0.0, 1.0, 2.0], [0.0, 0.0, 1.0, 2.0]]])
    scores = Scores(values, torch.tensor([900, 100]), [0, 1, 2, 3], 0.1)
    proponents = distinct_proponents(scores, 2)
    assert proponents == [[0, 1, 3], [0, 1, 2, 3]]
    found = match("even", [True, False, True, False], proponents)
    assert (found.chance, found.counts) == (0.5, [1, 2])
    # At least one head of three coins, at least two of four.
    assert found.p_values == pytest.approx([7 / 8, 11 / 16])


@pytest.mark.parametrize(("k", "n"), [(0, 5), (1, 1), (3, 10), (10, 10), (37, 40), (40, 40)])
@pytest.mark.parametrize("p", [Fraction(1, 2), Fraction(1, 541), Fraction(540, 541)])
def test_the_binomial_tail_equals_its_exact_sum(k: int, n: int, p: Fraction) -> None:
    exact = sum(comb(n, x) * p**x * (1 - p) ** (n - x) for x in range(k, n + 1))
    # Terms come from logarithms near 200 with float64's relative error, so within 1e-13 each.
    assert chance_of_count(k, n, float(p)) == pytest.approx(float(exact), rel=1e-11)


def test_certain_and_impossible_properties_have_their_tails() -> None:
    assert chance_of_count(3, 3, 1.0) == 1
    assert chance_of_count(0, 3, 0.0) == 1
    assert chance_of_count(1, 3, 0.0) == 0


def test_impossible_counts_and_probabilities_are_refused() -> None:
    with pytest.raises(ValueError, match="successes must be between 0 and trials, got 4 of 3"):
        chance_of_count(4, 3, 0.5)
    with pytest.raises(ValueError, match=r"probability must be in \[0, 1\], got 1.5"):
        chance_of_count(1, 3, 1.5)
