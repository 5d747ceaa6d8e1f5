"""Training images that do not belong: what the others teach does not help with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from journey.audit.kernel import Kernel
from journey.curvature.gram import DEFAULT_DAMPING
from journey.data.ids import Ids
from journey.features.features import Features

_DEVIATIONS = 3.5  # from the median, in robust standard deviations


@dataclass(frozen=True, eq=False)
class Oddness:
    """How far each training image is from the others, the oddest first.

    Attributes:
        ids: The images.
        values: Robust standard deviations of the logarithm of the self-influence above the median, float64. [num_train]
        errors: Standard errors by the draws, at most, float64. [num_train]
    """

    ids: Ids
    values: Tensor
    errors: Tensor

    MEASURES: ClassVar[str] = "self-influence, in robust standard deviations above the median"

    @property
    def outliers(self) -> list[int | str]:
        """The images that stand apart, by more than the noise of the draws."""
        sure = self.values - self.errors > _DEVIATIONS
        return [self.ids[i] for i in sure.nonzero().flatten().tolist()]


def odd_images(features: Features | Kernel, *, damping: float = DEFAULT_DAMPING) -> Oddness:
    """Rank the training images by how little the others prepare the model for them.

    What the model cannot know from the others it must learn from the image itself: its self-influence stands out.

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
    least = torch.maximum(kernel.own_errors, kernel.own.abs().max() * 1e-6)
    size = torch.maximum(kernel.own, least)
    logs = size.log()
    median = logs.median()
    deviation = (1.4826 * (logs - median).abs().median()).clamp(min=1e-6)
    values, errors = (logs - median) / deviation, kernel.own_errors / size / deviation
    order = torch.sort(values, descending=True, stable=True).indices
    ids = kernel.ids
    return Oddness([ids[i] for i in order.tolist()], values[order], errors[order])
