"""The groups' bars of the page: which groups it shows, and their sums at every step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from journey.scores.groups import NOISE_LEVEL, Groups

_MOST = 24  # groups with a name; more would be no picture


def largest_groups(groups: Sequence[Groups]) -> list[int]:
    """Return which groups are shown: the 24 with the largest share at any step, and what is in no group.

    Args:
        groups: The same groups, of the whole images and of each region.

    Returns:
        Their places.
    """
    peaks = torch.stack([each.shares().abs().amax((0, 1)) for each in groups]).amax(0).tolist()
    num_named = groups[0].num_named
    named = sorted(range(num_named), key=lambda g: (-peaks[g], g))[:_MOST]
    return [*named, *range(num_named, len(peaks))]


def group_bars(groups: Groups, query: int, chosen: Sequence[int]) -> list[list[list[float | None]]]:
    """Return sum, ``NOISE_LEVEL`` standard errors and share in percent of some groups at each step.

    Args:
        groups: The groups.
        query: Of which generated image.
        chosen: Places of groups.

    Returns:
        [num_steps][num_chosen][3]
    """
    parts = (groups.sums[query], NOISE_LEVEL * groups.errors[query], 100 * groups.shares()[query])
    table = torch.stack(parts, -1)[:, list(chosen)]
    return [[[short(number) for number in group] for group in step] for step in table.tolist()]


def short(value: float) -> float | None:
    """Four digits; None for a number that is not known."""
    return None if math.isnan(value) else float(f"{value:.4g}")
