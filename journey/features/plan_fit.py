"""What a fit will cost, from a small batch of each kind of gradient that it takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any

from torch import Tensor

from journey.curvature.gram import GramMatrix, mix
from journey.features.fit import (
    IMAGES,
    SCALE_BATCH,
    SCALE_ROWS,
    measure_scales,
    needs_prior,
    needs_scales,
    plan_gram,
    sampled_ids,
)
from journey.features.fitted import Fit
from journey.features.gram_rows import (
    OWN_DRAWS,
    GramPlan,
    own_batches,
    own_rows,
    parts_of,
    pseudo_batches,
    pseudo_gradients,
    pseudo_rows,
)
from journey.features.plan_sizes import gram_bytes
from journey.features.plan_times import Spread, timed, timed_often
from journey.features.prepare import Prepared
from journey.files.fingerprint import fingerprint_tensors
from journey.gradients.passes import split_rows
from journey.measure.featurizer import Featurizer
from journey.measure.left_out import Prior
from journey.models.condition import Encoded
from journey.models.encoding import encode_some

# Images that are encoded to measure what a fit costs.
_ENCODED = 8
# Rows of a block that goes into a Gram matrix.
_BLOCK = 1024


@dataclass(frozen=True)
class FitCost:
    """What a fit costs.

    Attributes:
        seconds: It takes.
        scale_gradients: Pseudo-gradients that scales are measured from.
        own_gradients: Own gradients of images, for the Gram matrices.
        pseudo_gradients: Pseudo-gradients, likewise.
        passes: Times that the network runs forward and backward.
        num_bytes: Of its Gram matrices on disk.
        held_bytes: Of the images that it holds in memory beyond those that were measured.
        gram: A matrix such as those of the fit; None where there will be none.
    """

    seconds: Spread
    scale_gradients: int = 0
    own_gradients: int = 0
    pseudo_gradients: int = 0
    passes: int = 0
    num_bytes: int = 0
    held_bytes: int = 0
    gram: GramMatrix | None = None


def cost_of_fit(given: Prepared, num_images: int, seconds: float) -> FitCost:
    """Measure what a fit of so many images will cost, and give the featurizer a prior and scales of a few.

    Args:
        given: What ``prepare`` returned.
        num_images: Images that the dataset will have.
        seconds: That each kind of gradient may be measured for, about.

    Returns:
        The cost.

    Raises:
        NonFiniteGradientError: If a gradient is NaN or infinite.
    """
    featurizer, num_fitted = given.featurizer, min(IMAGES, num_images)
    positions = sampled_ids(len(given.sample))
    positions = positions[:: max(1, len(positions) // _ENCODED)][:_ENCODED]
    encoding, few = timed_often(lambda: encode_some(featurizer.denoiser, given.sample, positions), 0)
    costs = _Costs(featurizer, few, positions, num_fitted, seconds)
    scaling = costs.scales() if needs_scales(featurizer) else _Kind(Spread.of([0]), 0, 0, None)
    prior = Prior.of(few.x0) if needs_prior(featurizer) else None
    Fit(Path(), {}, prior, scaling.found).prepare(featurizer)
    total, held = encoding * (num_fitted / len(few)) + scaling.seconds, costs.held_bytes
    plan = plan_gram(featurizer, num_fitted)
    if plan is None:
        return FitCost(total, scaling.gradients, passes=scaling.passes, held_bytes=held)
    own, pseudo = costs.own(), costs.pseudo(plan)
    mixing, gram = costs.mix(own, pseudo, plan)
    times = len(given.checkpoints)
    return FitCost(
        total + (own.seconds + pseudo.seconds + mixing) * times,
        scaling.gradients,
        own.gradients * times,
        pseudo.gradients * times,
        scaling.passes + (own.passes + pseudo.passes) * times,
        gram_bytes(own.gradients + pseudo.gradients, num_fitted, featurizer.features_dim) * times,
        held,
        gram,
    )


@dataclass(frozen=True)
class _Kind:
    """Gradients of one kind: of all how long, how many, in how many passes; and what those measured gave."""

    seconds: Spread
    gradients: int
    passes: int
    found: Any


@dataclass(frozen=True)
class _Costs:
    """The costs of each kind, from few images that stand for many."""

    featurizer: Featurizer
    few: Encoded
    positions: list[int]
    num_fitted: int
    seconds: float

    @property
    def held_bytes(self) -> int:
        """Of the images that are not among the few, on the device of the model."""
        told = {} if self.few.condition is None else self.few.condition.tensors
        each = sum(t.nbytes for t in (self.few.x0, *told.values())) / len(self.few)
        here = self.few.x0.device == self.featurizer.denoiser.device
        return round(each * (self.num_fitted - len(self.few))) if here else 0

    @cached_property
    def at_once(self) -> int:
        """Rows that go through the network at once, at most."""
        first = pseudo_gradients(self.featurizer, *self._images(1), GramPlan(0, 1, 0.0, seed=0))
        return self.featurizer.budget.at_once(first.first_row(), first.shape)

    def scales(self) -> _Kind:
        """Pseudo-gradients that scales are measured from."""
        each = ceil(SCALE_ROWS / self.num_fitted)
        sample = self._images(min(self.num_fitted, ceil(SCALE_BATCH / each)))
        count, whole = each * len(sample[1]), each * self.num_fitted
        spread, scales = timed_often(lambda: measure_scales(self.featurizer, *sample, count, False), self.seconds)
        return _Kind(spread * (whole / count), whole, ceil(whole / min(SCALE_BATCH, self.at_once)), scales)

    def own(self) -> _Kind:
        """Own gradients."""
        bins, whole = OWN_DRAWS.bins, self.num_fitted * OWN_DRAWS.bins
        batches = [batch for part in parts_of(whole, bins) for batch in own_batches(*part)]
        count = batches[0].stop
        sample = self._images(count)
        spread, rows = timed_often(lambda: own_rows(self.featurizer, *sample, 0, count * bins), self.seconds)
        groups = [(batch.stop - batch.start) * bins for batch in batches]
        passes = sum(sum(1 for _ in split_rows(n, OWN_DRAWS.num_draws, self.at_once)) for n in groups)
        return _Kind(spread * (self.num_fitted / count), whole, passes, rows)

    def pseudo(self, plan: GramPlan) -> _Kind:
        """Pseudo-gradients of the Gram matrix."""
        each = ceil(plan.pseudo_gradients / self.num_fitted)
        whole = each * self.num_fitted
        batches = [batch for part in parts_of(whole, 1) for batch in pseudo_batches(*part)]
        count = batches[0].stop
        some, ids = self._images(ceil(count / each))
        gradients = pseudo_gradients(self.featurizer, some, ids, GramPlan(0, each * len(ids), 0.0, seed=0))
        spread, rows = timed_often(lambda: pseudo_rows(self.featurizer, gradients, 0, count), self.seconds)
        passes = sum(ceil((batch.stop - batch.start) / self.at_once) for batch in batches)
        return _Kind(spread * (whole / count), whole, passes, rows)

    def mix(self, own: _Kind, pseudo: _Kind, plan: GramPlan) -> tuple[Spread, GramMatrix]:
        """Time the Gram matrix of such gradients, of no more of them than it takes to be square."""
        whole, square = own.gradients + pseudo.gradients, self.featurizer.features_dim
        share = min(1.0, square / whole)

        def blocks(kind: _Kind) -> Iterator[Tensor]:
            count, rows = ceil(kind.gradients * share), kind.found
            block = rows.repeat(ceil(min(count, _BLOCK) / len(rows)), 1)
            for first in range(0, count, _BLOCK):
                part = block[: min(_BLOCK, count - first)]
                fingerprint_tensors({"rows": part})  # as of a part that is read
                yield part

        noise, device = own.found[:1], self.featurizer.denoiser.device
        spent, gram = timed(lambda: mix(lambda: blocks(own), lambda: blocks(pseudo), plan.own_share, noise, device))
        return Spread.of([spent / share]), gram

    def _images(self, count: int) -> tuple[Encoded, list[int]]:
        """So many images, the few again and again, and their ids."""
        times = ceil(count / len(self.few))
        return Encoded.cat([self.few] * times).select(0, count), (self.positions * times)[:count]
