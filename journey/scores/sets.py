"""Sets of training images, as ``Scores.removal_set`` returns them, and what finds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

# By their own scores; the sets of docs/results/removals.md are chosen among as many.
CANDIDATES = 300


@dataclass(frozen=True, eq=False)
class RemovalSet:
    """Training images to remove together.

    Attributes:
        ids: In the order of choice. [k]
        totals: Predicted effect of removing the first, the first two, ..., in the unit of scores, float64. [k]
        sums: The sums of their scores, which leave out that one teaches what another does, float64. [k]
    """

    ids: list[int | str]
    totals: Tensor
    sums: Tensor


class FindsRemovals(Protocol):
    """What scores came from, as far as sets need it."""

    def find(
        self,
        k: int,
        dataset: Any,
        place: tuple[int, int],
        values: Tensor,
        train_ids: Sequence[int | str],
        *,
        candidates: int,
        progress: bool,
    ) -> RemovalSet:
        """See ``journey.scores.removal.Removals.find``."""
        ...
