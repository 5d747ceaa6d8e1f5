"""Sets of training images whose removal together raises a query's loss most.

Removing k images is not the sum of removing each: of two copies one still teaches what both do. What is missing is how
much of the curvature each image holds, which its row does not tell. So the strongest candidates are measured again,
which gives the part of the Gram matrix that each makes up (``journey.features.gram_blocks``). That is downdated by the
parts of what is chosen, each time the image with which the set does most (``journey.curvature.downdates``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from journey.curvature.downdates import Downdates
from journey.data.ids import ids_of, positions_of
from journey.data.items import Dataset
from journey.data.stream import Stream
from journey.features.contents import check_contents, content_of, name_of
from journey.features.features import Features
from journey.features.fit import as_dataset
from journey.features.gram_blocks import GramBlock, measure_blocks, whole_matrix
from journey.measure.left_out import LeftOutLoss
from journey.models.checkpoints import loaded
from journey.models.encoding import encode_some
from journey.scores.sets import RemovalSet

_IMAGES_AT_ONCE = 16
# Numbers of the blocks that are kept for other queries: 256 MiB.
_KEPT = 1 << 26


@dataclass(frozen=True, eq=False)
class Removals:
    """Chooses sets for the queries of some scores.

    Attributes:
        features: The training images.
        solutions: The solved queries. float32 [num_checkpoints, num_queries, num_steps, proj_dim]
        damping: Of the scores.
    """

    features: Features
    solutions: Tensor
    damping: float
    _kept: dict[tuple[int, int], GramBlock] = field(default_factory=dict, init=False, repr=False)

    def find(
        self,
        k: int,
        dataset: Any,
        place: tuple[int, int],
        values: Tensor,
        train_ids: Sequence[int | str],
        *,
        candidates: int,
        progress: bool,
    ) -> RemovalSet:
        """Choose images greedily by the joint effect of their removal; see ``Scores.removal_set``.

        Args:
            k: How many images.
            dataset: The training images.
            place: The query and the step, by position.
            values: The scores of that query at that step. [num_train]
            train_ids: Id of each.
            candidates: How many of the strongest are looked at.
            progress: Show a progress bar.

        Returns:
            The set.

        Raises:
            ValueError: If there are fewer images than ``k``, the dataset lacks a candidate, or the damping is too
                small.
            TypeError: If the dataset is a stream.
            StoreMismatchError: If the model's weights, or a candidate's image, are no longer those of the features.
            NonFiniteGradientError: If a gradient is NaN or infinite.
        """
        if not 1 <= k <= len(train_ids):
            raise ValueError(f"k must be between 1 and the {len(train_ids)} training images, got {k}")
        if candidates < k:
            raise ValueError(f"candidates must be at least k = {k}, got {candidates}")
        self.features.check_model()
        columns = values.sort(descending=True, stable=True).indices[:candidates].tolist()
        ids = [train_ids[column] for column in columns]
        source, positions = self._located(dataset, ids)
        models = [
            self._model(number, source, ids, positions, place, progress)
            for number in range(len(self.features.checkpoints))
        ]
        chosen, totals = _choose(models, k, self.damping)
        return RemovalSet(
            [ids[i] for i in chosen],
            torch.tensor(totals, dtype=torch.float64, device="cpu"),
            values.double()[[columns[i] for i in chosen]].cumsum(0),
        )

    def _located(self, dataset: Any, ids: Sequence[int | str]) -> tuple[Dataset, list[int]]:
        """The dataset, and where in it the images of some ids are, which must be those that were featurized."""
        denoiser = self.features.featurizer.denoiser
        source = as_dataset(dataset, denoiser)
        if isinstance(source, Stream):
            raise TypeError("dataset must be one with len and [], as candidates are read by position, got a stream")
        places = positions_of(ids_of(source))
        unknown = [i for i in ids if i not in places]
        if unknown:
            raise ValueError(f"dataset must hold the images that were featurized, but lacks {unknown[:5]}")
        positions = [places[i] for i in ids]
        contents = {i: content_of(denoiser, source[p], name_of(i, p)) for i, p in zip(ids, positions, strict=True)}
        for store in (self.features.store, *self.features.joined):
            check_contents(store, contents)
        return source, positions

    def _model(
        self,
        number: int,
        dataset: Dataset,
        ids: Sequence[int | str],
        positions: Sequence[int],
        place: tuple[int, int],
        progress: bool,
    ) -> Downdates:
        """The linear model of one checkpoint."""
        features, measurement = self.features, self.features.featurizer.measurement
        device, count = features.featurizer.denoiser.device, len(dataset)
        gram = features.fit.gram(number)
        blocks = self._blocks(number, dataset, positions, progress)
        rows: dict[int | str, Tensor] = {}
        for some, found in features.select(ids).blocks(number):
            rows.update(zip(some, found, strict=True))
        curvature = whole_matrix(gram, blocks, count)
        curvature.diagonal().add_(self.damping)
        # The query before it was solved.
        solution = self.solutions[number, place[0], place[1]].double()
        query = solution @ gram.matrix.double() + self.damping * solution
        return Downdates(
            curvature.to(device),
            torch.stack([block.rows for block in blocks]).to(device) / count**0.5,
            torch.stack([rows[i] for i in ids]).to(device),
            query.to(device),
            left_out=isinstance(measurement, LeftOutLoss) and measurement.weight > 0,
        )

    def _blocks(self, number: int, dataset: Dataset, positions: Sequence[int], progress: bool) -> list[GramBlock]:
        """The candidates' parts of the Gram matrix; those of the last sets are kept, as queries share candidates."""
        features = self.features
        featurizer, kept = features.featurizer, self._kept
        missing = [position for position in positions if (number, position) not in kept]
        with (
            loaded(featurizer.denoiser.network, features.checkpoints[number]),
            tqdm(total=len(missing), unit="image", desc="set", disable=not progress, dynamic_ncols=True) as bar,
        ):
            for first in range(0, len(missing), _IMAGES_AT_ONCE):
                some = missing[first : first + _IMAGES_AT_ONCE]
                samples = encode_some(featurizer.denoiser, dataset, some)
                found = measure_blocks(featurizer, features.fit.gram(number), samples, some, number)
                kept.update({(number, at): block for at, block in zip(some, found, strict=True)})
                bar.update(len(some))
        blocks = [kept[number, position] for position in positions]
        while sum(block.rows.numel() for block in kept.values()) > _KEPT:
            kept.pop(next(iter(kept)))
        return blocks


def _choose(models: Sequence[Downdates], k: int, damping: float) -> tuple[list[int], list[float]]:
    """Add the candidate with which the mean over models is largest, k times."""
    chosen: list[int] = []
    totals: list[float] = []
    while len(chosen) < k:
        found = torch.stack([model.totals().cpu() for model in models]).mean(0).nan_to_num(nan=-torch.inf)
        found[chosen] = -torch.inf
        best = int(found.argmax())
        if found[best] == -torch.inf:
            raise ValueError(
                f"damping must be larger for a set of {k}, got {damping:g}: after {len(chosen)} images every other "
                "candidate holds all curvature that is left in some direction"
            )
        for model in models:
            model.add(best)
        chosen.append(best)
        totals.append(found[best].item())
    return chosen, totals
