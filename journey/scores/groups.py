"""Scores of groups of training images: contributors, artists, catalogues, classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from journey.data.ids import Ids, check_id, positions_of
from journey.exports.csv import write_csv
from journey.scores.errors import ScoreErrors, sums
from journey.scores.payments import Payments, divide

if TYPE_CHECKING:
    from decimal import Decimal

# Standard errors by which a sum must differ from zero, and on either side of which another group is not told apart.
NOISE_LEVEL = 2.0
COLUMNS = (
    *("query", "step", "group", "images", "sum", "standard_error", "share", "above_noise"),
    *("rank_best", "rank_worst"),
)


@dataclass(frozen=True, eq=False)
class Groups:
    """Sums of the scores of disjoint groups, for every query and step.

    Images that are in no group are one more, the last, named None: they have a sum and a share, but no rank.

    Attributes:
        names: Of the groups. [num_groups]
        sizes: Training images of each. [num_groups]
        timesteps: int64; as in ``Scores``. [num_steps]
        sums: What training on the group did, to first order, float64. [num_queries, num_steps, num_groups]
        errors: Standard errors of the sums, at most, float64; NaN where they are not known. The shape of ``sums``.
        gross: Sum of the magnitudes of all scores, float64. [num_queries, num_steps]
    """

    names: list[str | None]
    sizes: list[int]
    timesteps: Tensor
    sums: Tensor
    errors: Tensor
    gross: Tensor

    @staticmethod
    def of_scores(
        names: list[str | None], members: Tensor, values: Tensor, timesteps: Tensor, errors: ScoreErrors | None
    ) -> Groups:
        """Add up the scores of each group, in float64.

        Args:
            names: Of the groups.
            members: The group of each column, int64. [num_train]
            values: Scores. [num_queries, num_steps, num_train]
            timesteps: int64. [num_steps]
            errors: What standard errors are made of, if they are known.

        Returns:
            The groups.

        Raises:
            ValueError: If a score is NaN or infinite.
        """
        if not torch.isfinite(values).all():
            raise ValueError("values must be finite to be added up, got NaN or infinity among the scores")
        count = len(names)
        found = torch.stack([sums(row.double(), members, count) for row in values.cpu().flatten(0, 1)])
        found = found.view(*values.shape[:2], count)
        gross = torch.stack([row.double().abs().sum() for row in values.cpu().flatten(0, 1)]).view(values.shape[:2])
        unsure = torch.full_like(found, torch.nan) if errors is None else errors.of_sums(members, count)
        sizes = torch.bincount(members, minlength=count).tolist()
        return Groups(names, sizes, timesteps, found, unsure, gross)

    @property
    def num_named(self) -> int:
        """Groups that have a name: all but the rest."""
        return len(self.names) - (self.names[-1] is None)

    def shares(self) -> Tensor:
        """Return each sum over the sum of the magnitudes of all scores: a part of everything that pushed, either way.

        Shares lie in [-1, 1] and add up as sums do: that of two groups together is the sum of theirs, and no other
        group's changes when a group is split, merged or left unnamed. All of them add up to 1 only if no score is
        negative. Where all scores are zero so are the shares.

        Returns:
            float64. [num_queries, num_steps, num_groups]
        """
        gross = self.gross[..., None]
        return torch.where(gross > 0, self.sums / gross, torch.zeros_like(self.sums))

    def above_noise(self) -> Tensor:
        """Return whether each sum differs from zero by more than ``NOISE_LEVEL`` = 2 standard errors.

        Returns:
            bool; False where the error is not known. [num_queries, num_steps, num_groups]
        """
        return self.sums.abs() > NOISE_LEVEL * self.errors

    def ranks(self) -> Tensor:
        """Return the best and the worst rank that each named group may have; 1 is the highest sum.

        A group is above another if its interval, the sum with two standard errors on either side, lies wholly above
        the other's. Its best rank is one more than the number of named groups above it, its worst is the number of
        named groups that it is not above: groups whose intervals overlap share ranks. Without known errors every
        rank is possible.

        Returns:
            int64. [num_queries, num_steps, num_named, 2]
        """
        named = slice(0, self.num_named)
        value, margin = self.sums[..., named], NOISE_LEVEL * self.errors[..., named]
        above = (value - margin)[..., :, None] > (value + margin)[..., None, :]
        best, worst = 1 + above.sum(-2), self.num_named - above.sum(-1)
        return torch.stack([best, worst], -1)

    def informativeness(self) -> Tensor:
        """Return which share of the variance between the named groups' sums is not noise, in [0, 1].

        ``1 - mean(errors^2) / var(sums)``, the reliability of the sums as a measure that tells groups apart: at 0 the
        differences are no larger than draws alone would make them, at 1 the draws do not matter. Errors are upper
        bounds, so that this is at most the reliability. Groups of different sizes differ by their sizes too.

        Returns:
            float64; NaN where errors are not known, or with fewer than two named groups. [num_queries, num_steps]
        """
        named = slice(0, self.num_named)
        if self.num_named < 2:
            return torch.full_like(self.gross, torch.nan)
        variance = self.sums[..., named].var(-1)
        noise = self.errors[..., named].square().mean(-1)
        known = (1 - noise / variance).clamp(0, 1)
        return torch.where(variance > 0, known, torch.where(noise.isnan(), noise, torch.zeros_like(noise)))

    def payments(
        self, pool: int | float | str | Decimal, *, rule: Literal["positive", "shapley"] = "positive"
    ) -> Payments:
        """Divide an amount of money among all groups, the unnamed rest included, to the cent.

        Every query and step divides an equal part of the pool by its sums. ``"positive"`` gives in proportion to
        positive sums, and nothing for others. ``"shapley"`` gives in proportion to all sums: they are the Shapley
        values of the game whose worth of a set of groups is the sum of its scores, scaled to the pool. Negative sums
        then owe, and others may get more than the pool; ``"positive"`` is this with what is negative set to zero, and
        the others scaled to the pool again. Splitting a group changes nothing under ``"shapley"``; under
        ``"positive"`` a group that is split into a positive and a negative part gets more.

        Args:
            pool: The amount, with two decimals at most.
            rule: How to divide.

        Returns:
            The amounts, which add up to the pool.

        Raises:
            ValueError: If the pool is no positive amount of whole cents, the rule is unknown, or a query and step has
                nothing to divide by: no positive sum, or for ``"shapley"`` a total that is not positive.
        """
        if rule not in ("positive", "shapley"):
            raise ValueError(f'rule must be "positive" or "shapley", got {rule!r}')
        weights = self.sums.clamp(min=0) if rule == "positive" else self.sums
        totals = weights.sum(-1)
        for query, step in (totals <= 0).nonzero().tolist():
            what = "no group has a positive sum" if rule == "positive" else "the sum of all scores is not positive"
            raise ValueError(f"the pool cannot be divided by query {query} at step {int(self.timesteps[step])}: {what}")
        return Payments(self.names, divide(pool, (weights / totals[..., None]).mean((0, 1)).tolist()))

    def to_csv(self, path: str | Path) -> Path:
        """Write a line for each query, step and group; the rest has an empty name and no ranks.

        Args:
            path: The file; missing folders are made.

        Returns:
            The path of the file.
        """
        return write_csv(path, [COLUMNS, *self._rows()])

    def _rows(self) -> Iterator[tuple[object, ...]]:
        shares, above, ranks = self.shares().tolist(), self.above_noise().tolist(), self.ranks().tolist()
        sums, errors = self.sums.tolist(), self.errors.tolist()
        for query in range(len(sums)):
            for step, timestep in enumerate(self.timesteps.tolist()):
                for group, name in enumerate(self.names):
                    place = (query, step, group)
                    value, error, share = (_at(part, place) for part in (sums, errors, shares))
                    best, worst = ("", "") if name is None else _at(ranks, place)
                    known = "" if error != error else _short(error)
                    yield (
                        *(query, timestep, "" if name is None else name, self.sizes[group]),
                        *(_short(value), known, _short(share)),
                        *("" if error != error else int(_at(above, place)), best, worst),
                    )


def group_columns(groups: Mapping[str, Sequence[int | str]], train_ids: Ids) -> tuple[list[str | None], Tensor]:
    """Check groups and find the group of each column.

    Args:
        groups: The ids of each, by name.
        train_ids: Of the columns.

    Returns:
        The names, None last if there are images in no group; and the group of each column, int64. [num_train]

    Raises:
        ValueError: If there is no group or one is empty, an image is in two or twice in one, or an id has no score.
        TypeError: If groups are not given by name, a name is no string, or a group is no list of ids.
    """
    if not isinstance(groups, Mapping):
        raise TypeError(f"groups must be lists of ids by name, such as {{'Ada': [0, 5]}}, got {groups!r:.60}")
    if not groups:
        raise ValueError("groups must have a group or more, got none")
    places = positions_of(train_ids)
    names: list[str | None] = []
    found = [-1] * len(places)
    for name, ids in groups.items():
        if not isinstance(name, str) or not name:
            raise TypeError(f"groups must be named by strings that are not empty, got {name!r}")
        if isinstance(ids, str) or not isinstance(ids, Sequence | set | np.ndarray | Tensor):
            raise TypeError(f"groups[{name!r}] must be a list of ids, got {ids!r:.60}")
        if not len(ids):
            raise ValueError(f"groups[{name!r}] must have an image or more, got none")
        for i in ids:
            column = places.get(check_id(i, f"groups[{name!r}]"))
            if column is None:
                raise ValueError(f"groups[{name!r}] must be of images that have a score, got {i!r}, which has none")
            if found[column] >= 0:
                other = names[found[column]] if found[column] < len(names) else name
                raise ValueError(f"groups must not overlap, got the image {i!r} in {other!r} and in {name!r}")
            found[column] = len(names)
        names.append(name)
    members = torch.tensor(found, dtype=torch.int64, device="cpu")
    if (members < 0).any():
        members[members < 0] = len(names)
        names.append(None)
    return names, members


def _short(value: float) -> float:
    """Nine digits: those of float32."""
    return float(f"{value:.9g}")


def _at(values: Any, place: tuple[int, ...]) -> Any:
    for index in place:
        values = values[index]
    return values
