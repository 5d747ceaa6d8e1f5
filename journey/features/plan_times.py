"""Times of a few calls, with how sure they are."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

_T = TypeVar("_T")


@dataclass(frozen=True)
class Spread:
    """Seconds, and how sure they are.

    Attributes:
        median: From the median of the calls that were measured.
        lowest: From the fastest of them.
        highest: From the slowest.
    """

    median: float
    lowest: float
    highest: float

    @staticmethod
    def of(seconds: Sequence[float]) -> Spread:
        """Return the spread of some times, at least one."""
        return Spread(statistics.median(seconds), min(seconds), max(seconds))

    def __add__(self, other: Spread) -> Spread:
        return Spread(self.median + other.median, self.lowest + other.lowest, self.highest + other.highest)

    def __mul__(self, factor: float) -> Spread:
        return Spread(self.median * factor, self.lowest * factor, self.highest * factor)


def timed(run: Callable[[], _T]) -> tuple[float, _T]:
    """Return how long a call takes that waits for its results, in seconds, and its result."""
    begin = time.perf_counter()
    found = run()
    return time.perf_counter() - begin, found


def timed_often(run: Callable[[], _T], seconds: float) -> tuple[Spread, _T]:
    """Time a call again and again until a time is over, at least once; one call before that does not count."""
    run()
    times: list[float] = []
    while True:
        spent, found = timed(run)
        times.append(spent)
        if sum(times) >= seconds:
            return Spread.of(times), found
