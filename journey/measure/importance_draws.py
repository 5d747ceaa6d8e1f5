"""Timesteps drawn where they matter most, weighted so that the mean stays that over all timesteps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from journey.measure.draws import StratifiedDraws


@dataclass(frozen=True)
class ImportanceDraws(StratifiedDraws, name="importance"):
    """Stratified timesteps with a density of the caller's, each weighted by its inverse.

    Within a bin of n timesteps, t is drawn with probability p(t), the density over its sum, and counts 1 / (n p(t)):
    the expected mean is the plain mean over the bin for any density. Its variance is least where the density is in
    proportion to the size of what is measured.

    Args:
        num_draws: Draws per sample and bin.
        bins: Ranges of timesteps of equal width, each with its own feature.
        antithetic: Draws come in pairs with one timestep and opposite noise.
        seed: Names the draws.
        density: A positive number for each timestep of the schedule, in any unit. [num_train_timesteps]

    Raises:
        ValueError: If a number is not positive: a timestep that is never drawn would be missing from the mean.

    Reference:
        Owen, "Monte Carlo Theory, Methods and Examples", 2013, chapter 9.
    """

    density: Sequence[float] = field(kw_only=True)

    def __post_init__(self) -> None:
        """Check the numbers, and keep them as a tuple."""
        super().__post_init__()
        values = tuple(float(x) for x in self.density)
        wrong = [t for t, x in enumerate(values) if not (x > 0 and isfinite(x))]
        if wrong or not values:
            raise ValueError(f"density must be positive at every timestep, got timesteps {wrong[:8]} that are not")
        object.__setattr__(self, "density", values)

    def timesteps(self, ids: Sequence[int | str], num_train_timesteps: int) -> Tensor:
        """Return the timesteps of some samples, see ``Draws.timesteps``."""
        if len(self.density) != num_train_timesteps:
            raise ValueError(
                f"density must have a number for each of the {num_train_timesteps} timesteps, got {len(self.density)}"
            )
        return super().timesteps(ids, num_train_timesteps)

    def row_weights(self, timesteps: Tensor, num_train_timesteps: int) -> Tensor:
        """Return the mean density of the bin over that of each timestep, see ``Draws.row_weights``."""
        density = torch.tensor(self.density, dtype=torch.float64, device="cpu")
        edges = self.edges(num_train_timesteps).tolist()
        means = torch.stack([density[a:b].mean() for a, b in pairwise(edges)])
        return (means[:, None] / density[timesteps.cpu()]).float()

    def fingerprint(self) -> dict[str, Any]:
        """Return the configuration."""
        return {**super().fingerprint(), "density": list(self.density)}

    def _place(self, positions: Tensor, edges: Tensor) -> Tensor:
        density, places = torch.tensor(self.density, dtype=torch.float64, device="cpu"), []
        for b, (low, end) in enumerate(pairwise(edges.tolist())):
            upto = density[low:end].cumsum(0)
            # The first timestep whose cumulative probability exceeds the position.
            found = torch.searchsorted(upto, positions[:, b].contiguous() * upto[-1], right=True)
            places.append(low + found.clamp(max=end - low - 1))
        return torch.stack(places, 1)
