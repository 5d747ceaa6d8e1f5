"""Timing of several calls side by side, the rows that come of it, and the line that each row prints.

Everything that a row compares is timed in one interleaved loop (A B C A B C ...), so that a slow moment of the machine
hits all of them. A ratio is the median over the ratios of neighbouring calls, never a quotient of two lone times.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import quantiles
from typing import NamedTuple

import torch
from torch import Tensor

Call = Callable[[], object]

FLUSH_BYTES = 256 << 20  # written between two timed calls on a GPU, several times its L2 cache


class WrongResultError(AssertionError):
    """An operation differs from its float64 reference: its speed means nothing."""


@dataclass(frozen=True)
class Spread:
    """A median with its quartiles."""

    median: float
    low: float
    high: float

    @property
    def percent(self) -> float:
        """Half the distance of the quartiles, in percent of the median."""
        return 50 * (self.high - self.low) / self.median


@dataclass
class Ratio:
    """How ours compares with something else in the same run.

    Args:
        against: What it is compared with.
        value: Time of that over ours (``"speedup"``), or ours over that (``"cost"``), median and quartiles.
        kind: Which of the two.
        error: Error of a peer against float64, where it has one.
    """

    against: str
    value: Spread
    kind: str = "speedup"
    error: float | None = None


@dataclass
class Goal:
    """A number that a row has to reach.

    Args:
        what: The number, in words.
        sense: ``">="`` or ``"<="``.
        needed: Where it has to be.
        measured: Where it is.
    """

    what: str
    sense: str
    needed: float
    measured: float
    met: bool = field(init=False)

    def __post_init__(self) -> None:
        """Decide."""
        self.met = self.measured >= self.needed if self.sense == ">=" else self.measured <= self.needed


@dataclass
class Row:
    """One line of the bench, and one entry of its JSON."""

    op: str
    sizes: str
    device: str
    seconds: Spread | None = None
    repetitions: int = 0
    rate: float | None = None
    rate_unit: str = ""
    bound: str = ""
    fraction: Spread | None = None
    ratios: list[Ratio] = field(default_factory=list)
    error: float | None = None
    goal: Goal | None = None
    note: str = ""
    failure: str = ""


class Bound(NamedTuple):
    """What limits an operation: a probe of the machine's ceiling, timed beside it.

    Args:
        name: The ceiling, such as ``"read bandwidth"``.
        work: Bytes that the operation must move, or FLOPs that it must do.
        probe: A call that runs at the ceiling.
        probe_work: Its bytes or FLOPs.
    """

    name: str
    work: float
    probe: Call
    probe_work: float


@dataclass(frozen=True)
class Timings:
    """Seconds of every call, in the order in which they ran."""

    seconds: dict[str, list[float]]

    @property
    def repetitions(self) -> int:
        """How often each call was timed."""
        return len(next(iter(self.seconds.values())))

    def of(self, name: str) -> Spread:
        """Return the seconds of one call."""
        return spread(self.seconds[name])

    def ratio(self, name: str, to: str, scale: float = 1.0) -> Spread:
        """Return ``scale * time(name) / time(to)`` over the rounds of the loop."""
        pairs = zip(self.seconds[name], self.seconds[to], strict=True)
        return spread([scale * first / second for first, second in pairs])


def spread(values: list[float]) -> Spread:
    """Return median and quartiles."""
    low, median, high = quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def interleave(
    calls: Mapping[str, Call],
    device: torch.device,
    *,
    budget: float,
    rounds: tuple[int, int],
    in_series: bool = False,
) -> Timings:
    """Time calls in turn, as many rounds as the budget allows.

    Args:
        calls: Each does one piece of work.
        device: Where they work; on a GPU, events time them, with the L2 cache flushed before each.
        budget: Seconds to spend on the timed rounds.
        rounds: Fewest and most rounds, whatever the budget.
        in_series: Run each call once more before it is timed, as when it follows itself. For calls that leave caches
            and allocator in another state than the next one would find in use.

    Returns:
        The seconds of every call. An untimed round warms up, two where calls are short.
    """
    clock = _cuda_clock(device) if device.type == "cuda" else _wall_clock
    estimate = sum(clock(call) for call in calls.values())
    if estimate * rounds[0] < budget:
        estimate = sum(clock(call) for call in calls.values())
    count = min(max(int(budget / estimate), rounds[0]), rounds[1])
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    gc.collect()
    gc.disable()
    try:
        for _ in range(count):
            for name, call in calls.items():
                if in_series:
                    call()
                seconds[name].append(clock(call))
    finally:
        gc.enable()
    return Timings(seconds)


def _wall_clock(call: Call) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _cuda_clock(device: torch.device) -> Callable[[Call], float]:
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)

    def clock(call: Call) -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        flush.zero_()  # also keeps the device busy while the call is launched
        begin.record()
        call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    return clock


@dataclass(frozen=True)
class Effort:
    """How long to measure: seconds per row, fewest and most rounds."""

    budget: float
    rounds: tuple[int, int]


QUICK = Effort(budget=1.0, rounds=(5, 20))
FULL = Effort(budget=3.0, rounds=(10, 60))


def measure(
    row: Row, ours: Call, *, effort: Effort, bound: Bound, peers: Mapping[str, Call], floor: str = ""
) -> Timings:
    """Time one operation beside its bound and its peers, and fill in its row.

    Args:
        row: Gets seconds, rate, fraction of the bound, and a ratio per peer.
        ours: The operation.
        effort: How long to measure.
        bound: What limits it.
        peers: What else does the same.
        floor: The one of ``peers`` that is no rival but what the operation cannot undercut: its ratio is a cost.

    Returns:
        All timings; ours is ``"ours"``, the bound's probe ``"probe"``.
    """
    calls = {"ours": ours, "probe": bound.probe, **peers}
    timings = interleave(calls, torch.device(row.device), budget=effort.budget, rounds=effort.rounds)
    row.seconds, row.repetitions = timings.of("ours"), timings.repetitions
    row.bound = bound.name
    row.fraction = timings.ratio("probe", "ours", bound.work / bound.probe_work)
    row.rate = bound.work / row.seconds.median / 1e9
    row.rate_unit = "GFLOP/s" if "GEMM" in bound.name else "GB/s"
    for name in peers:
        kind, first, second = ("cost", "ours", name) if name == floor else ("speedup", name, "ours")
        row.ratios.append(Ratio(name, timings.ratio(first, second), kind))
    return timings


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return the Frobenius norm of the difference over that of the float64 reference."""
    expected = expected.double().cpu()
    return float((actual.double().cpu() - expected).norm() / expected.norm())


def checked(error: float, tolerance: float) -> float:
    """Return the error, or refuse it.

    Args:
        error: What was found, NaN included.
        tolerance: What rounding explains.

    Returns:
        ``error``.

    Raises:
        WrongResultError: If the error is not within the tolerance.
    """
    if not error <= tolerance:
        raise WrongResultError(f"error against the float64 reference is {error:.2g}, rounding explains {tolerance:.0e}")
    return error


def line(row: Row) -> str:
    """Return the line that a row prints."""
    parts = [f"{row.op}  {row.sizes}" + ("" if row.device == "cpu" else f"  {row.device}")]
    if row.failure:
        return f"{parts[0]} | FAILED: {row.failure}"
    if row.seconds is not None:
        parts.append(f"{duration(row.seconds.median)} ±{row.seconds.percent:.0f} % of {row.repetitions}")
    if row.rate is not None:
        parts.append(f"{row.rate:.3g} {row.rate_unit}")
    if row.fraction is not None:
        parts.append(f"{100 * row.fraction.median:.0f} % of {row.bound}")
    parts += [describe_ratio(ratio) for ratio in row.ratios]
    if row.error is not None:
        parts.append(describe_error(row.error))
    if row.note:
        parts.append(row.note)
    if row.goal is not None:
        parts.append(describe_goal(row.goal))
    return " | ".join(parts)


def describe_ratio(ratio: Ratio) -> str:
    """Return a ratio in words."""
    sign = "x" if ratio.kind == "speedup" else "x the time of"
    error = "" if ratio.error is None else f" ({describe_error(ratio.error)})"
    return f"{ratio.value.median:.2f}{sign} {ratio.against}{error}"


def describe_goal(goal: Goal) -> str:
    """Return a goal in words."""
    return f"goal {goal.what} {goal.sense} {goal.needed:g}: {goal.measured:.2f} {'met' if goal.met else 'NOT MET'}"


def describe_error(error: float) -> str:
    """Return an error against the float64 reference in words."""
    return f"err {error:.0e}" if error else "err 0"


def duration(seconds: float) -> str:
    """Return seconds in the unit that suits them."""
    unit, scale = ("s", 1.0) if seconds >= 1 else ("ms", 1e3) if seconds >= 1e-3 else ("us", 1e6)
    return f"{seconds * scale:.3g} {unit}"
