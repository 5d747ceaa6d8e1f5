"""Which training images a model has learned by heart: the influence of each on its own loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from journey.audit.kernel import Kernel
from journey.curvature.gram import DEFAULT_DAMPING
from journey.data.ids import Ids
from journey.features.features import Features


@dataclass(frozen=True, eq=False)
class SelfInfluence:
    """How much each training image depends on being trained on, the most first.

    Attributes:
        ids: The images.
        values: ``phi_i^T (M + damping I)^-1 phi_i`` without what the draws' noise adds, float64. [num_train]
        errors: Standard errors, at most, float64. [num_train]
        loss_change: To first order, how much the image's own loss rises if it is left out, float64. [num_train]
    """

    ids: Ids
    values: Tensor
    errors: Tensor
    loss_change: Tensor


def self_influence(features: Features | Kernel, *, damping: float = DEFAULT_DAMPING) -> SelfInfluence:
    """Rank the training images by their influence on themselves; images learned by heart come first.

    A row times itself is larger than its expectation, by the noise of its draws. The store keeps the norm of half the
    difference of two disjoint halves of each image's draws, and the fit the directions of such differences: their part
    is taken off. Halves are of other timesteps too, so that small values may come out negative: read those as zero.

    Args:
        features: The training images, or their kernel.
        damping: As for ``journey.score``; of a kernel its own counts.

    Returns:
        The ranking.

    Raises:
        TypeError: If ``features`` is a path.
        ValueError: If the features' draws do not tell their noise, there are fewer than three images, or ``damping``
            is out of range.
    """
    kernel = features if isinstance(features, Kernel) else Kernel.of(features, damping)
    order = torch.sort(kernel.own, descending=True, stable=True).indices
    values, ids = kernel.own[order], kernel.ids
    return SelfInfluence(
        [ids[i] for i in order.tolist()],
        values,
        kernel.own_errors[order],
        values / kernel.unit,
    )
