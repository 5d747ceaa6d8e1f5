"""Linear datamodeling score: do summed attributions rank retrained models as retraining does?

For a query q and subsets S_1 ... S_m of the training images,

    LDS(q) = spearman over j of ( - sum of scores[q, i] for i in S_j ,  mean over seeds of loss(q; model of S_j) )

A positive score says that training on the image lowers the loss, hence the minus. The protocol is Park et al., "TRAK",
ICML 2023, section 2, with what published evaluations of diffusion models left out: a ceiling, controls, and intervals
that also know of queries and of training seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from journey.evaluate.ranks import spearman
from journey.evaluate.subsets import Subsets
from journey.ops.keys import derive_key

CEILING, RANDOM, CONSTANT = "ceiling", "random scores", "constant scores"
_HEAD = 0.1  # share of the training images, by strength of their score, that makes up the head
_SPREAD = 1.4826  # times the median of |x|: the standard deviation of x, if x is normal of mean 0
_WITHIN = 3.0  # of these a score is taken for noise


class Interval(NamedTuple):
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class LDSRow:
    """The LDS of one method.

    Attributes:
        lds: Mean over queries.
        head: The same from the strongest tenth of each query's scores alone, the others taken as zero.
        tail: The same from the other nine tenths.
    """

    lds: Interval
    head: float
    tail: float


@dataclass(frozen=True, eq=False)
class LDSTable:
    """LDS of several methods on the same retrained models, with controls and the ceiling.

    Attributes:
        rows: By name: the methods as given, then random scores and constant scores. A control far from zero says that
            the protocol, not the method, gives away the answer.
        ceiling: What retraining itself reaches: the rank agreement of the mean over seeds with that of as many other
            seeds. From one seed per subset it cannot be known and is None.
        resampled: LDS of each method in every resample; equal columns are equal resamples. [num_methods, num_bootstrap]
    """

    rows: dict[str, LDSRow]
    ceiling: Interval | None
    resampled: Tensor

    def difference(self, first: str, second: str) -> Interval:
        """Return by how much the first method's LDS exceeds the second's, over the same resamples.

        Far narrower than the two intervals suggest, because queries and subsets that are hard are so for both.

        Args:
            first: Name of a row.
            second: Name of another.

        Returns:
            The difference.

        Raises:
            ValueError: If there is no such row.
        """
        names = list(self.rows)
        for name in (first, second):
            if name not in names:
                raise ValueError(f"there is no row {name!r}, there are {names}")
        gap = self.resampled[names.index(first)] - self.resampled[names.index(second)]
        return _interval(self.rows[first].lds.value - self.rows[second].lds.value, gap)


def lds(
    methods: Mapping[str, Tensor],
    losses: Tensor,  # [num_subsets, num_seeds, num_queries]
    subsets: Subsets,
    *,
    num_bootstrap: int = 1000,
    seed: int = 0,
) -> LDSTable:
    """Compare attributions with retraining.

    Group LDS is the same call with subsets of whole groups (``random_subsets(..., groups=...)``).

    Args:
        methods: Scores by name; positive says that the image lowers the query's loss. Each [num_queries, num_train]
        losses: Response of every retrained model, lower where the query is more likely; negate one that is higher.
            [num_subsets, num_seeds, num_queries]
        subsets: What each model was trained on.
        num_bootstrap: Resamples for the intervals.
        seed: Names the random control and the resamples.

    Returns:
        The table. Intervals are bootstrap intervals over queries, subsets and seeds together.

    Raises:
        ValueError: If shapes disagree, a value is NaN, or a name is that of a control.
    """
    num_subsets, num_seeds, num_queries = losses.shape
    if num_subsets != len(subsets):
        raise ValueError(f"losses must be of {len(subsets)} subsets, got {list(losses.shape)}")
    if torch.isnan(losses).any():
        raise ValueError("losses has NaN entries: every subset needs every seed")
    reserved = {RANDOM, CONSTANT, CEILING} & set(methods)
    if reserved:
        raise ValueError(f"methods must not be named {sorted(reserved)}, which are rows of the table")
    # A name of its own: a caller's scores may well come from the generator of the same small seed.
    generator = torch.Generator("cpu").manual_seed(derive_key(seed, "lds") >> 1)
    shape = (num_queries, subsets.num_train)
    scores = dict(methods)
    scores[RANDOM] = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
    scores[CONSTANT] = torch.ones(shape, dtype=torch.float32, device="cpu")
    for name, values in scores.items():
        if tuple(values.shape) != shape:
            raise ValueError(f"scores of {name!r} must be [num_queries, num_train] = {list(shape)}, got {values.shape}")

    losses = losses.double()
    predicted = {name: predict_losses(values, subsets) for name, values in scores.items()}
    points = {name: lds_per_query(values, losses).mean().item() for name, values in predicted.items()}
    resampled, ceilings = _bootstrap(list(predicted.values()), losses, num_bootstrap, generator)
    rows = {}
    for row, (name, values) in enumerate(scores.items()):
        head = head_of(values)
        parts = [lds_per_query(predict_losses(part, subsets), losses).mean().item() for part in (head, values - head)]
        rows[name] = LDSRow(_interval(points[name], resampled[row]), *parts)
    ceiling = None if num_seeds < 2 else _interval(seed_agreement(losses).item(), ceilings)
    return LDSTable(rows, ceiling, resampled)


def predict_losses(scores: Tensor, subsets: Subsets) -> Tensor:
    """Return minus the sum of each subset's scores: the predicted order of the losses, float64. [queries, subsets]"""
    values = scores.double()
    if torch.isnan(values).any():
        raise ValueError("scores have NaN entries")
    return -(values @ subsets.members.double().T)


def lds_per_query(predicted: Tensor, losses: Tensor) -> Tensor:
    """Return the LDS of every query. [num_queries]

    Args:
        predicted: As ``predict_losses`` returns. [num_queries, num_subsets]
        losses: Of the retrained models. [num_subsets, num_seeds, num_queries]
    """
    return spearman(predicted, losses.mean(1).T)


def head_of(scores: Tensor, share: float = _HEAD) -> Tensor:
    """Keep each query's strongest scores of either sign, put zero for the others. [num_queries, num_train]"""
    count = max(1, round(share * scores.shape[1]))
    strongest = scores.abs().topk(count, dim=1).indices
    return torch.zeros_like(scores).scatter(1, strongest, scores.gather(1, strongest))


def significant(scores: Tensor) -> tuple[Tensor, float]:
    """Put zero for the scores that are no larger than a query's noise; ``lds`` of what is left is the SNR-LDS.

    A score counts as zero if it lies within three robust deviations of zero, ``|tau| <= 3 * 1.4826 * median |tau|``,
    the median over the query's scores. A query of which nothing is left predicts nothing, so its LDS is 0.

    Args:
        scores: Of any method. [num_queries, num_train]

    Returns:
        The scores that are left, zero for the others [num_queries, num_train]; and the share that is left, mean over
        queries.

    Raises:
        ValueError: If a score is NaN.
    """
    sizes = scores.abs().double()
    if torch.isnan(sizes).any():
        raise ValueError("scores have NaN entries")
    ordered, middle = sizes.sort(1).values, sizes.shape[1] // 2
    median = (ordered[:, middle] + ordered[:, -1 - middle]) / 2
    left = sizes > _WITHIN * _SPREAD * median[:, None]
    return torch.where(left, scores, torch.zeros_like(scores)), left.double().mean().item()


def seed_agreement(losses: Tensor) -> Tensor:
    """Return the ceiling: rank agreement of the mean over all seeds with that of as many others.

    One seed's agreement r with another, averaged over all pairs and queries, gives that of means over n seeds by the
    formula of Spearman and Brown, ``n r / (1 + (n - 1) r)``.

    Args:
        losses: At least two seeds. [num_subsets, num_seeds, num_queries]

    Returns:
        A scalar.
    """
    num_seeds = losses.shape[1]
    pairs = [
        spearman(losses[:, first].T, losses[:, second].T).mean()
        for first in range(num_seeds)
        for second in range(first)
    ]
    single = torch.stack(pairs).mean()
    return num_seeds * single / (1 + (num_seeds - 1) * single)


def _bootstrap(
    predicted: list[Tensor], losses: Tensor, num_bootstrap: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """LDS of every method, and the ceiling, in resamples of queries, subsets and seeds together."""
    num_subsets, num_seeds, num_queries = losses.shape
    stacked = torch.stack(predicted)  # [num_methods, num_queries, num_subsets]
    found, ceilings = [], []
    for _ in range(num_bootstrap):
        queries, chosen, seeds = (
            torch.randint(count, (count,), generator=generator, dtype=torch.int64, device="cpu")
            for count in (num_queries, num_subsets, num_seeds)
        )
        some = losses[chosen][:, :, queries]
        found.append(spearman(stacked[:, queries][:, :, chosen], some[:, seeds].mean(1).T).mean(1))
        if num_seeds > 1:
            ceilings.append(seed_agreement(some))  # a seed drawn twice would agree with itself
    return torch.stack(found, 1), torch.stack(ceilings) if ceilings else torch.zeros(
        0, dtype=torch.float32, device="cpu"
    )


def _interval(value: float, resampled: Tensor) -> Interval:
    """Move the central 95 % of the resamples to the estimate."""
    # Subsets that are drawn twice are ties, and seeds drawn twice are fewer seeds, so resamples lie a little lower as a
    # whole; their spread is what is asked for.
    low, high = (torch.quantile(resampled, q).item() - resampled.mean().item() for q in (0.025, 0.975))
    return Interval(value, value + low, value + high)
