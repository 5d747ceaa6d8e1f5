"""Intervals of timesteps."""

from __future__ import annotations

Interval = tuple[int, int]  # timesteps [t0, t1)


def check_interval(name: str, interval: Interval, num_train_timesteps: int) -> None:
    """Refuse what is not a range of timesteps.

    Args:
        name: Names the argument in the error.
        interval: Timesteps (t0, t1), t1 excluded.
        num_train_timesteps: Timesteps of the schedule.

    Raises:
        ValueError: If it is not a pair of integers with 0 <= t0 < t1 <= num_train_timesteps.
    """
    pair = len(interval) == 2 and all(isinstance(t, int) for t in interval)
    if not pair or not 0 <= interval[0] < interval[1] <= num_train_timesteps:
        raise ValueError(
            f"{name} must be timesteps (t0, t1) with 0 <= t0 < t1 <= {num_train_timesteps}, got {interval!r}"
        )
