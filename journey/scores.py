"""Scores of training images: what ``score`` and methods return, ranks them and keeps them in a file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from journey.files.tensors import read_tensors, write_tensors
from journey.integrations.tables import one_step
from journey.models.schedules import Interval


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


@dataclass(frozen=True)
class Scores:
    """Scores of all training images; positive is a proponent.

    Attributes:
        values: float32. [num_queries, num_steps, num_train]
        timesteps: int64; the middle one of an averaged interval. [num_steps]
        train_ids: Dataset index of each column.
        damping: The relative damping that was used, averaged over checkpoints.
        interval: Timesteps of the generation that were averaged into one score, if they were.
        train_interval: Timesteps of the training images' draws that were counted; None is all.
        region: Weight of each pixel of the generated images, float32; None is one everywhere. [num_queries, H, W]
    """

    values: Tensor
    timesteps: Tensor
    train_ids: list[int]
    damping: float
    interval: Interval | None = None
    train_interval: Interval | None = None
    region: Tensor | None = None

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
        ids = torch.tensor(self.train_ids)
        ranked = []
        for descending in (True, False):
            # A stable sort, so that equal scores are ranked by id on every machine.
            values, columns = self.values.sort(dim=-1, descending=descending, stable=True)
            ranked.append(Ranked(ids[columns[..., :k]], values[..., :k].contiguous()))
        return Top(*ranked)

    def to_quanda(self, step: int | Literal["mean"] | None = None) -> Tensor:
        """Return the scores of one step, or their ``"mean"``, as quanda's metrics take explanations.

        Args:
            step: See ``journey.integrations.tables.one_step``.

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
            "train_ids": torch.tensor(self.train_ids),
            "damping": torch.tensor(self.damping, dtype=torch.float64),
        }
        for name in ("interval", "train_interval"):
            if getattr(self, name) is not None:
                tensors[name] = torch.tensor(getattr(self, name))
        if self.region is not None:
            tensors["region"] = self.region
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
        )


def _interval(saved: dict[str, Tensor], name: str) -> Interval | None:
    if name not in saved:
        return None
    first, end = saved[name].tolist()
    return first, end
