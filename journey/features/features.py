"""Features of a dataset on disk, with what is needed to measure queries in the same way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from journey.errors import StoreMismatchError
from journey.features.fitted import Fit
from journey.features.identity import fingerprint_model
from journey.measure.draws import Draws
from journey.measure.featurizer import Featurizer
from journey.models.checkpoints import Checkpoint
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
    """

    store: FeatureStore
    featurizer: Featurizer
    draws: Draws
    checkpoints: tuple[Checkpoint | None, ...]
    fit: Fit

    @property
    def num_samples(self) -> int:
        """Number of training images."""
        return self.store.manifest.num_samples

    def matrix(self, checkpoint: int = 0) -> Tensor:
        """Return the whole-range features of all training images under one checkpoint.

        ``matrix[i] = sum_b w_b features[i, b]`` with ``w_b`` the bin's share of the timesteps.

        Args:
            checkpoint: Which checkpoint, by position.

        Returns:
            float32. [num_samples, proj_dim]
        """
        features = self.store.features(self.store.manifest.checkpoints[checkpoint])
        weights = self.draws.weights(self.featurizer.denoiser.num_train_timesteps).float()
        return torch.einsum("nbk,b->nk", features, weights)

    def check_model(self) -> None:
        """Refuse a model that is not, or no longer, the one the features were measured with.

        Raises:
            StoreMismatchError: Names what differs.
        """
        now = {**fingerprint_model(self.featurizer, self.checkpoints), "draws": self.draws.fingerprint()}
        check_run(self.store, now)


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
