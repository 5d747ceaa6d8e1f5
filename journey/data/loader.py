"""Items of a dataset, read ahead."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from journey.data.items import Dataset


@dataclass(frozen=True)
class Failed:
    """An item that could not be read."""

    position: int
    error: Exception


def read_batches(
    dataset: Dataset, batches: Iterable[Sequence[int]], workers: int = 0
) -> Iterator[tuple[Sequence[int], list[Any]]]:
    """Yield items of positions."""
    for positions in batches:
        items = []
        for i in positions:
            try:
                items.append(dataset[i])
            except Exception as error:
                items.append(Failed(i, error))
        yield positions, items
