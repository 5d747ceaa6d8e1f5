"""Training images that work against the rest: leaving them out is predicted to lower the loss of the others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from journey.audit.kernel import Kernel
from journey.curvature.gram import DEFAULT_DAMPING
from journey.data.ids import Ids
from journey.features.features import Features


@dataclass(frozen=True, eq=False)
class Effects:
    """What each training image does to the others, the strongest opponent first.

    Attributes:
        ids: The images.
        values: Mean over the others j of ``K[j, i]``; positive helps them, float64. [num_train]
        errors: Standard errors of the means, at most, float64. [num_train]
        against: Share of the others that the image works against, float64. [num_train]
        loss_change: To first order, how much the mean loss of the others rises if the image is left out; negative where
            it is better to do without, float64. [num_train]
    """

    ids: Ids
    values: Tensor
    errors: Tensor
    against: Tensor
    loss_change: Tensor

    @property
    def opponents(self) -> list[int | str]:
        """The images that work against most others, by more than two standard errors of the mean."""
        sure = (self.values + 2 * self.errors < 0) & (self.against > 0.5)
        return [self.ids[i] for i in sure.nonzero().flatten().tolist()]


def opponents(features: Features | Kernel, *, damping: float = DEFAULT_DAMPING) -> Effects:
    """Rank the training images by what they do to the others; those that work against them come first.

    Args:
        features: The training images, or their kernel.
        damping: As for ``journey.score``; of a kernel its own counts.

    Returns:
        The ranking.

    Raises:
        TypeError: As ``self_influence``.
        ValueError: As ``self_influence``.
    """
    kernel = features if isinstance(features, Kernel) else Kernel.of(features, damping)
    count = len(kernel.ids)
    sums, against = (torch.zeros(count, dtype=torch.float64, device="cpu") for _ in range(2))
    for block in kernel.blocks():
        rows = torch.arange(len(block.values), dtype=torch.int64, device="cpu")
        others = torch.ones_like(block.values, dtype=torch.bool)
        others[rows, block.first + rows] = False
        sums += (block.values * others).sum(0)
        against += ((block.values < 0) & others).double().sum(0)
    order = torch.sort(sums, stable=True).indices
    values, ids = (sums / (count - 1))[order], kernel.ids
    return Effects(
        [ids[i] for i in order.tolist()],
        values,
        kernel.mean_errors()[order],
        (against / (count - 1))[order],
        values / kernel.unit,
    )
