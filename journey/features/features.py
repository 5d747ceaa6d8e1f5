"""Features of a dataset on disk, with what is needed to measure queries in the same way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from journey.errors import StoreMismatchError
from journey.features.fitted import Fit
from journey.features.identity import fingerprint_model
from journey.measure.draws import Draws
from journey.measure.featurizer import Featurizer
from journey.models.checkpoints import Checkpoint
from journey.store.part import ShardName
from journey.store.shard import Shard
from journey.store.store import FeatureStore


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
        return len(self.ids)

    @property
    def ids(self) -> list[int | str]:
        """Their ids, in the order of rows."""
        return self._found[0]

    def select(self, ids: Iterable[int | str]) -> Features:
        """Return the features of some images alone.

        Args:
            ids: Which.

        Returns:
            Features of the same store, whose other images do not count.

        Raises:
            ValueError: If there is no image, or one has no features.
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
        for store, name, rows in self._found[1]:
            shard = store.read_shard(store.manifest.checkpoints[checkpoint], name, verify)
            yield shard if rows is None else shard.select(rows)

    def matrix(self, checkpoint: int = 0) -> Tensor:
        """Return the whole-range features of all training images under one checkpoint.

        ``matrix[i] = sum_b w_b features[i, b]`` with ``w_b`` the bin's share of the timesteps.

        Args:
            checkpoint: Which checkpoint, by position.

        Returns:
            float32. [num_samples, proj_dim]
        """
        features = torch.cat([shard.features for shard in self.shards(checkpoint)])
        weights = self.draws.weights(self.featurizer.denoiser.num_train_timesteps).float()
        return torch.einsum("nbk,b->nk", features, weights)

    def check_model(self) -> None:
        """Refuse a model that is not, or no longer, the one the features were measured with.

        Raises:
            StoreMismatchError: Names what differs.
        """
        now = {**fingerprint_model(self.featurizer, self.checkpoints), "draws": self.draws.fingerprint()}
        for store in (self.store, *self.joined):
            check_run(store, now)

    @cached_property
    def _found(self) -> tuple[list[int | str], list[tuple[FeatureStore, ShardName, Tensor | None]]]:
        """The ids, and the shards that hold them, with the rows that count; None is all of a shard.

        An image that two shards hold counts once: they were measured twice by processes that did not see each other.

        Raises:
            StoreMismatchError: If they hold two images of one id.
        """
        seen: dict[int | str, int] = {}
        pieces: list[tuple[FeatureStore, ShardName, Tensor | None]] = []
        for store in (self.store, *self.joined):
            store.require_complete()
            for name in store.shards():
                shard = store.read_shard(store.manifest.checkpoints[0], name, verify=False)
                ids = shard.ids
                content = dict(zip(ids, shard.content.tolist(), strict=True))
                other = next((i for i in ids if seen.get(i, content[i]) != content[i]), None)
                if other is not None:
                    raise StoreMismatchError(
                        f"{store.path} holds an image of id {other!r} that differs from the one of this id before it; "
                        "ids must name one image each"
                    )
                rows = [at for at, i in enumerate(ids) if i not in seen and (self.chosen is None or i in self.chosen)]
                seen.update((ids[at], content[ids[at]]) for at in rows)
                if rows:
                    whole = None if len(rows) == len(ids) else torch.tensor(rows, dtype=torch.int64, device="cpu")
                    pieces.append((store, name, whole))
        return list(seen), pieces

    def _known(self, ids: Iterable[int | str]) -> set[int | str]:
        wanted, known = set(ids), set(self.ids)
        unknown = [i for i in wanted if i not in known]
        if unknown:
            raise ValueError(f"ids must be of images that have features, got {unknown[:5]}")
        return wanted


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
