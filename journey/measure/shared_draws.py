"""Draws that several samples have in common, as published methods use them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from journey.measure.draws import Draws, GridDraws, check_positions


@dataclass(frozen=True)
class SharedDraws(Draws, name="shared"):
    """The same (t, noise) pairs for samples whose ids are equal modulo ``slots``.

    With one slot every image, training image or query, is measured with the same pairs, so that a difference between
    two features is one between the images. More slots imitate implementations that seed the noise of a batch: there
    slot i of every batch shares its noise (D-TRAK: 52).

    Args:
        inner: Where the pairs come from.
        slots: How many different sets of pairs there are.
        one_noise: Use the noise of the first draw for all draws (DMin).

    Raises:
        ValueError: If ``slots`` is not positive.
    """

    inner: Draws
    slots: int = 1
    one_noise: bool = False

    def __post_init__(self) -> None:
        """Check the number."""
        if self.slots < 1:
            raise ValueError(f"slots must be positive, got {self.slots}")

    @property
    def num_draws(self) -> int:  # type: ignore[override]
        """Draws per sample and bin."""
        return self.inner.num_draws

    @property
    def bins(self) -> int:  # type: ignore[override]
        """Ranges of timesteps."""
        return self.inner.bins

    def timesteps(self, ids: Sequence[int | str], num_train_timesteps: int) -> Tensor:
        """Return the timesteps of some samples, see ``Draws.timesteps``."""
        return self.inner.timesteps(self._slots(ids), num_train_timesteps)

    def row_weights(self, timesteps: Tensor, num_train_timesteps: int) -> Tensor | None:
        """Return how much each draw counts, see ``Draws.row_weights``."""
        return self.inner.row_weights(timesteps, num_train_timesteps)

    def noise(self, ids: Sequence[int | str], shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Return the noise of some samples, see ``Draws.noise``."""
        slots = self._slots(ids)
        different = sorted(set(slots))
        noise = self.inner.noise(different, shape, device)
        if self.one_noise:
            noise = noise[:, :1, :1].expand_as(noise)
        return noise[[different.index(slot) for slot in slots]]

    def fingerprint(self) -> dict[str, Any]:
        """Return the configuration."""
        return {
            "class": self.fingerprint_name,
            "inner": self.inner.fingerprint(),
            "slots": self.slots,
            "one_noise": self.one_noise,
        }

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> SharedDraws:
        """Return the draws with these fields of a fingerprint."""
        return cls(**{**fields, "inner": Draws.from_fingerprint(fields["inner"])})

    def _slots(self, ids: Sequence[int | str]) -> list[int]:
        if self.slots == 1:
            return [0] * len(ids)
        check_positions(ids, "SharedDraws of several slots")
        return [int(i) % self.slots for i in ids]


@dataclass(frozen=True)
class CubicDraws(GridDraws, name="cubic"):
    """A grid that lies denser towards pure noise: 1 - (i / n)^3 of the range (DMin). Arguments as ``GridDraws``.

    Reference:
        Published code of Lin et al., "DMin: Scalable Training Data Influence Estimation for Diffusion Models", 2024.
    """

    def _positions(self, ids: Sequence[int | str], independent: int) -> Tensor:
        return 1 - super()._positions(ids, independent) ** 3
