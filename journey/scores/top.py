"""The strongest scores alone: found in blocks that come one after the other, kept, and merged over machines."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from journey.data.ids import Ids
from journey.exports import tables
from journey.files.paths import GivenPath
from journey.files.tensors import read_tensors, write_tensors
from journey.models.schedules import Interval
from journey.scores.ranked import Array, Ranked, Side, Top
from journey.scores.saved import id_tensors, ids_of_tensors, setting_tensors, settings_of_tensors

if TYPE_CHECKING:
    import datasets
    import pandas

_SIDES = ("proponents", "opponents")


@dataclass(frozen=True, eq=False)
class TopScores:
    """The strongest scores of every query and step, without the others: ``journey.score(..., top=k)``.

    Attributes:
        proponents: Highest scores first.
        opponents: Lowest scores first.
        k: How many of each were to be kept; there are fewer where there were fewer training images.
        num_train: Training images that were scored.
        timesteps: int64; as in ``Scores``. [num_steps]
        damping: As in ``Scores``.
        interval: Likewise.
        train_interval: Likewise.
        region: Likewise.
        solutions: Likewise.
    """

    proponents: Ranked
    opponents: Ranked
    k: int
    num_train: int
    timesteps: Tensor
    damping: float
    interval: Interval | None = None
    train_interval: Interval | None = None
    region: Tensor | None = None
    solutions: Tensor | None = None

    def __post_init__(self) -> None:
        """Check that the shapes agree."""
        shape = list(self.proponents.values.shape)
        if len(shape) != 3 or shape[1:] != [len(self.timesteps), min(self.k, self.num_train)]:
            raise ValueError(
                "proponents must be [num_queries, num_steps, min(k, num_train)] = "
                f"[..., {len(self.timesteps)}, {min(self.k, self.num_train)}], got {shape}"
            )
        for name in _SIDES:
            for part, found in getattr(self, name)._asdict().items():
                if list(found.shape) != shape:
                    raise ValueError(f"{name}.{part} must be {shape}, got {list(found.shape)}")

    def top(self, k: int | None = None) -> Top:
        """Return the k strongest proponents and opponents of every query and step.

        Args:
            k: How many of each, at most as many as were kept; by default all of them.

        Returns:
            Both rankings, strongest first.

        Raises:
            ValueError: If ``k`` is out of range.
        """
        kept = self.proponents.values.shape[2]
        k = kept if k is None else k
        if not 1 <= k <= kept:
            raise ValueError(f"k must be between 1 and the {kept} scores that were kept, got {k}")
        sides = (self.proponents, self.opponents)
        return Top(*(Ranked(side.ids[..., :k], side.values[..., :k], side.errors[..., :k]) for side in sides))

    @staticmethod
    def merge(parts: Sequence[TopScores]) -> TopScores:
        """Return the strongest of several: shards of the training images that were scored on several machines.

        The order of the parts, and merging some of them first, change nothing.

        Args:
            parts: Of the same queries, steps and settings, each of other training images.

        Returns:
            What scoring all of them at once gives.

        Raises:
            ValueError: If there is no part, one has other settings, or an id is among the strongest of two.
            TypeError: If ids are integers in one part and strings in another.
        """
        if not parts:
            raise ValueError("parts must be one TopScores or more, got none")
        first = parts[0]
        for number, part in enumerate(parts[1:], 1):
            _check_alike(first, part, number)
        shape = (first.proponents.values.shape[0], first.proponents.values.shape[1])
        merged = []
        for name, sign in zip(_SIDES, (1, -1), strict=True):
            side = Side(shape[0] * shape[1], first.k)
            for part in parts:
                ids, values, errors = getattr(part, name)
                rows = np.repeat(np.arange(shape[0] * shape[1]), values.shape[2])
                side.merge(rows, ids.ravel(), sign * values.numpy().ravel(), errors.numpy().ravel())
            merged.append(side.ranked(shape, sign))
        proponents, opponents = merged
        return replace(
            first, proponents=proponents, opponents=opponents, num_train=sum(part.num_train for part in parts)
        )

    def to_pandas(self) -> pandas.DataFrame:
        """Return a table with the columns query, step, kind, rank, id, score, standard_error."""
        return tables.to_pandas(self._blocks())

    def to_parquet(self, path: str | os.PathLike[str]) -> None:
        """Write the table of ``to_pandas`` as a Parquet file."""
        tables.write_table(Path(path), self._blocks())

    def to_datasets(self) -> datasets.Dataset:
        """Return the table of ``to_pandas`` for the library ``datasets``."""
        return tables.to_datasets(self._blocks())

    def save(self, path: GivenPath) -> None:
        """Write the scores as one safetensors file; equal scores give equal bytes."""
        tensors = setting_tensors(self) | {
            "k": torch.tensor(self.k, dtype=torch.int64, device="cpu"),
            "num_train": torch.tensor(self.num_train, dtype=torch.int64, device="cpu"),
        }
        for name in _SIDES:
            ids, values, errors = getattr(self, name)
            tensors |= {f"{name}.values": values, f"{name}.errors": errors, **id_tensors(f"{name}.ids", ids)}
        write_tensors(path, "strongest scores", tensors)

    @staticmethod
    def load(path: GivenPath) -> TopScores:
        """Read what ``save`` wrote.

        Args:
            path: The file.

        Returns:
            The scores.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is damaged or holds something else.
        """
        needed = [f"{name}.{part}" for name in _SIDES for part in ("values", "errors")]
        saved = read_tensors(path, "strongest scores", ("timesteps", "damping", "k", "num_train", *needed))
        sides = []
        for name in _SIDES:
            values = saved[f"{name}.values"]
            ids = ids_of_tensors(f"{name}.ids", saved, str(path))
            sides.append(Ranked(np.array(ids).reshape(values.shape), values, saved[f"{name}.errors"]))
        proponents, opponents = sides
        counts = (int(saved["k"]), int(saved["num_train"]))
        return TopScores(proponents, opponents, *counts, **settings_of_tensors(saved))

    def _blocks(self) -> Iterator[tables.Columns]:
        """The rows of each query, step and sign, as columns."""
        num_queries, num_steps, kept = self.proponents.values.shape
        ranks = np.arange(1, kept + 1)
        for query in range(num_queries):
            for step in range(num_steps):
                for kind in _SIDES:
                    ids, values, errors = (part[query, step] for part in getattr(self, kind))
                    yield {
                        "query": np.full(kept, query),
                        "step": np.full(kept, int(self.timesteps[step])),
                        "kind": np.full(kept, kind.removesuffix("s")),
                        "rank": ranks,
                        "id": ids,
                        "score": values.numpy(),
                        "standard_error": errors.numpy(),
                    }


class TopCollector:
    """Finds the strongest of scores that come in blocks of columns, in the memory of one block.

    The order and the size of the blocks change nothing: equal scores are ranked by id.

    Args:
        k: Proponents and opponents of each query and step to keep, at most.
    """

    def __init__(self, k: int) -> None:
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ValueError(f"k must be a positive integer, got {k!r}")
        self.k = k
        self.num_train = 0
        self._shape: tuple[int, int] | None = None
        self._sides: tuple[Side, Side] | None = None

    def add(self, ids: Ids | Array, values: Tensor, errors: Tensor | None = None) -> TopCollector:
        """Take another block of columns.

        Args:
            ids: Of the block's training images: integers or strings. [n]
            values: Their scores, float32. [num_queries, num_steps, n]
            errors: Standard errors of the scores, float32; None where they are not known. The shape of ``values``.

        Returns:
            The collector.

        Raises:
            ValueError: If shapes disagree, with each other or with earlier blocks, or a score is NaN or infinite.
            TypeError: If ids are of another kind than those of earlier blocks.
        """
        if values.dim() != 3 or values.shape[2] != len(ids) or 0 in values.shape[:2]:
            raise ValueError(
                f"values must be [num_queries, num_steps, n] of the {len(ids)} ids, got {list(values.shape)}"
            )
        if errors is not None and errors.shape != values.shape:
            raise ValueError(f"errors must have the shape of values, {list(values.shape)}, got {list(errors.shape)}")
        if self._shape is None:
            self._shape = (values.shape[0], values.shape[1])
            self._sides = (Side(self._shape[0] * self._shape[1], self.k), Side(self._shape[0] * self._shape[1], self.k))
        if values.shape[:2] != self._shape:
            raise ValueError(
                f"values must be of the queries and steps of earlier blocks, {list(self._shape)}, got "
                f"{list(values.shape[:2])}"
            )
        if len(ids) == 0:
            return self
        assert self._sides is not None
        rows = values.detach().to("cpu", torch.float32).flatten(0, 1)
        known = None if errors is None else errors.detach().to("cpu", torch.float32).flatten(0, 1)
        _check_finite(rows, ids)
        for side, signed in zip(self._sides, (rows, -rows), strict=True):
            side.add(ids, signed, known)
        self.num_train += len(ids)
        return self

    def top(self) -> Top:
        """Return the strongest of all blocks so far: ``k`` of each sign, or as many as there are columns.

        Returns:
            Both rankings, strongest first.

        Raises:
            ValueError: If there was no column, or an id came twice.
        """
        if self._sides is None or self.num_train == 0:
            raise ValueError("there are no scores to rank: add a block first")
        assert self._shape is not None
        proponents, opponents = self._sides
        return Top(proponents.ranked(self._shape, 1), opponents.ranked(self._shape, -1))


def _check_finite(rows: Tensor, ids: Ids | Array) -> None:
    # A sum is finite only if all terms are, and is far faster to test; it may overflow, so look again.
    if torch.isfinite(rows.sum()) or torch.isfinite(rows).all():
        return
    column = int((~torch.isfinite(rows)).any(0).nonzero()[0])
    raise ValueError(f"values must be finite, got NaN or infinity for the image {ids[column]!r}")


def _check_alike(first: TopScores, part: TopScores, number: int) -> None:
    """Refuse to merge what is not of the same questions."""
    same = {
        name: getattr(first, name) == getattr(part, name) for name in ("k", "damping", "interval", "train_interval")
    }
    same["timesteps"] = torch.equal(first.timesteps, part.timesteps)
    same["number of queries"] = len(first.proponents.values) == len(part.proponents.values)
    regions = (first.region, part.region)
    same["region"] = regions[0] is regions[1] or (None not in regions and torch.equal(*regions))  # type: ignore[arg-type]
    other = [name for name, equal in same.items() if not equal]
    if other:
        raise ValueError(
            f"parts must be of the same queries and settings, parts[{number}] has another {', '.join(other)}"
        )
