"""Scores of training images: what ``score`` and methods return, ranks them and keeps them in a file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from journey.files.tensors import read_tensors, write_tensors
from journey.models.schedules import Interval
from journey.scores.errors import ScoreErrors


class Ranked(NamedTuple):
    """Training images in order of strength.

    Attributes:
        ids: int64. [num_queries, num_steps, k]
        values: Their scores, float32. [num_queries, num_steps, k]
    """

    ids: Tensor
    values: Tensor


class Top(NamedTuple):
    """The training images that count most.

    Attributes:
        proponents: Highest scores first: training on them makes the image more likely from this step.
        opponents: Lowest scores first: training on them makes it less likely.
    """

    proponents: Ranked
    opponents: Ranked


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
        train_ids: Dataset index of each column.
        damping: The damping that was used; of methods the relative one, averaged over checkpoints.
        interval: Timesteps of the generation that were averaged into one score, if they were.
        train_interval: Timesteps of the training images' draws that were counted; None is all.
        region: Weight of each pixel of the generated images, float32; None is one everywhere. [num_queries, H, W]
        errors: What standard errors are made of; None where they are not known.
    """

    values: Tensor
    timesteps: Tensor
    train_ids: list[int]
    damping: float
    interval: Interval | None = None
    train_interval: Interval | None = None
    region: Tensor | None = None
    errors: ScoreErrors | None = None

    def __post_init__(self) -> None:
        """Check that the shapes agree."""
        if self.values.dim() != 3 or list(self.values.shape[1:]) != [len(self.timesteps), len(self.train_ids)]:
            raise ValueError(
                "values must be [num_queries, num_steps, num_train] = "
                f"[..., {len(self.timesteps)}, {len(self.train_ids)}], got {list(self.values.shape)}"
            )

    def top(self, k: int = 8) -> Top:
        """Return the k strongest proponents and opponents of every query and step.

        Args:
            k: How many of each, at most the number of training images.

        Returns:
            Both rankings, strongest first.

        Raises:
            ValueError: If ``k`` is out of range.
        """
        if not 1 <= k <= len(self.train_ids):
            raise ValueError(f"k must be between 1 and the {len(self.train_ids)} training images, got {k}")
        ids = torch.tensor(self.train_ids, dtype=torch.int64, device="cpu")
        ranked = []
        for descending in (True, False):
            # A stable sort, so that equal scores are ranked by id on every machine.
            values, columns = self.values.sort(dim=-1, descending=descending, stable=True)
            ranked.append(Ranked(ids[columns[..., :k]], values[..., :k].contiguous()))
        return Top(*ranked)

    def standard_errors(self) -> Tensor:
        """Return the standard error of each score, from the draws of the training images and of the queries.

        Returns:
            float32; NaN where it is not known. [num_queries, num_steps, num_train]
        """
        return torch.full_like(self.values, torch.nan) if self.errors is None else self.errors.of_scores()

    def total(self, train_ids: Sequence[int]) -> Total:
        """Return the sum of the scores of some training images: what training on all of them did, to first order.

        Args:
            train_ids: Their dataset indices, all different.

        Returns:
            The sums, and their standard errors, at most.

        Raises:
            ValueError: If an id has no score or comes twice, or there is none.
        """
        places = {i: column for column, i in enumerate(self.train_ids)}
        wrong = [i for i in train_ids if i not in places]
        if wrong or not len(train_ids) or len(set(train_ids)) < len(train_ids):
            raise ValueError(
                f"train_ids must be different images that have a score, got {wrong[:5] or list(train_ids)[:5]}"
            )
        columns = [places[i] for i in train_ids]
        values = self.values[..., columns].sum(-1)
        errors = torch.full_like(values, torch.nan) if self.errors is None else self.errors.of_sum(columns)
        return Total(values, errors)

    def strengths(self) -> Scores:
        """Return the squares of the scores with their signs, for ranks of sets: what is strong counts more.

        Sums of squares rank the effect of whole halves of the data better than sums of scores do
        (docs/results/choices.md), but they do not add up over regions, intervals and steps, and have no standard
        errors.
        """
        return replace(self, values=self.values * self.values.abs(), errors=None)

    def to_quanda(self, step: int | Literal["mean"] | None = None) -> Tensor:
        """Return the scores of one step, or their ``"mean"``, as quanda's metrics take explanations.

        Args:
            step: See ``one_step``.

        Returns:
            float32. [num_queries, num_train]
        """
        return one_step(self.values, self.timesteps.tolist(), self.train_ids, step)

    def to_dattri(self, step: int | Literal["mean"] | None = None) -> Tensor:
        """Return ``to_quanda`` transposed, as dattri's metrics take scores. [num_train, num_queries]"""
        return self.to_quanda(step).T.contiguous()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the scores as one safetensors file; equal scores give equal bytes."""
        tensors = {
            "values": self.values,
            "timesteps": self.timesteps,
            "train_ids": torch.tensor(self.train_ids, dtype=torch.int64, device="cpu"),
            "damping": torch.tensor(self.damping, dtype=torch.float64, device="cpu"),
        }
        for name in ("interval", "train_interval"):
            if getattr(self, name) is not None:
                tensors[name] = torch.tensor(getattr(self, name), dtype=torch.int64, device="cpu")
        if self.region is not None:
            tensors["region"] = self.region
        if self.errors is not None:
            tensors |= self.errors.tensors()
        write_tensors(path, "scores", tensors)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Scores:
        """Read what ``save`` wrote.

        Args:
            path: The file.

        Returns:
            The scores.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is damaged or holds something else.
        """
        saved = read_tensors(path, "scores", ("values", "timesteps", "train_ids", "damping"))
        return Scores(
            saved["values"],
            saved["timesteps"],
            saved["train_ids"].tolist(),
            saved["damping"].item(),
            _interval(saved, "interval"),
            _interval(saved, "train_interval"),
            saved.get("region"),
            ScoreErrors.of_tensors(saved),
        )


def _interval(saved: dict[str, Tensor], name: str) -> Interval | None:
    if name not in saved:
        return None
    first, end = saved[name].tolist()
    return first, end


def one_step(values: Tensor, timesteps: list[int], train_ids: list[int], step: int | Literal["mean"] | None) -> Tensor:
    """Return the scores of one step, whose columns are the dataset's images in their order.

    Args:
        values: Scores. [num_queries, num_steps, num_train]
        timesteps: The steps.
        train_ids: Dataset index of each column.
        step: One of the timesteps, ``"mean"`` of all, or None for the only one.

    Returns:
        float32. [num_queries, num_train]

    Raises:
        ValueError: If there is no such step, or none is named and there are several, or columns are not the whole
            dataset in its order.
    """
    if train_ids != list(range(len(train_ids))):
        raise ValueError(
            "columns must be the images 0, 1, ... of the dataset, by whose positions other libraries name them, "
            f"got train_ids {train_ids[:5]} ..."
        )
    if step == "mean":
        return values.mean(1)
    if step is None and len(timesteps) == 1:
        return values[:, 0].clone()
    if step not in timesteps:
        raise ValueError(f'step must be one of the timesteps {timesteps} or "mean", got {step}')
    return values[:, timesteps.index(step)].clone()
