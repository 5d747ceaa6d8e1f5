"""Which timesteps and which noise a sample is measured with.

A draw is a pure function of (seed, sample id, draw): neither the batch, its order, the shard nor the device enters, so
the same sample always gets the same bits. The range of timesteps is cut into bins of equal width; each bin has its own
draws and its own feature.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from journey.data.numbers import as_tensor
from journey.files.fingerprint import fingerprint_tensors
from journey.files.named import Named
from journey.models.schedules import Interval, check_interval
from journey.ops.keys import STREAM_TIMESTEP
from journey.ops.noise import keyed_noise, philox_words, sample_keys


def check_positions(ids: Sequence[int | str], what: str) -> None:
    """Refuse ids that cannot be positions in a dataset.

    Raises:
        TypeError: If one is a string; ``what`` needs positions.
        ValueError: If one is negative.
    """
    wrong = [i for i in ids if isinstance(i, str)]
    if wrong:
        raise TypeError(f"ids must be positions in the dataset for {what}, got {wrong[0]!r}")
    if any(int(i) < 0 for i in ids):
        raise ValueError(f"ids must be positions in the dataset for {what}, got {min(map(int, ids))}")


class Draws(Named):
    """Timesteps and noise for every sample: ``num_draws`` in each of ``bins`` ranges of timesteps."""

    num_draws: int
    bins: int

    @abstractmethod
    def timesteps(self, ids: Sequence[int | str], num_train_timesteps: int) -> Tensor:
        """Return the timesteps of some samples, int64. [num_samples, bins, num_draws]"""

    @abstractmethod
    def noise(self, ids: Sequence[int | str], shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Return the noise of some samples, float32. [num_samples, bins, num_draws, *shape]"""

    def row_weights(self, timesteps: Tensor, num_train_timesteps: int) -> Tensor | None:
        """Return each draw's factor in the mean over its bin, float32, shaped as ``timesteps``; None if all are one."""
        return None

    def edges(self, num_train_timesteps: int) -> Tensor:
        """Return the timesteps at which bins begin and end: bin b is [edges[b], edges[b + 1]), int64. [bins + 1]"""
        return torch.arange(self.bins + 1, dtype=torch.int64, device="cpu") * num_train_timesteps // self.bins

    def weights(self, num_train_timesteps: int, interval: Interval | None = None) -> Tensor:
        """Return the weight with which each bin's feature enters a sum over timesteps, float64. [bins]

        The weight is the share of *all* timesteps that lies both in the bin and in the interval. So the weights of the
        whole range sum to one, those of intervals that cut it in pieces add up to them, and a bin that lies in the
        interval in part enters by the share of its timesteps, as if its feature were constant within it.

        Args:
            num_train_timesteps: Timesteps of the schedule.
            interval: Timesteps (t0, t1), t1 excluded; the whole range by default.

        Returns:
            The weights.

        Raises:
            ValueError: If the interval is empty or leaves the range.
        """
        first, end = (0, num_train_timesteps) if interval is None else interval
        check_interval("interval", (first, end), num_train_timesteps)
        edges = self.edges(num_train_timesteps).clamp(first, end)
        return (edges[1:] - edges[:-1]).double() / num_train_timesteps


@dataclass(frozen=True)
class _KeyedDraws(Draws):
    """Draws from the counter-based generator, keyed by sample id.

    Args:
        num_draws: Draws per sample and bin.
        bins: Ranges of timesteps of equal width, each with its own feature.
        antithetic: Draws come in pairs with one timestep and opposite noise, so that what is odd in the noise cancels;
            an odd last draw has no partner.
        seed: Names the draws.

    Raises:
        ValueError: If a number is not positive.
    """

    num_draws: int = 8
    bins: int = 1
    antithetic: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("num_draws", "bins"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    def timesteps(self, ids: Sequence[int | str], num_train_timesteps: int) -> Tensor:
        """Return the timesteps of some samples, see ``Draws.timesteps``."""
        if self.bins > num_train_timesteps:
            raise ValueError(
                f"bins must be at most the {num_train_timesteps} timesteps of the schedule, got {self.bins}"
            )
        independent = (self.num_draws + 1) // 2 if self.antithetic else self.num_draws
        times = self._place(self._positions(ids, independent), self.edges(num_train_timesteps))
        return times.repeat_interleave(2, -1)[..., : self.num_draws] if self.antithetic else times

    def _place(self, positions: Tensor, edges: Tensor) -> Tensor:
        """Return the timesteps at positions in [0, 1) of each bin, int64. [num_samples, bins, independent]"""
        low, width = edges[:-1].view(1, -1, 1), (edges[1:] - edges[:-1]).view(1, -1, 1)
        return (low + (positions * width).floor().long()).clamp(max=(low + width - 1))

    @abstractmethod
    def _positions(self, ids: Sequence[int | str], independent: int) -> Tensor:
        """Return where in its bin each timestep lies, in [0, 1). [num_samples, bins, independent]"""

    def _uniforms(self, ids: Sequence[int | str], independent: int) -> Tensor:
        """Return keyed uniforms in [0, 1), float64. [num_samples, bins, independent]"""
        count = self.bins * independent
        keys = sample_keys(self.seed, "timestep", ids).repeat_interleave(count)
        indices = torch.arange(count, dtype=torch.int64, device="cpu").repeat(len(ids))
        words = philox_words(keys, indices, torch.zeros_like(keys), stream=STREAM_TIMESTEP)
        return (words[:, 0].double() / 2**32).view(len(ids), self.bins, independent)

    def noise(self, ids: Sequence[int | str], shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Return the noise of some samples, see ``Draws.noise``."""
        keys = sample_keys(self.seed, "noise", ids)
        return keyed_noise(
            keys, self.bins * self.num_draws, shape, device, antithetic=self.antithetic, per=self.num_draws
        )


@dataclass(frozen=True)
class StratifiedDraws(_KeyedDraws, name="stratified"):
    """One uniform timestep in each of as many strata as there are independent draws.

    ``StratifiedDraws(20)``, an antithetic pair in each tenth of the range, is what ``journey.featurize`` takes. The
    same draws with ``StratifiedDraws(2, bins=10)`` keep a feature for each tenth, in ten times the storage, which
    ``train_interval`` and ``influence_matrix`` need.

    Args:
        num_draws: Draws per sample and bin.
        bins: Ranges of timesteps of equal width, each with its own feature.
        antithetic: Draws come in pairs with one timestep and opposite noise.
        seed: Names the draws.

    Raises:
        ValueError: If a number is not positive.
    """

    def _positions(self, ids: Sequence[int | str], independent: int) -> Tensor:
        strata = torch.arange(independent, dtype=torch.float64, device="cpu")
        return (strata + self._uniforms(ids, independent)) / independent


# What journey.featurize takes: an antithetic pair in each tenth of the range.
DEFAULT_DRAWS = StratifiedDraws(num_draws=20)


@dataclass(frozen=True)
class UniformDraws(_KeyedDraws, name="uniform"):
    """Independent uniform timesteps, with replacement.

    Args:
        num_draws: Draws per sample and bin.
        bins: Ranges of timesteps of equal width, each with its own feature.
        antithetic: Draws come in pairs with one timestep and opposite noise.
        seed: Names the draws.

    Raises:
        ValueError: If a number is not positive.
    """

    def _positions(self, ids: Sequence[int | str], independent: int) -> Tensor:
        return self._uniforms(ids, independent)


@dataclass(frozen=True)
class GridDraws(_KeyedDraws, name="grid"):
    """Equally spaced timesteps, the same for every sample: low, low + width / n, ... (D-TRAK's grid).

    Args:
        num_draws: Draws per sample and bin.
        bins: Ranges of timesteps of equal width, each with its own feature.
        antithetic: Draws come in pairs with one timestep and opposite noise.
        seed: Names the noise.

    Raises:
        ValueError: If a number is not positive.
    """

    def _positions(self, ids: Sequence[int | str], independent: int) -> Tensor:
        grid = torch.arange(independent, dtype=torch.float64, device="cpu") / independent
        return grid.expand(len(ids), self.bins, independent)


class ExplicitDraws(Draws, name="explicit"):
    """The caller's own timesteps and noise, as when comparing with another implementation. One bin.

    Args:
        timesteps: Timesteps, int64, of the dataset's sample i in row i, or one row for all samples.
            [num_samples, num_draws] or [num_draws]
        noise: Noise, float32, likewise. [num_samples, num_draws, *image] or [num_draws, *image]

    Raises:
        ValueError: If the shapes disagree.
        TypeError: If the timesteps are not integers or the noise is not floating point.
    """

    bins = 1

    def __init__(self, timesteps: Tensor, noise: Tensor) -> None:
        timesteps, noise = as_tensor(timesteps), as_tensor(noise)
        if timesteps.is_floating_point() or timesteps.dtype == torch.bool:
            raise TypeError(f"timesteps must be integers, got {timesteps.dtype}")
        if not noise.is_floating_point():
            raise TypeError(f"noise must be floating point, got {noise.dtype}")
        if timesteps.dim() not in (1, 2) or noise.shape[: timesteps.dim()] != timesteps.shape or timesteps.numel() == 0:
            raise ValueError(
                "timesteps must be [num_samples, num_draws] or [num_draws] and noise the same followed by the image's "
                f"shape, got {list(timesteps.shape)} and {list(noise.shape)}"
            )
        self._shared = timesteps.dim() == 1
        self._timesteps, self._noise = timesteps.long().cpu(), noise.float().cpu()
        self.num_draws = timesteps.shape[-1]

    def timesteps(self, ids: Sequence[int | str], num_train_timesteps: int) -> Tensor:
        """Return the timesteps of some samples, see ``Draws.timesteps``."""
        low, high = int(self._timesteps.min()), int(self._timesteps.max())
        if low < 0 or high >= num_train_timesteps:
            raise ValueError(f"timesteps must be in [0, {num_train_timesteps}), got {low} to {high}")
        return self._rows(self._timesteps, ids).unsqueeze(1)

    def noise(self, ids: Sequence[int | str], shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Return the noise of some samples, see ``Draws.noise``."""
        noise = self._rows(self._noise, ids)
        if tuple(noise.shape[2:]) != tuple(shape):
            raise ValueError(f"noise must be of images {list(shape)}, got {list(noise.shape[2:])}")
        return noise.unsqueeze(1).to(device)

    def _rows(self, values: Tensor, ids: Sequence[int | str]) -> Tensor:
        if self._shared:
            return values.expand(len(ids), *values.shape)
        check_positions(ids, "ExplicitDraws of several samples")
        rows = torch.tensor([int(i) for i in ids], dtype=torch.int64, device="cpu")
        if len(rows) and rows.max() >= len(values):
            raise ValueError(
                f"timesteps and noise must have a row for every sample, got {len(values)} for sample {int(rows.max())}"
            )
        return values[rows]

    def fingerprint(self) -> dict[str, Any]:
        """Return a hash of the arrays."""
        arrays = fingerprint_tensors({"timesteps": self._timesteps, "noise": self._noise})
        return {"class": self.fingerprint_name, "arrays": arrays}

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> None:
        """Return None: a hash does not tell the arrays."""
