"""Opening stored features, to score with them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from journey.features.features import Features
from journey.features.fits import CURVATURE_FILE, PRIOR_FILE, use_store_fits
from journey.gradients.selection import Selection
from journey.measure.draws import Draws
from journey.measure.featurizer import Featurizer
from journey.measure.measurements import Measurement
from journey.models.checkpoints import Checkpoint, as_checkpoints
from journey.models.load import as_denoiser
from journey.projectors.base import Projector
from journey.store.store import FeatureStore


def open_features(
    path: str | os.PathLike[str],
    model: Any,
    *,
    measurement: Measurement | None = None,
    draws: Draws | None = None,
    projector: Projector | None = None,
    checkpoints: Sequence[Checkpoint] | None = None,
    select: Selection | None = None,
    uncovered: Literal["error", "autograd"] = "error",
) -> Features:
    """Open the features that an earlier ``featurize`` stored, to score with them.

    Args:
        path: Folder of the store.
        model: The model they were measured with, as for ``featurize``.
        measurement: As given to ``featurize``; the library's own are read from the store.
        draws: Likewise.
        projector: Likewise.
        checkpoints: As given to ``featurize``.
        select: As given to ``featurize``.
        uncovered: As given to ``featurize``.

    Returns:
        The features.

    Raises:
        FileNotFoundError: If there is no store at ``path``.
        ValueError: If the store was made with a measurement, draws or projector of the caller's own that is not given.
        StoreMismatchError: If the model or an argument is not that of the features; names what differs.
    """
    store = FeatureStore.open(path)
    stored: Mapping[str, Any] = store.manifest.fingerprints
    featurizer = Featurizer(
        as_denoiser(model),
        measurement=measurement or Measurement.from_fingerprint(stored["measurement"]),
        projector=projector or Projector.from_fingerprint(stored["projector"]),
        select=select,
        uncovered=uncovered,
    )
    if not use_store_fits(featurizer, store.path):
        raise FileNotFoundError(
            f"{store.path} is without the {PRIOR_FILE} or {CURVATURE_FILE} that its features were measured by; run "
            "featurize again with the same arguments, it measures only what is missing"
        )
    weights = as_checkpoints(checkpoints)
    features = Features(store, featurizer, draws or Draws.from_fingerprint(stored["draws"]), weights)
    features.check_model()
    return features
