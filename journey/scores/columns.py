"""Columns of scores: inner products of solved queries with the rows of training images, some shards at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from journey.errors import StoreError
from journey.features.features import Features, Slice
from journey.scores.errors import ScoreErrors
from journey.scores.top import TopCollector, TopScores
from journey.store.shard import Shard

# Scores that are ranked at once, about.
_COLUMNS = 16_384


class Gains(NamedTuple):
    """How much of a row's noise, and of its norm, is error of a score: see ``ScoreErrors``.

    Each [num_checkpoints, num_queries, num_steps].
    """

    row: Tensor
    query: Tensor


def strongest(
    features: Features | Slice,
    solutions: list[Tensor],
    weights: Tensor,
    gains: Gains | None,
    collector: TopCollector,
    settings: Mapping[str, Any],
) -> TopScores:
    """Return the strongest scores, found a few shards at a time.

    Args:
        features: The training images.
        solutions: As for ``products``.
        weights: Likewise.
        gains: For standard errors; None where they are not known.
        collector: Of as many scores as are to be kept.
        settings: What else ``TopScores`` is told, by name.

    Returns:
        The scores.
    """
    ids: list[Any] = []
    pending: list[tuple[Tensor, Tensor | None]] = []

    def flush() -> None:
        values, errors = zip(*pending, strict=True)
        named = np.concatenate(ids) if isinstance(ids[0], np.ndarray) else [i for some in ids for i in some]
        collector.add(named, torch.cat(values, 2), None if errors[0] is None else torch.cat(errors, 2))
        ids.clear()
        pending.clear()

    for shards, values in blocks(features, solutions, weights):
        errors = None
        if gains is not None:
            noise, norm = (torch.stack([getattr(each, name) for each in shards]) for name in ("noise", "norm"))
            errors = ScoreErrors(noise, norm, *gains).of_scores()
        ids.append(shards[0].id_array)
        pending.append((values, errors))
        if sum(map(len, ids)) >= _COLUMNS:
            flush()
    if pending:
        flush()
    found = collector.top()
    counts = (collector.k, collector.num_train)
    return TopScores(found.proponents, found.opponents, *counts, solutions=torch.stack(solutions), **settings)


def products(features: Features, solutions: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Return the inner products of solved queries with the features of all training images, averaged over checkpoints.

    Args:
        features: The training images.
        solutions: Of each checkpoint, float32, on the CPU. [num_queries, num_steps, proj_dim]
        weights: Of each bin. [bins]

    Returns:
        float32. [num_queries, num_steps, num_train]
    """
    return torch.cat([values for _, values in blocks(features, solutions, weights)], 2)


def blocks(
    features: Features | Slice, solutions: Sequence[Tensor], weights: Tensor
) -> Iterator[tuple[tuple[Shard, ...], Tensor]]:
    """Yield ``products`` of some columns at a time, with the shards of every checkpoint that they are of."""
    shares = weights.float()
    for shards in zip(*(features.shards(number) for number in range(len(solutions))), strict=True):
        if any(shard.ids != shards[0].ids for shard in shards[1:]):
            raise StoreError("the store has shards of one name with other images under other checkpoints")
        parts = [shard.products(each.flatten(0, 1)) @ shares for shard, each in zip(shards, solutions, strict=True)]
        values = torch.stack(parts).mean(0) if len(parts) > 1 else parts[0]
        yield shards, values.unflatten(0, solutions[0].shape[:2])


def noises(features: Features) -> tuple[Tensor, Tensor]:
    """Noise and norm of every row. Each [num_checkpoints, num_train]"""
    found = []
    for number in range(len(features.checkpoints)):
        shards = list(features.shards(number, verify=False))
        found.append([torch.cat([shard.noise for shard in shards]), torch.cat([shard.norm for shard in shards])])
    noise, norm = zip(*found, strict=True)
    return torch.stack(noise), torch.stack(norm)
