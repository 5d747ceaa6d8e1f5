"""Training images that are one image to the model: groups of nearly parallel rows."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from journey.audit.kernel import Kernel, KernelBlock
from journey.curvature.gram import DEFAULT_DAMPING
from journey.data.ids import Ids, ids_of, positions_of
from journey.data.items import Dataset, get_image
from journey.features.features import Features
from journey.files.fingerprint import fingerprint_tensors

SAME = 0.5  # cosine from which two images count as one
_NULL_PAIRS = 1 << 20  # that the null is taken from, at most, about
_NULL_DEVIATIONS = 6.0  # beyond the median of random pairs, in robust standard deviations
_ISOLATED = 3.0  # how far above the next cosine of either image that of an altered copy is


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
        null: Cosine beyond which a pair is more alike than random ones.
        undecided: Pairs that the noise of their draws may have made alike.
    """

    groups: list[list[int | str]]
    pairs: list[list[Pair]]
    null: float
    undecided: list[Pair]


def near_duplicates(
    features: Features | Kernel, *, threshold: float = SAME, damping: float = DEFAULT_DAMPING
) -> Duplicates:
    """Find groups of training images that do the same to the model: connected by pairs of nearly parallel rows.

    The cosine ``K[i, j] / (|i| |j|)`` is that of rows in the damped metric, without the noise of the draws. Two images
    count as one if it is at least ``threshold``; or, for copies that were shifted, recoloured or cut, if each is by far
    the nearest of the other: three times as near as the next. Either way it must be beyond what random pairs of the
    same set have, of which most are no duplicates: six robust standard deviations above their median. Pixels do not
    enter.

    Args:
        features: The training images, or their kernel.
        threshold: Cosine from which two images count as one.
        damping: As for ``journey.score``; of a kernel its own counts.

    Returns:
        The groups. Memory holds 256 rows of cosines at a time.

    Raises:
        TypeError: As ``self_influence``.
        ValueError: As ``self_influence``, or if ``threshold`` is not in (0, 1].
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be a cosine in (0, 1], got {threshold}")
    kernel = features if isinstance(features, Kernel) else Kernel.of(features, damping)
    null, nearest, second = _neighbours(kernel)
    ids = kernel.ids
    found: list[tuple[int, int, Pair]] = []
    undecided: list[tuple[int, int, Pair]] = []
    for block in kernel.blocks():
        cosines, errors = _cosines(kernel, block)
        rows = torch.arange(len(cosines), dtype=torch.int64, device="cpu") + block.first
        mutual = (nearest[rows][:, None] == torch.arange(len(ids), dtype=torch.int64, device="cpu")) & (
            nearest[None] == rows[:, None]
        )
        apart = cosines >= _ISOLATED * torch.maximum(second[rows][:, None], second)
        candidates = (cosines > null) & ((cosines >= threshold) | (mutual & apart))
        for row, column in candidates.nonzero().tolist():
            first = block.first + row
            if column > first:
                pair = Pair((ids[first], ids[column]), cosines[row, column].item(), errors[row, column].item())
                (found if pair.cosine - 2 * pair.error > null else undecided).append((first, column, pair))
    groups = _components(found)
    order = {i: place for place, i in enumerate(ids)}
    named = [sorted({i for pair in group for i in pair.ids}, key=order.__getitem__) for group in groups]
    return Duplicates(named, groups, null, [pair for _, _, pair in undecided])


def _cosines(kernel: Kernel, block: KernelBlock) -> tuple[Tensor, Tensor]:
    """Cosines of a block with all rows, and their errors; zero where a row is nothing but noise."""
    here = slice(block.first, block.first + len(block.values))
    known = kernel.known[here, None] & kernel.known
    lengths = kernel.lengths[here, None] * kernel.lengths
    safe = torch.where(known, lengths, torch.full_like(lengths, torch.inf))
    return block.values / safe, block.errors / safe


def _neighbours(kernel: Kernel) -> tuple[float, Tensor, Tensor]:
    """What random pairs have at most; the nearest image of each; the cosine of its second nearest. [num_train]"""
    count = len(kernel.ids)
    step = max(1, count * count // _NULL_PAIRS)
    sample, nearest, second = [], [], []
    for block in kernel.blocks():
        cosines, _ = _cosines(kernel, block)
        places = torch.arange(len(cosines), dtype=torch.int64, device="cpu")
        cosines[places, block.first + places] = -torch.inf
        best = cosines.topk(2, dim=1)
        nearest.append(best.indices[:, 0])
        second.append(best.values[:, 1])
        some = cosines.flatten()[::step]
        sample.append(some[some.isfinite()])
    values = torch.cat(sample)
    median = values.median()
    deviation = 1.4826 * (values - median).abs().median()
    return (median + _NULL_DEVIATIONS * deviation).item(), torch.cat(nearest), torch.cat(second)


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


def equal_pictures(ids: Ids, dataset: Dataset) -> list[list[int | str]]:
    """Return groups of images whose pixels are equal, whatever the model makes of them.

    Args:
        ids: Of the images to look at.
        dataset: Holds them.

    Returns:
        Groups of two or more, in the order of ``ids``.
    """
    places = positions_of(ids_of(dataset))
    groups: dict[str, list[int | str]] = {}
    for i in ids:
        if i in places:
            groups.setdefault(fingerprint_tensors({"image": get_image(dataset, places[i])}), []).append(i)
    return [group for group in groups.values() if len(group) > 1]


def with_equal(found: Duplicates, equal: list[list[int | str]]) -> Duplicates:
    """Return near-duplicates with groups of equal pictures that are in none of them; those are undecided no more."""
    known = [set(group) for group in found.groups]
    fresh = [group for group in equal if not any(set(group) <= each for each in known)]
    pairs = [[Pair((group[0], group[1]), 1.0, 0.0)] for group in fresh]
    sets = [set(group) for group in equal]
    undecided = [pair for pair in found.undecided if not any(set(pair.ids) <= some for some in sets)]
    return replace(found, groups=fresh + found.groups, pairs=pairs + found.pairs, undecided=undecided)
