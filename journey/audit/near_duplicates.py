"""Training images that are one image to the model: groups of nearly parallel rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from journey.audit.kernel import Kernel, KernelBlock
from journey.curvature.gram import DEFAULT_DAMPING
from journey.features.features import Features

_NULL_PAIRS = 1 << 20  # that the threshold is taken from, at most, about
_NULL_DEVIATIONS = 6.0  # beyond the median of random pairs, in robust standard deviations
_LEAST = 0.5  # below it two images have more that differs than in common


@dataclass(frozen=True)
class Pair:
    """Two images whose rows are nearly parallel.

    Attributes:
        ids: The images.
        cosine: Of their rows in the damped metric, without the draws' noise.
        error: Its standard error, at most.
    """

    ids: tuple[int | str, int | str]
    cosine: float
    error: float


@dataclass(frozen=True)
class Duplicates:
    """Groups of near-duplicates.

    Attributes:
        groups: Each with the ids of its images, in the order of rows; the largest cosine first.
        pairs: For each group, the pairs that hold it together, the largest cosine first.
        threshold: Cosine from which two images count as one.
        undecided: Pairs above the threshold that the noise of their draws may have put there.
    """

    groups: list[list[int | str]]
    pairs: list[list[Pair]]
    threshold: float
    undecided: list[Pair]


def near_duplicates(
    features: Features | Kernel, *, threshold: float | None = None, damping: float = DEFAULT_DAMPING
) -> Duplicates:
    """Find groups of training images that do the same to the model: connected by pairs of nearly parallel rows.

    The cosine ``K[i, j] / sqrt(K[i, i] K[j, j])`` is that of rows in the damped metric, whose diagonal is without the
    noise of the draws. Pixels do not enter: a copy that is shifted, recoloured or cut trains the model alike.

    Args:
        features: The training images, or their kernel.
        threshold: Cosine from which two images count as one. By default that of random pairs, of which most are none:
            six robust standard deviations above their median, and at least one half.
        damping: As for ``journey.score``; of a kernel its own counts.

    Returns:
        The groups. Memory holds 256 rows of cosines at a time.

    Raises:
        TypeError: As ``self_influence``.
        ValueError: As ``self_influence``, or if ``threshold`` is not in (0, 1].
    """
    if threshold is not None and not 0 < threshold <= 1:
        raise ValueError(f"threshold must be a cosine in (0, 1], got {threshold}")
    kernel = features if isinstance(features, Kernel) else Kernel.of(features, damping)
    least = _calibrated(kernel) if threshold is None else threshold
    ids = kernel.ids
    found: list[tuple[int, int, Pair]] = []
    undecided: list[tuple[int, int, Pair]] = []
    for block in kernel.blocks():
        cosines, errors = _cosines(kernel, block)
        rows, columns = (cosines >= least).nonzero().unbind(1)
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            first = block.first + row
            if column > first:
                pair = Pair((ids[first], ids[column]), cosines[row, column].item(), errors[row, column].item())
                sure = pair.cosine - 2 * pair.error > least / 2
                (found if sure else undecided).append((first, column, pair))
    groups = _components(found)
    order = {i: place for place, i in enumerate(ids)}
    named = [sorted({i for pair in group for i in pair.ids}, key=order.__getitem__) for group in groups]
    return Duplicates(named, groups, least, [pair for _, _, pair in undecided])


def _cosines(kernel: Kernel, block: KernelBlock) -> tuple[Tensor, Tensor]:
    """Cosines of a block with all rows, and their errors; zero where a row is nothing but noise."""
    own = kernel.own.clamp(min=0).sqrt()
    here = own[block.first : block.first + len(block.values), None]
    lengths = here * own
    # Of a row that is all noise nothing can be said; rows of equal noise make no pair.
    sure = kernel.own > 2 * kernel.own_errors
    known = sure[block.first : block.first + len(block.values), None] & sure & (lengths > 0)
    safe = torch.where(known, lengths, torch.ones_like(lengths))
    zero = torch.zeros_like(lengths)
    return torch.where(known, block.values / safe, zero), torch.where(known, block.errors / safe, zero)


def _calibrated(kernel: Kernel) -> float:
    """The default threshold, from the cosines of random pairs."""
    count = len(kernel.ids)
    step = max(1, count * count // _NULL_PAIRS)
    sample = []
    for block in kernel.blocks():
        cosines, _ = _cosines(kernel, block)
        places = torch.arange(len(cosines), dtype=torch.int64, device="cpu")
        cosines[places, block.first + places] = torch.nan
        sample.append(cosines.flatten()[::step])
    values = torch.cat(sample)
    values = values[~values.isnan()]
    median = values.median()
    deviation = 1.4826 * (values - median).abs().median()
    return min(1.0, max(_LEAST, (median + _NULL_DEVIATIONS * deviation).item()))


def _components(found: list[tuple[int, int, Pair]]) -> list[list[Pair]]:
    """The pairs of each connected component, the largest cosine first."""
    parent: dict[int, int] = {}

    def root(i: int) -> int:
        while parent.setdefault(i, i) != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for first, second, _ in found:
        parent[root(second)] = root(first)
    groups: dict[int, list[Pair]] = {}
    for first, _, pair in found:
        groups.setdefault(root(first), []).append(pair)
    ranked = [sorted(group, key=lambda pair: -pair.cosine) for group in groups.values()]
    return sorted(ranked, key=lambda group: -group[0].cosine)
