"""The Gram matrix that scores are solved with: of every bin's feature of every training image, not of their sum.

A bin's feature is the gradient at a few draws; the sum over bins averages them. What separates images is the curvature
of the loss, which outer products of the gradients of few draws estimate (the empirical Fisher information), while those
of averages lose what the draws differ by: scores then agree less with retraining (docs/evaluation.md). With one bin it
is the Gram matrix of the features themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from journey.scores.spectrum import Spectrum, decompose
from journey.store.store import FeatureStore


def decompose_bins(
    store: FeatureStore, name: str, weights: Tensor, damping: float | Literal["auto"], device: torch.device
) -> tuple[Spectrum, float]:
    """Decompose ``sum over images i and bins b of w_b features[i, b]^T features[i, b]`` and settle the damping.

    The automatic choice regresses the measured values, less the mean of their bin, on the rows ``sqrt(w_b)
    features[i, b]``.

    Args:
        store: The features.
        name: Which checkpoint, as the store names it.
        weights: Share of the timesteps in each bin. [bins]
        damping: Relative damping, or ``"auto"`` for generalised cross-validation.
        device: Where to compute.

    Returns:
        The spectrum, with the features in the eigenbasis for one bin alone, and the relative damping.
    """
    root = weights.sqrt()

    def blocks() -> Iterator[Tensor]:
        for shard in store.iter_shards(name):
            yield (shard.features * root.float()[:, None]).flatten(0, 1).to(device)

    manifest = store.manifest
    rows = manifest.num_samples * manifest.bins
    spectrum = decompose(blocks, rows, manifest.proj_dim, keep_left=manifest.bins == 1)
    if damping != "auto":
        return spectrum, float(damping)
    values = torch.cat([shard.values.double() for shard in store.iter_shards(name)])  # [num_samples, bins]
    values = ((values - values.mean(0)) * root).flatten().to(device)
    moment = torch.zeros(manifest.proj_dim, dtype=torch.float64, device=device)
    first = 0
    for block in blocks():
        moment += block.double().T @ values[first : first + len(block)]
        first += len(block)
    return spectrum, spectrum.choose_damping(values, moment)
