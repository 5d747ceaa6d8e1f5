"""The likelihood of a feature along a generation: binomial bands, a monotone fit, and where it rises."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb
from statistics import NormalDist

import torch
from torch import Tensor

# The interval is where the fitted likelihood passes from a quarter of its rise to three quarters.
LOW, HIGH = 0.25, 0.75


def wilson_band(successes: Tensor, trials: Tensor, confidence: float) -> tuple[Tensor, Tensor]:
    """Return Wilson's confidence bounds of binomial proportions.

    With p = successes / trials and z the normal quantile of ``(1 + confidence) / 2``, the bounds are

    ``(p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)``

    Args:
        successes: Between 0 and ``trials``; sums of probabilities are allowed, whose bounds are wider than need be.
        trials: Positive.
        confidence: In (0, 1).

    Returns:
        Lower and upper bounds, float64, shaped as ``successes``.

    Raises:
        ValueError: If ``confidence`` is out of range.

    Reference:
        Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 1927.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    n = trials.double()
    p = successes.double() / n
    centre = p + z * z / (2 * n)
    margin = z * (p * (1 - p) / n + z * z / (4 * n * n)).sqrt()
    scale = 1 + z * z / n
    # At 0 and n successes the bound is 0 or 1 exactly, but for rounding.
    return ((centre - margin) / scale).clamp(min=0), ((centre + margin) / scale).clamp(max=1)


def isotonic(values: Tensor, weights: Tensor) -> Tensor:
    """Return the non-decreasing sequence nearest to ``values`` in weighted squares, float64. [num_steps]

    Neighbours that fall are pooled into their mean until none does.

    Reference:
        Ayer et al., "An Empirical Distribution Function for Sampling with Incomplete Information", 1955.
    """
    pools: list[tuple[float, float, int]] = []  # mean, weight, length
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        pools.append((value, weight, 1))
        while len(pools) > 1 and pools[-2][0] >= pools[-1][0]:
            (a, wa, na), (b, wb, nb) = pools[-2:]
            pools[-2:] = [((a * wa + b * wb) / (wa + wb), wa + wb, na + nb)]
    return torch.tensor([mean for mean, _, length in pools for _ in range(length)], dtype=torch.float64, device="cpu")


@dataclass(frozen=True)
class Rise:
    """Where a monotone likelihood rises.

    Attributes:
        before: The last step at which it has made less than a quarter of its rise.
        after: The first step at which it has made three quarters.
        midpoint: The timestep at which it has made half, between steps by linear interpolation.
    """

    before: int
    after: int
    midpoint: float


def find_rise(timesteps: list[int], fitted: Tensor) -> Rise | None:
    """Return where a fitted likelihood rises.

    Args:
        timesteps: Descending, as they are sampled.
        fitted: Non-decreasing. [num_steps]

    Returns:
        The rise, or None if there is none at all.
    """
    values = fitted.tolist()
    base, rise = values[0], values[-1] - values[0]
    if rise <= 0:
        return None
    parts = [(value - base) / rise for value in values]
    before = max(i for i, part in enumerate(parts) if part < LOW)
    after = min(i for i, part in enumerate(parts) if part >= HIGH)
    half = next(i for i, part in enumerate(parts) if part >= 0.5)
    share = (0.5 - parts[half - 1]) / (parts[half] - parts[half - 1])
    midpoint = timesteps[half - 1] + share * (timesteps[half] - timesteps[half - 1])
    return Rise(timesteps[before], timesteps[after], midpoint)


def chance_of_more(successes: tuple[int, int], trials: tuple[int, int]) -> float:
    """Return Fisher's exact probability that the first of two equal proportions comes out so much larger, or more.

    Given all successes of both groups, those of the first are hypergeometric:

    ``P(X >= k) = sum_{x >= k} C(n1, x) C(n2, s - x) / C(n1 + n2, s)``

    Args:
        successes: Of the first and the second group.
        trials: Likewise.

    Returns:
        The one-sided p-value.

    Raises:
        ValueError: If a group has more successes than trials, or fewer than none.

    Reference:
        Fisher, "Statistical Methods for Research Workers", 5th edition, 1934, section 21.02.
    """
    if any(not 0 <= k <= n for k, n in zip(successes, trials, strict=True)):
        raise ValueError(f"successes must be between 0 and trials, got {successes} of {trials}")
    (first, second), (n1, n2) = successes, trials
    total = first + second
    ways = sum(comb(n1, x) * comb(n2, total - x) for x in range(first, min(n1, total) + 1))
    return ways / comb(n1 + n2, total)
