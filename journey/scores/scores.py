"""Scores of training images: what ``score`` and methods return, ranks them and keeps them in a file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from journey.data.ids import Ids, check_id, check_ids, positions_of
from journey.exports import tables
from journey.files.paths import GivenPath
from journey.files.tensors import read_tensors, write_tensors
from journey.models.schedules import Interval
from journey.scores.errors import ScoreErrors
from journey.scores.groups import Groups, group_columns
from journey.scores.places import one_step, place_of
from journey.scores.ranked import Top
from journey.scores.saved import id_tensors, ids_of_tensors, setting_tensors, settings_of_tensors
from journey.scores.sets import CANDIDATES, FindsRemovals, RemovalSet
from journey.scores.top import TopCollector

if TYPE_CHECKING:
    import datasets
    import pandas


class Total(NamedTuple):
    """A sum of scores.

    Attributes:
        values: float32. [num_queries, num_steps]
        errors: Standard errors, at most; NaN where they are not known. [num_queries, num_steps]
    """

    values: Tensor
    errors: Tensor


@dataclass(frozen=True)
class Scores:
    """Scores of all training images; positive is a proponent.

    Attributes:
        values: float32. [num_queries, num_steps, num_train]
        timesteps: int64; the middle one of an averaged interval, 0 of whole images. [num_steps]
        train_ids: Id of each column's training image: all integers, or all strings.
        damping: The damping that was used; of methods the relative one, averaged over checkpoints.
        interval: Timesteps of the generation that were averaged into one score, if they were.
        train_interval: Timesteps of the training images' draws that were counted; None is all.
        region: Weight of each pixel of the generated images, float32; None is one everywhere. [num_queries, H, W]
        errors: What standard errors are made of; None where they are not known.
        solutions: The solved queries, whose inner product with a row is its score, averaged over checkpoints; not
            saved. float32 [num_checkpoints, num_queries, num_steps, proj_dim]
        removals: What ``removal_set`` asks; not saved.
    """

    values: Tensor
    timesteps: Tensor
    train_ids: Ids
    damping: float
    interval: Interval | None = None
    train_interval: Interval | None = None
    region: Tensor | None = None
    errors: ScoreErrors | None = None
    solutions: Tensor | None = None
    removals: FindsRemovals | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Check that the shapes agree, and that every image has an id of its own."""
        if {type(i) for i in self.train_ids} not in ({int}, {str}) or len(set(self.train_ids)) < len(self.train_ids):
            object.__setattr__(self, "train_ids", check_ids(self.train_ids, "train_ids"))
        if self.values.dim() != 3 or list(self.values.shape[1:]) != [len(self.timesteps), len(self.train_ids)]:
            raise ValueError(
                "values must be [num_queries, num_steps, num_train] = "
                f"[..., {len(self.timesteps)}, {len(self.train_ids)}], got {list(self.values.shape)}"
            )
        if self.errors is not None and self.errors.shape != self.values.shape:
            raise ValueError(f"errors must be of scores {list(self.values.shape)}, got {list(self.errors.shape)}")

    def top(self, k: int = 8) -> Top:
        """Return the k strongest proponents and opponents of every query and step.

        Args:
            k: How many of each, at most the number of training images.

        Returns:
            Both rankings, strongest first; equal scores in ascending order of their ids, on every machine.

        Raises:
            ValueError: If ``k`` is out of range, or a score is NaN or infinite.
        """
        if not 1 <= k <= len(self.train_ids):
            raise ValueError(f"k must be between 1 and the {len(self.train_ids)} training images, got {k}")
        errors = None if self.errors is None else self.errors.of_scores()
        return TopCollector(k).add(self.train_ids, self.values, errors).top()

    def standard_errors(self) -> Tensor:
        """Return the standard error of each score, from the draws of the training images and of the queries.

        Returns:
            float32; NaN where it is not known. [num_queries, num_steps, num_train]
        """
        return torch.full_like(self.values, torch.nan) if self.errors is None else self.errors.of_scores()

    def total(self, train_ids: Sequence[int | str]) -> Total:
        """Return the sum of the scores of some training images: what training on all of them did, to first order.

        Args:
            train_ids: Their ids, all different.

        Returns:
            The sums, and their standard errors, at most.

        Raises:
            ValueError: If an id has no score or comes twice, or there is none.
            TypeError: If it is no list of integers or strings.
        """
        places = positions_of(self.train_ids)
        if isinstance(train_ids, str) or not isinstance(train_ids, Sequence):
            raise TypeError(f"train_ids must be a list of ids, got {train_ids!r:.60}")
        wrong = [i for i in train_ids if check_id(i, "train_ids") not in places]
        if wrong or not len(train_ids) or len(set(train_ids)) < len(train_ids):
            raise ValueError(
                f"train_ids must be different images that have a score, got {wrong[:5] or list(train_ids)[:5]}"
            )
        columns = [places[i] for i in train_ids]
        values = self.values[..., columns].sum(-1)
        errors = torch.full_like(values, torch.nan) if self.errors is None else self.errors.of_sum(columns)
        return Total(values, errors)

    def groups(self, groups: Mapping[str, Sequence[int | str]]) -> Groups:
        """Return the sums of the scores of groups: contributors, artists, catalogues, classes.

        Args:
            groups: The ids of each, by name. Images in no group are counted as one more, named None.

        Returns:
            Sums with their standard errors, shares, ranks and payments.

        Raises:
            ValueError: If a group is empty, an image is in two or twice in one, or an id has no score.
            TypeError: If a name is no string.
        """
        names, members = group_columns(groups, self.train_ids)
        return Groups.of_scores(names, members, self.values, self.timesteps, self.errors)

    def strengths(self) -> Scores:
        """Return the squares of the scores with their signs, for ranks of sets: what is strong counts more.

        Sums of squares rank the effect of whole halves of the data better than sums of scores do
        (docs/results/choices.md), but they do not add up over regions, intervals and steps, and have no standard
        errors.
        """
        return replace(self, values=self.values * self.values.abs(), errors=None, solutions=None, removals=None)

    def removal_set(
        self,
        k: int,
        dataset: Any,
        *,
        query: int = 0,
        step: int | None = None,
        candidates: int = CANDIDATES,
        progress: bool = True,
    ) -> RemovalSet:
        """Return the k training images whose removal together raises the loss of a query most, chosen greedily.

        Each is the one with which the set does most, which is not the next by score: of two copies one still teaches
        what both do. It takes measuring each candidate as often as the fit did its images.

        Args:
            k: How many.
            dataset: The training images, in the order that the fit looked at them.
            query: Which query, by position.
            step: One of the timesteps; None for the only one.
            candidates: How many of the strongest proponents are looked at, at least k.
            progress: Show a progress bar.

        Returns:
            The set.

        Raises:
            ValueError: If these are not the scores that ``journey.score`` returned, an argument is out of range, the
                dataset lacks a candidate, or the damping is too small.
            TypeError: If the dataset is a stream.
            StoreMismatchError: If the model's weights, or a candidate's image, are no longer those of the features.
            NonFiniteGradientError: If a gradient is NaN or infinite.
        """
        if self.removals is None:
            raise ValueError(
                "removal_set needs scores as journey.score returned them: not from a file, of strengths(), nor of a "
                "train_interval; score again"
            )
        place = place_of(query, step, len(self.values), self.timesteps.tolist())
        return self.removals.find(
            k, dataset, place, self.values[place], self.train_ids, candidates=candidates, progress=progress
        )

    def to_quanda(self, step: int | Literal["mean"] | None = None, *, ids: Sequence[int | str] | None = None) -> Tensor:
        """Return the scores of one step, or their ``"mean"``, as quanda's metrics take explanations.

        Args:
            step: See ``one_step``.
            ids: See ``one_step``.

        Returns:
            float32. [num_queries, num_train]
        """
        return one_step(self.values, self.timesteps.tolist(), self.train_ids, step, ids)

    def to_dattri(self, step: int | Literal["mean"] | None = None, *, ids: Sequence[int | str] | None = None) -> Tensor:
        """Return ``to_quanda`` transposed, as dattri's metrics take scores. [num_train, num_queries]"""
        return self.to_quanda(step, ids=ids).T.contiguous()

    def to_pandas(self) -> pandas.DataFrame:
        """Return a table with a row for each score and the columns query, step, id, score, standard_error."""
        return tables.to_pandas(self._blocks())

    def to_parquet(self, path: str | os.PathLike[str]) -> None:
        """Write the table of ``to_pandas`` as a Parquet file, a row group for each query and step."""
        tables.write_table(Path(path), self._blocks())

    def to_datasets(self) -> datasets.Dataset:
        """Return the table of ``to_pandas`` for the library ``datasets``."""
        return tables.to_datasets(self._blocks())

    def _blocks(self) -> Iterator[tables.Columns]:
        """The scores of each query and step, as columns."""
        ids, count = np.array(self.train_ids), len(self.train_ids)
        for query in range(len(self.values)):
            errors = self.standard_errors()[query] if self.errors is None else self.errors.of_query(query)
            for step, timestep in enumerate(self.timesteps.tolist()):
                yield {
                    "query": np.full(count, query),
                    "step": np.full(count, timestep),
                    "id": ids,
                    "score": self.values[query, step].numpy(),
                    "standard_error": errors[step].numpy(),
                }

    def save(self, path: GivenPath) -> None:
        """Write the scores as one safetensors file; equal scores give equal bytes."""
        tensors = {"values": self.values} | setting_tensors(self) | id_tensors("train_ids", self.train_ids)
        if self.errors is not None:
            tensors |= self.errors.tensors()
        write_tensors(path, "scores", tensors)

    @staticmethod
    def load(path: GivenPath) -> Scores:
        """Read what ``save`` wrote.

        Args:
            path: The file.

        Returns:
            The scores.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is damaged or holds something else.
        """
        saved = read_tensors(path, "scores", ("values", "timesteps", "damping"))
        ids = ids_of_tensors("train_ids", saved, str(path))
        settings = settings_of_tensors(saved)
        return Scores(saved["values"], train_ids=ids, errors=ScoreErrors.of_tensors(saved), **settings)
