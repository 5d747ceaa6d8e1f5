"""Features of a dataset on disk, with what is needed to measure queries in the same way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from journey.curvature.directions import Directions
from journey.data.ids import check_id
from journey.errors import StoreMismatchError
from journey.features.fitted import Fit
from journey.features.identity import fingerprint_model
from journey.files.paths import Location
from journey.measure.draws import Draws
from journey.measure.featurizer import Featurizer
from journey.models.checkpoints import Checkpoint
from journey.store.part import ShardName
from journey.store.shard import Shard
from journey.store.store import FeatureStore


@dataclass(frozen=True)
class Blocks:
    """Ids and rows of features, some at a time; iterating begins anew each time.

    Attributes:
        features: The features.
        checkpoint: Under which checkpoint, by position.
        directions: Those along which rows are cut; None leaves them as they are.
    """

    features: Features
    checkpoint: int
    directions: Directions | None = None

    def __post_init__(self) -> None:
        """Refuse directions of rows of another length."""
        if self.directions is None:
            return
        known, given = self.features.featurizer.features_dim, len(self.directions.of_rows)
        if given != known:
            raise ValueError(
                f"directions must be of rows of {known} numbers, as these features have, got those of rows of {given}"
            )

    def __iter__(self) -> Iterator[tuple[list[int | str], Tensor]]:
        weights = self.features.draws.weights(self.features.featurizer.denoiser.num_train_timesteps).float()
        for shard in self.features.shards(self.checkpoint):
            rows = torch.einsum("nbk,b->nk", shard.features, weights)
            yield shard.ids, rows if self.directions is None else self.directions.rows(rows)


class _Piece(NamedTuple):
    """A shard, the rows of it that count (None is all), and how many these are."""

    store: FeatureStore
    name: ShardName
    rows: Tensor | None
    num: int


@dataclass(frozen=True)
class Slice:
    """Some of the rows of features, which another process can read: it travels without the model.

    Attributes:
        pieces: Folder of the store, shard, and the rows of it that count (None is all).
    """

    pieces: list[tuple[Location, ShardName, Tensor | None]]

    def shards(self, checkpoint: int = 0) -> Iterator[Shard]:
        """Read the rows under a checkpoint, as ``Features.shards``."""
        stores: dict[Location, FeatureStore] = {}
        for path, name, rows in self.pieces:
            if path not in stores:
                stores[path] = FeatureStore.open(path)
            store = stores[path]
            shard = store.read_shard(store.manifest.checkpoints[checkpoint], name)
            yield shard if rows is None else shard.select(rows)
        for store in stores.values():
            store.keep_marks()


@dataclass(frozen=True, eq=False)
class Features:
    """Features of a dataset on disk, and what is needed to measure queries in the same way.

    Attributes:
        store: The features.
        featurizer: The measurement, on the network whose weights ``checkpoints`` replace in turn.
        draws: Which timesteps and noise the training images were measured with.
        checkpoints: The weights, as given; None stands for the network's own.
        fit: What was learned before: prior and scales, which the featurizer has, and the Gram matrices of scores.
        joined: Further stores of the same run, whose images come after.
        chosen: The only images that count; None is all.
    """

    store: FeatureStore
    featurizer: Featurizer
    draws: Draws
    checkpoints: tuple[Checkpoint | None, ...]
    fit: Fit
    joined: tuple[FeatureStore, ...] = ()
    chosen: frozenset[int | str] | None = None

    @property
    def num_samples(self) -> int:
        """Number of training images."""
        return sum(piece.num for piece in self._pieces)

    @cached_property
    def ids(self) -> list[int | str]:
        """Their ids, in the order of rows."""
        found: list[int | str] = []
        for piece in self._pieces:
            ids = piece.store.read_shard(piece.store.manifest.checkpoints[0], piece.name, verify=False).ids
            found += ids if piece.rows is None else [ids[at] for at in piece.rows.tolist()]
        return found

    def select(self, ids: Iterable[int | str]) -> Features:
        """Return the features of some images alone.

        Args:
            ids: Which.

        Returns:
            Features of the same store, whose other images do not count.

        Raises:
            ValueError: If there is no image, or one has no features.
            TypeError: If it is no list of integers or strings.
        """
        wanted = self._known(ids)
        if not wanted:
            raise ValueError("ids must name at least one image, got none")
        return replace(self, chosen=frozenset(wanted))

    def without(self, ids: Iterable[int | str]) -> Features:
        """Return the features of all images but some; arguments and errors are those of ``select``."""
        return self.select(set(self.ids) - self._known(ids))

    def shards(self, checkpoint: int = 0, verify: bool = True) -> Iterator[Shard]:
        """Read all rows under a checkpoint, some at a time, in the order of ``ids``.

        Args:
            checkpoint: Which checkpoint, by position.
            verify: As for ``FeatureStore.read_shard``.

        Yields:
            Shards; memory holds one at a time.

        Raises:
            IncompleteStoreError: If shards are missing.
            CorruptShardError: If a file is not what was written.
        """
        for store, name, rows, _ in self._pieces:
            shard = store.read_shard(store.manifest.checkpoints[checkpoint], name, verify)
            yield shard if rows is None else shard.select(rows)
        for store in (self.store, *self.joined):
            store.keep_marks()

    def slices(self, count: int) -> list[Slice]:
        """Return the rows in ``count`` slices of about as many shards, or fewer, in order."""
        pieces = [(piece.store.path, piece.name, piece.rows) for piece in self._pieces]
        ends = [len(pieces) * i // count for i in range(count + 1)]
        return [Slice(pieces[first:end]) for first, end in pairwise(ends) if first < end]

    def blocks(self, checkpoint: int = 0, *, directions: Directions | None = None) -> Blocks:
        """Return the whole-range rows some at a time, as ``journey.exports.vectors`` takes them; see ``matrix``.

        Args:
            checkpoint: Which checkpoint, by position.
            directions: Cut the rows, as ``directions.queries`` cuts solved queries; whole by default.

        Returns:
            Ids and rows, float32 [num, directions.dims], or [num, proj_dim] of whole ones.

        Raises:
            ValueError: If the directions are of rows of another length.
        """
        return Blocks(self, checkpoint, directions)

    def matrix(self, checkpoint: int = 0) -> Tensor:
        """Return the whole-range features of all training images under one checkpoint.

        ``matrix[i] = sum_b w_b features[i, b]`` with ``w_b`` the bin's share of the timesteps.

        Args:
            checkpoint: Which checkpoint, by position.

        Returns:
            float32. [num_samples, proj_dim]
        """
        return torch.cat([rows for _, rows in self.blocks(checkpoint)])

    def check_model(self) -> None:
        """Refuse a model that is not, or no longer, the one the features were measured with.

        Raises:
            StoreMismatchError: Names what differs.
        """
        now = {**fingerprint_model(self.featurizer, self.checkpoints), "draws": self.draws.fingerprint()}
        for store in (self.store, *self.joined):
            check_run(store, now)

    @cached_property
    def _pieces(self) -> list[_Piece]:
        """The shards, with the rows that count.

        An image that two shards hold counts once: they were measured twice by processes that did not see each other.

        Raises:
            StoreMismatchError: If they hold two images of one id.
        """
        pieces, ids, contents = [], [], []
        for store in (self.store, *self.joined):
            store.require_complete()
            for name in store.shards():
                shard = store.read_shard(store.manifest.checkpoints[0], name, verify=False)
                if len(shard):
                    pieces.append(_Piece(store, name, None, len(shard)))
                    ids.append(shard.id_array)
                    contents.append(shard.content)
        if len({isinstance(some, list) for some in ids}) > 1:
            raise StoreMismatchError(f"ids must be all integers or all strings, got both in {self.store.path}")
        if self.chosen is None and _all_differ(ids):
            return pieces
        seen: dict[int | str, int] = {}
        kept = []
        for piece, some, content in zip(pieces, ids, contents, strict=True):
            named = dict(zip(some if isinstance(some, list) else some.tolist(), content.tolist(), strict=True))
            other = next((i for i in named if seen.get(i, named[i]) != named[i]), None)
            if other is not None:
                raise StoreMismatchError(
                    f"{piece.store.path} holds an image of id {other!r} that differs from the one of this id before "
                    f"it; ids must name one image each: delete the rows-*-{piece.name}* that is wrong"
                )
            wanted = [i not in seen and (self.chosen is None or i in self.chosen) for i in named]
            rows = torch.tensor(wanted, dtype=torch.bool, device="cpu").nonzero().flatten()
            seen.update((i, named[i]) for i, counts in zip(list(named), wanted, strict=True) if counts)
            if len(rows):
                kept.append(piece._replace(rows=None if len(rows) == len(named) else rows, num=len(rows)))
        return kept

    def _known(self, ids: Iterable[int | str]) -> set[int | str]:
        if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
            raise TypeError(f"ids must be a list of ids, got {ids!r:.60}")
        wanted, known = {check_id(i, "ids") for i in ids}, set(self.ids)
        unknown = [i for i in wanted if i not in known]
        if unknown:
            raise ValueError(f"ids must be of images that have features, got {unknown[:5]}")
        return wanted


def _all_differ(ids: list[Any]) -> bool:
    """Whether no id comes twice; integers come as arrays."""
    if not ids or isinstance(ids[0], list):
        return len({i for some in ids for i in some}) == sum(map(len, ids))
    whole = np.concatenate(ids)
    return bool((whole[1:] > whole[:-1]).all()) or len(np.unique(whole)) == len(whole)


def check_run(store: FeatureStore, now: Mapping[str, Any]) -> None:
    """Refuse fingerprints that are not those of a store.

    Args:
        store: The features.
        now: Some fingerprints, by name.

    Raises:
        StoreMismatchError: Names what differs.
    """
    current = replace(store.manifest, fingerprints={**store.manifest.fingerprints, **now})
    differences = [f"{name}: {old} in the store, {new} now" for name, old, new in store.manifest.differences(current)]
    if differences:
        raise StoreMismatchError(
            f"the model is not the one of the features in {store.path}: {'; '.join(differences[:5])}. "
            "Give the model, checkpoints, select and fit that they were made with, or featurize again into another "
            "folder"
        )
