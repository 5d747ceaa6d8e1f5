"""Noise schedules: how much signal and noise a training timestep means, and what the network is trained to predict.

A timestep is an int64 index 0 ... num_train_timesteps - 1 with ascending noise, whatever numbers the network is given.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
Interval = tuple[int, int]  # timesteps [t0, t1)


class Schedule(ABC):
    """The forward process ``x_t = signal_t x0 + sigma_t noise`` and the training target that belongs to it.

    Attributes:
        num_train_timesteps: Number of timesteps.
        prediction_type: What the network predicts: one of ``PREDICTION_TYPES``, ``"velocity"``, or that under EDM.
    """

    num_train_timesteps: int
    prediction_type: str

    @abstractmethod
    def signal_and_sigma(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the factors of image and noise, float32, on the timesteps' device. Each [num_rows]"""

    def factors(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``signal_and_sigma`` to multiply rows such as ``like`` with. Each [num_rows, 1, ...]"""
        ones = (1,) * (like.dim() - 1)
        signal, sigma = self.signal_and_sigma(timesteps)
        return signal.view(-1, *ones), sigma.view(-1, *ones)

    def levels(self, timesteps: Tensor) -> Tensor:
        """Return the factors of image and noise at some timesteps, float32, on the CPU. [num_rows, 2]"""
        return torch.stack(self.signal_and_sigma(timesteps.cpu()), 1)

    @abstractmethod
    def network_time(self, timesteps: Tensor) -> Tensor:
        """Return the numbers that the network is given for some timesteps. [num_rows]"""

    @abstractmethod
    def nearest(self, times: Tensor) -> list[int]:
        """Return the timestep nearest to each of a sampler's times, which may lie between timesteps."""

    @abstractmethod
    def level(self, sampler: Any, index: int) -> tuple[float, float]:
        """Return signal and sigma at a step of a sampler, which may lie between timesteps.

        Args:
            sampler: A diffusers scheduler after ``set_timesteps``, whose input is in the network's scale.
            index: Which of ``sampler.timesteps``.

        Returns:
            Both factors.
        """

    @abstractmethod
    def target(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return what the network was trained to predict. [num_rows, ...]"""

    @abstractmethod
    def invert(self, prediction: Tensor, x_t: Tensor, signal: Tensor | float, sigma: Tensor | float) -> Tensor:
        """Return the clean image that a prediction implies. [num_rows, ...]"""

    @abstractmethod
    def fingerprint(self) -> str:
        """Hash the table of the schedule."""

    def add_noise(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return ``x_t = signal_t x0 + sigma_t noise``. [num_rows, ...]"""
        signal, sigma = self.factors(timesteps, x0)
        return signal * x0 + sigma * noise

    def x0_from(self, prediction: Tensor, x_t: Tensor, timesteps: Tensor) -> Tensor:
        """Return the clean image that a prediction at some timesteps implies. [num_rows, ...]"""
        return self.invert(prediction, x_t, *self.factors(timesteps, x_t))


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


def nearest_levels(schedule: Schedule, levels: Tensor, names: Sequence[int]) -> list[int]:
    """Return the timesteps of a schedule that have the same ratio of noise to image as some levels of another.

    Args:
        schedule: The schedule.
        levels: Factors of image and noise, noise descending. [num_levels, 2]
        names: What each is called in errors.

    Returns:
        The nearest timesteps, no further than its neighbour is.

    Raises:
        ValueError: If a level is beyond the schedule's, or two have the same timestep.
    """
    table = schedule.levels(torch.arange(schedule.num_train_timesteps, dtype=torch.int64, device="cpu")).double()
    # As angles, so that pure noise is no infinity.
    angles, wanted = (torch.atan2(x[:, 1], x[:, 0]) for x in (table, levels.double()))
    apart, nearest = (wanted[:, None] - angles[None]).abs().min(1)
    found: list[int] = nearest.tolist()
    for i, index in enumerate(found):
        near = angles[max(0, index - 1) : index + 2]
        if apart[i] > (near - angles[index]).abs().max():
            signal, sigma = levels[i].tolist()
            raise ValueError(
                f"timestep {names[i]} has {signal:.3g} of the image and {sigma:.3g} of the noise, which no timestep of "
                "the other schedule comes near; leave it out, as with record(..., steps=...)"
            )
        if index in found[:i]:
            raise ValueError(
                f"timesteps {names[found.index(index)]} and {names[i]} have the noise of one timestep of the other "
                f"schedule, {index}; leave one out, as with record(..., steps=...)"
            )
    return found
