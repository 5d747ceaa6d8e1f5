"""Does an attribution find training images that are known to matter: planted duplicates, relabelled ones?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from journey.evaluate.lds import Interval
from journey.evaluate.ranks import ranks
from journey.ops.keys import derive_key


@dataclass(frozen=True, eq=False)
class Detection:
    """How well scores single out the planted images, mean over queries.

    Attributes:
        precision: Share of planted images among the k with the highest scores.
        recall: Share of the planted images that are among them.
        auc: Probability that a planted image scores higher than another one; equal scores count half. 0.5 is chance.
        k: How many were looked at.
        aucs: The AUC of every query, float64. [num_queries]
    """

    precision: float
    recall: float
    auc: float
    k: int
    aucs: Tensor

    def auc_interval(self, *, num_bootstrap: int = 1000, seed: int = 0) -> Interval:
        """Return the AUC with its 95 % bootstrap interval over queries; what was planted is taken as given."""
        generator = torch.Generator("cpu").manual_seed(derive_key(seed, "detection") >> 1)
        drawn = torch.randint(
            len(self.aucs), (num_bootstrap, len(self.aucs)), generator=generator, dtype=torch.int64, device="cpu"
        )
        means = self.aucs[drawn].mean(1)
        return Interval(self.auc, *(torch.quantile(means, q).item() for q in (0.025, 0.975)))


def detect(scores: Tensor, planted: Tensor, *, k: int) -> Detection:
    """Compare scores with what was planted.

    Args:
        scores: Positive for proponents; negate them to look for opponents. [num_queries, num_train]
        planted: True for the images that a query should find. [num_queries, num_train]
        k: How many of the highest scores to look at. Of equal scores the image with the smaller id comes first.

    Returns:
        Precision, recall and AUC.

    Raises:
        ValueError: If shapes disagree, a score is NaN, a query has no planted image or no other one, or ``k`` is out of
            range.
    """
    if scores.shape != planted.shape or scores.dim() != 2 or planted.dtype != torch.bool:
        raise ValueError(
            "scores and planted (bool) must both be [num_queries, num_train], "
            f"got {list(scores.shape)} and {planted.dtype} {list(planted.shape)}"
        )
    if torch.isnan(scores).any():
        raise ValueError("scores have NaN entries")
    num_train, count = scores.shape[1], planted.sum(1).double()
    if not 1 <= k <= num_train:
        raise ValueError(f"k must be between 1 and {num_train}, got {k}")
    if ((count == 0) | (count == num_train)).any():
        raise ValueError("every query must have planted images and others")
    top = scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
    found = planted.gather(1, top).sum(1).double()
    # The Mann-Whitney statistic from the ranks of the planted images.
    planted_ranks = (ranks(scores) * planted).sum(1)
    aucs = (planted_ranks - count * (count + 1) / 2) / (count * (num_train - count))
    return Detection((found / k).mean().item(), (found / count).mean().item(), aucs.mean().item(), k, aucs)
