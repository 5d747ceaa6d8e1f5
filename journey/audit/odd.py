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

_OUTLIER = 2.0  # mean of three robust standard deviations


@dataclass(frozen=True, eq=False)
class Oddness:
    """How far each training image is from the others, the oddest first.

    Attributes:
        ids: The images.
        values: Robust standard deviations from the median, float64. [num_train]
    """

    ids: Ids
    values: Tensor

    MEASURES: ClassVar[str] = "size of the row and distance to the others, in robust standard deviations"

    @property
    def outliers(self) -> list[int | str]:
        """The images that stand apart."""
        return [self.ids[i] for i in (self.values > _OUTLIER).nonzero().flatten().tolist()]


def odd_images(features: Features | Kernel, *, damping: float = DEFAULT_DAMPING) -> Oddness:
    """Rank the training images by how little the others prepare the model for them.

    The mean of three numbers, each in robust standard deviations from the median: the logarithm of the row's length,
    which is large where much is left to learn; and, reversed, its mean cosine with the others' rows, plain, and of its
    magnitude in the damped metric, small where the others teach nothing that helps. The Gram matrix knows an outlier's
    own gradients and hides it in part; the plain rows do not.

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
    norms, plain = _plain(kernel)
    damped, count = [], len(kernel.ids)
    lengths = torch.where(kernel.known, kernel.lengths, torch.full_like(kernel.lengths, torch.inf))
    for block in kernel.blocks():
        here = torch.arange(len(block.values), dtype=torch.int64, device="cpu")
        cosines = block.values.abs() / lengths[block.first + here, None] / lengths
        cosines[here, block.first + here] = 0
        damped.append(cosines.sum(1) / (count - 1))
    parts = (norms.log(), -plain, -torch.cat(damped).clamp(min=1e-12).log())
    values = torch.stack([_robust(part) for part in parts]).mean(0)
    order = torch.sort(values, descending=True, stable=True).indices
    ids = kernel.ids
    return Oddness([ids[i] for i in order.tolist()], values[order])


def _plain(kernel: Kernel) -> tuple[Tensor, Tensor]:
    """Lengths of the rows, and mean cosines with the others, without the Gram matrix. [num_train], twice."""
    features, norms, means = kernel.features, [], []
    for number in range(len(features.checkpoints)):
        rows = features.matrix(number).double()
        norm = rows.norm(dim=1).clamp(min=torch.finfo(torch.float64).tiny)
        units = rows / norm[:, None]
        norms.append(norm)
        means.append((units @ units.sum(0) - 1) / (len(rows) - 1))
    return torch.stack(norms).mean(0), torch.stack(means).mean(0)


def _robust(values: Tensor) -> Tensor:
    """Deviations from the median, in robust standard deviations. [num_train]"""
    away = values - values.median()
    deviation = 1.4826 * away.abs().median()
    return away / deviation if deviation > 0 else torch.zeros_like(away)
