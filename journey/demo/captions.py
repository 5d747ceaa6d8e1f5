"""What captions have to do with a prompt, and whether proponents have more of it than chance would give them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, fsum, lgamma, log

from torch import Tensor

from journey.scores.scores import Scores

# Words that say nothing about a picture.
_EMPTY = {"a", "an", "and", "at", "by", "for", "from", "in", "of", "on", "or", "the", "to", "with", "without"}


@dataclass(frozen=True)
class Match:
    """How often the strongest proponents have a property, beside chance.

    Attributes:
        name: The property, in words.
        chance: Fraction of all training images that have it.
        counts: How many of the distinct proponents have it, per step. [num_steps]
        p_values: Of the one-sided binomial test against ``chance``, per step. [num_steps]
    """

    name: str
    chance: float
    counts: list[int]
    p_values: list[float]


def words(text: str) -> set[str]:
    """Return the words of a text in lower case, without those that say nothing about a picture."""
    return set(re.findall(r"[^\W_]+", text.lower())) - _EMPTY


def share_a_word(text: str, captions: Sequence[str]) -> list[bool]:
    """Return which captions have a word in common with a text. [num_captions]"""
    wanted = words(text)
    return [bool(wanted & words(caption)) for caption in captions]


def nearest(text: str, captions: Sequence[str], vector: Tensor, vectors: Tensor) -> int:
    """Return which caption is nearest to a text: the text itself, or that of the most similar meaning.

    Args:
        text: The text.
        captions: The captions, in lower case. [num_captions]
        vector: Of the text, of length 1. [dim]
        vectors: Of the captions, of length 1. [num_captions, dim]

    Returns:
        Its position.
    """
    plain = " ".join(text.lower().split())
    return captions.index(plain) if plain in captions else int((vectors @ vector).argmax())


def distinct_proponents(scores: Scores, k: int) -> list[list[int]]:
    """Return the training images among the top k of any query, each once, in ascending order, per step.

    Queries of one prompt have many proponents in common; counted once each, they are trials of a test.

    Args:
        scores: Scores of all queries.
        k: How many of each query and step.

    Returns:
        Between ``k`` and ``k * num_queries`` ids per step. [num_steps][...]
    """
    ids = scores.top(k).proponents.ids  # [num_queries, num_steps, k]
    return [sorted(set(ids[:, step].flatten().tolist())) for step in range(ids.shape[1])]


def match(name: str, has: Sequence[bool], proponents: Sequence[Sequence[int]]) -> Match:
    """Count a property among proponents and test it against its frequency among all training images.

    Args:
        name: The property, in words.
        has: Which training images have it. [num_train]
        proponents: Distinct training images, per step. [num_steps][...]

    Returns:
        The counts and the tests.
    """
    chance = sum(has) / len(has)
    counts = [sum(has[i] for i in ids) for ids in proponents]
    tests = [chance_of_count(count, len(ids), chance) for count, ids in zip(counts, proponents, strict=True)]
    return Match(name, chance, counts, tests)


def chance_of_count(successes: int, trials: int, probability: float) -> float:
    """Return the probability of so many successes or more in independent trials.

    ``P(X >= k) = sum_{x >= k} C(n, x) p^x (1 - p)^(n - x)``

    Args:
        successes: k, between 0 and ``trials``.
        trials: n.
        probability: p, in [0, 1].

    Returns:
        The one-sided p-value of the binomial test.

    Raises:
        ValueError: If an argument is out of range.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"successes must be between 0 and trials, got {successes} of {trials}")
    if not 0 <= probability <= 1:
        raise ValueError(f"probability must be in [0, 1], got {probability}")
    if successes == 0 or probability == 1:
        return 1.0
    if probability == 0:
        return 0.0

    def term(x: int) -> float:
        ways = lgamma(trials + 1) - lgamma(x + 1) - lgamma(trials - x + 1)
        return exp(ways + x * log(probability) + (trials - x) * log(1 - probability))

    return min(1.0, fsum(term(x) for x in range(successes, trials + 1)))
