"""Training images in order of strength, and how the strongest are kept of many."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from journey.data.ids import Ids, check_id

Array: TypeAlias = np.ndarray[Any, Any]

# A row with so many candidates in a block, in multiples of k, raises its bar before they are gathered.
_MANY = 4


class Ranked(NamedTuple):
    """Training images in order of strength; equal scores in ascending order of their ids.

    Attributes:
        ids: int64 or str. [num_queries, num_steps, k]
        values: Their scores, float32. [num_queries, num_steps, k]
        errors: Standard errors of the scores, float32; NaN where they are not known. [num_queries, num_steps, k]
    """

    ids: Array
    values: Tensor
    errors: Tensor


class Top(NamedTuple):
    """The training images that count most.

    Attributes:
        proponents: Highest scores first: training on them makes the image more likely from this step.
        opponents: Lowest scores first: training on them makes it less likely.
    """

    proponents: Ranked
    opponents: Ranked


class Side:
    """The largest values of each row so far, in order."""

    def __init__(self, num_rows: int, k: int) -> None:
        self._k = k
        self._ids: Array | None = None  # [num_rows, kept]
        self._values = np.empty((num_rows, 0), dtype=np.float32)
        self._errors = np.empty((num_rows, 0), dtype=np.float32)

    def add(self, ids: Ids | Array, values: Tensor, errors: Tensor | None) -> None:
        """Keep what a block has that belongs to the largest: most often nothing."""
        bar = self._bar()
        entering = values >= bar[:, None]  # equal ones too: a smaller id goes first
        counts = entering.sum(1)
        if not counts.any():
            return
        # With many candidates, those below the block's own k-th largest are none.
        many = (counts > _MANY * self._k).nonzero().flatten()
        if len(many):
            bar[many] = torch.maximum(bar[many], values[many].topk(self._k, dim=1, sorted=False).values.amin(1))
            entering[many] = values[many] >= bar[many, None]
        rows, columns = entering.nonzero(as_tuple=True)
        found = values[rows, columns].numpy()
        unsure = np.full(len(found), np.nan, np.float32) if errors is None else errors[rows, columns].numpy()
        self.merge(rows.numpy(), take(ids, columns.numpy()), found, unsure)

    def ranked(self, shape: tuple[int, int], sign: int) -> Ranked:
        """Return what was kept, its values times ``sign``; an id that was kept twice is an error."""
        assert self._ids is not None
        for row in self._ids:
            names, counts = np.unique(row, return_counts=True)
            if (counts > 1).any():
                twice = names[counts > 1][0].item()
                raise ValueError(f"ids must come once in all blocks, got {twice!r} twice")
        kept = self._ids.shape[1]
        values = torch.from_numpy(self._values * np.float32(sign)).view(*shape, kept)
        errors = torch.from_numpy(self._errors.copy()).view(*shape, kept)
        return Ranked(self._ids.reshape(*shape, kept).copy(), values, errors)

    def _bar(self) -> Tensor:
        """What a value must reach to enter. [num_rows]"""
        if self._values.shape[1] < self._k:
            return torch.full((len(self._values),), -torch.inf, dtype=torch.float32, device="cpu")
        return torch.from_numpy(self._values[:, -1].copy())

    def merge(self, rows: Array, ids: Array, values: Array, errors: Array) -> None:
        """Take candidates, each of a row; all rows have at least as many as must be kept, or equally many. [n] each"""
        num_rows, before = self._values.shape
        if self._ids is not None:
            if self._ids.dtype.kind != ids.dtype.kind:
                raise TypeError(f"ids must be of the kind of earlier blocks, {self._ids.dtype}, got {ids.dtype}")
            rows = np.concatenate([np.repeat(np.arange(num_rows), before), rows])
            ids = np.concatenate([self._ids.ravel(), ids])
            values = np.concatenate([self._values.ravel(), values])
            errors = np.concatenate([self._errors.ravel(), errors])
        order = np.lexsort((ids, -values, rows))
        starts = np.searchsorted(rows[order], np.arange(num_rows))
        kept = min(self._k, np.diff([*starts, len(rows)]).min())
        chosen = order[starts[:, None] + np.arange(kept)]
        self._ids, self._values, self._errors = ids[chosen], values[chosen], errors[chosen]


def take(ids: Ids | Array, columns: Array) -> Array:
    """Return the ids of some columns as an array, int64 or str. The shape of ``columns``.

    Raises:
        TypeError: If they are neither all integers nor all strings.
    """
    if isinstance(ids, np.ndarray):
        if ids.dtype.kind not in "iU":
            raise TypeError(f"ids must be integers or strings, got an array of {ids.dtype}")
        chosen = ids[columns]
        return chosen if ids.dtype.kind == "U" else chosen.astype(np.int64, copy=False)
    some: list[Any] = [ids[column] for column in columns.ravel().tolist()]
    kinds = set(map(type, some))
    if kinds != {int} and kinds != {str}:
        some = [check_id(i, "ids") for i in some]
        kinds = set(map(type, some))
    if len(kinds) > 1:
        raise TypeError(f"ids must be all integers or all strings, got {some[:5]}")
    return np.array(some, dtype=np.str_ if str in kinds else np.int64).reshape(columns.shape)
