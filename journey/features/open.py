"""Opening stored features, to score with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from journey.features.begin import FIT_FOLDER
from journey.features.features import Features, check_run
from journey.features.fitted import DESCRIPTION, Fit, use_fit
from journey.features.identity import fingerprint_model
from journey.files.paths import GivenPath, exists, is_path
from journey.gradients.selection import Selection
from journey.measure.draws import Draws
from journey.measure.featurizer import Featurizer
from journey.measure.measurements import Measurement
from journey.models.checkpoints import Checkpoint, as_checkpoints
from journey.models.load import as_denoiser
from journey.projectors.base import Projector
from journey.store.store import FeatureStore


def open_features(
    path: GivenPath | Sequence[GivenPath],
    model: Any,
    *,
    fit: Fit | GivenPath | None = None,
    measurement: Measurement | None = None,
    draws: Draws | None = None,
    projector: Projector | None = None,
    checkpoints: Sequence[Checkpoint] | None = None,
    select: Selection | None = None,
    uncovered: Literal["error", "autograd"] = "error",
) -> Features:
    """Open the features that an earlier ``featurize`` stored, to score with them.

    Args:
        path: Folder of the store, or its address on an object store; or several of one run, whose images are put
            together, as when parts of a dataset were measured with one fit in different places.
        model: The model they were measured with, as for ``featurize``.
        fit: As given to ``featurize``; by default that of the store.
        measurement: Likewise; the library's own are read from the store.
        draws: Likewise.
        projector: Likewise.
        checkpoints: As given to ``featurize``.
        select: As given to ``featurize``.
        uncovered: As given to ``featurize``.

    Returns:
        The features.

    Raises:
        TypeError: If ``path`` is neither a path nor a list of paths.
        FileNotFoundError: If there is no store at ``path``, or its fit lies elsewhere and is not given.
        ValueError: If no folder is given, or the store was made with a measurement, draws or projector of the caller's
            own that is not given.
        StoreMismatchError: If the model or an argument is not that of the features; names what differs.
    """
    if not is_path(path) and not isinstance(path, Sequence):
        raise TypeError(f"path must be a folder, an address on an object store, or a list of these, got {path!r:.60}")
    paths = [path] if is_path(path) else list(path)
    if not paths:
        raise ValueError("path must name at least one folder, got none")
    store, *joined = map(FeatureStore.open, paths)
    stored: Mapping[str, Any] = store.manifest.fingerprints
    weights = as_checkpoints(checkpoints)
    featurizer = Featurizer(
        as_denoiser(model),
        measurement=measurement or Measurement.from_fingerprint(stored["measurement"]),
        projector=projector or Projector.from_fingerprint(stored["projector"]),
        select=select,
        uncovered=uncovered,
    )
    inside = store.path / FIT_FOLDER
    if fit is None and not exists(inside / DESCRIPTION):
        raise FileNotFoundError(f"fit must be given: {store.path} was made with one that lies elsewhere")
    told = fingerprint_model(featurizer, weights)
    draws = draws or Draws.from_fingerprint(stored["draws"])
    for each in (store, *joined):
        check_run(each, {**told, "draws": draws.fingerprint()})
    fitted = use_fit(inside if fit is None else fit, featurizer, told)
    for each in (store, *joined):
        check_run(each, {"fit": fitted.fingerprint})
    features = Features(store, featurizer, draws, weights, fitted, tuple(joined))
    if joined:
        features.ids  # noqa: B018 of stores that do not go together, here rather than later
    return features
