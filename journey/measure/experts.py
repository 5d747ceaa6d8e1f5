"""Draws dealt out to the networks that answer them, of models with one for each part of the noise levels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from journey.models.condition import Condition


class Share(NamedTuple):
    """The draws that one network answers.

    Attributes:
        bins: Which bins have some, int64; None is all, in order. [own_bins]
        timesteps: int64. [num_samples, own_bins, own_draws]
        noise: float32. [num_samples, own_bins, own_draws, ...]
        condition: As it was given, of these draws.
        weights: So that means over these draws add up to means over all: zero where a sample has fewer than others.
            None is one each. float32 [num_samples, own_bins, own_draws]
    """

    bins: Tensor | None
    timesteps: Tensor
    noise: Tensor
    condition: Condition | None
    weights: Tensor | None


def shares(
    boundaries: Sequence[int],
    timesteps: Tensor,  # [num_samples, bins, num_draws]
    noise: Tensor,  # [num_samples, bins, num_draws, ...]
    condition: Condition | None,
    weights: Tensor | None,  # [num_samples, bins, num_draws]
) -> Iterator[Share]:
    """Deal draws out by their timesteps.

    Args:
        boundaries: Timesteps at which the next network begins, ascending.
        timesteps: As for ``journey.Featurizer.features``, as are the others.
        noise: Likewise.
        condition: Likewise.
        weights: Likewise.

    Yields:
        What each network that has draws answers.
    """
    timesteps = timesteps.cpu()
    owner = torch.bucketize(
        timesteps.contiguous(), torch.tensor(boundaries, dtype=torch.int64, device="cpu"), right=True
    )
    draws = timesteps.shape[2]
    given = torch.ones(timesteps.shape, dtype=torch.float32, device="cpu") if weights is None else weights.cpu()
    for network in range(len(boundaries) + 1):
        own = owner == network
        bins = own.any(2).any(0).nonzero().flatten()
        if not len(bins):
            continue
        own, times = own[:, bins], timesteps[:, bins]
        most = int(own.sum(2).max())
        # Its own draws first; behind them others, which count nothing, at a timestep that is the network's.
        chosen = (~own).to(torch.int8).argsort(dim=2, stable=True)[..., :most]
        real = own.gather(2, chosen)
        rows = torch.arange(timesteps.numel(), dtype=torch.int64, device="cpu").view(timesteps.shape)[:, bins]
        rows = rows.gather(2, chosen)
        told = condition
        if condition is not None and len(condition) == timesteps.numel():
            told = condition.select(rows.flatten())
        yield Share(
            bins,
            torch.where(real, times.gather(2, chosen), times[own][0]),
            noise.flatten(0, 2)[rows.to(noise.device)],
            told,
            given[:, bins].gather(2, chosen) * real * (most / draws),
        )
