"""Features of a dataset on disk, with what is needed to measure queries in the same way."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from journey.curvature.whitened import FITTED_TO_STORE, Curvature, Whitened
from journey.errors import CorruptShardError, StoreMismatchError
from journey.files.fingerprint import fingerprint_json, fingerprint_tensors
from journey.gradients.selection import Selection
from journey.measure.draws import Draws
from journey.measure.featurizer import Featurizer
from journey.measure.left_out import PRIOR_OF_STORE, LeftOutLoss, Prior
from journey.measure.measurements import Measurement
from journey.models.checkpoints import Checkpoint, as_checkpoints, loaded
from journey.models.load import as_denoiser
from journey.projectors.base import Projector
from journey.solve import Spectrum
from journey.store.store import FeatureStore

# What a store fits to some of its own images, see ``journey.store_fits``.
PRIOR_FILE, CURVATURE_FILE = "prior.safetensors", "curvature.safetensors"
_Fit = TypeVar("_Fit")


@dataclass(frozen=True)
class Features:
    """Features of a dataset on disk, and what is needed to measure queries in the same way.

    Attributes:
        store: The features.
        featurizer: The measurement, on the network whose weights ``checkpoints`` replace in turn.
        draws: Which timesteps and noise the training images were measured with.
        checkpoints: The weights, as given; None stands for the network's own.
        solved: What ``journey.scoring`` keeps of earlier scores: decompositions by checkpoint and damping.
    """

    store: FeatureStore
    featurizer: Featurizer
    draws: Draws
    checkpoints: tuple[Checkpoint | None, ...]
    solved: dict[tuple[str, float | str], tuple[Spectrum, float]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

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
        now = fingerprints(self.featurizer, self.draws, self.checkpoints)
        current = replace(self.store.manifest, fingerprints={**self.store.manifest.fingerprints, **now})
        differences = [
            f"{name}: {old} in the store, {new} now" for name, old, new in self.store.manifest.differences(current)
        ]
        if differences:
            raise StoreMismatchError(
                f"the model is not the one of the features in {self.store.path}: {'; '.join(differences[:5])}. "
                "Give the model, checkpoints and select that they were made with, or featurize again into another "
                "folder"
            )


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


def check_choices(measurement: Any, draws: Any, projector: Any) -> None:
    """Refuse what cannot be a choice of how to measure: a class instead of one of its objects, a name, a number.

    Raises:
        TypeError: If one has no fingerprint to tell it from others.
    """
    examples = {"measurement": "SquaredNorm()", "draws": "StratifiedDraws()", "projector": "CountSketch(4096)"}
    for (name, example), given in zip(examples.items(), (measurement, draws, projector), strict=True):
        if isinstance(given, type) or not hasattr(given, "fingerprint"):
            raise TypeError(f"{name} must be an object such as journey.{example}, got {given!r}")


def use_store_fits(featurizer: Featurizer, folder: Path) -> bool:
    """Give a measurement that is without a prior, and a projector that is without a curvature, those of a store.

    Args:
        featurizer: Has measurement and projector.
        folder: Of the store.

    Returns:
        Whether both are ready for use: they have now, or need not have, what is fitted.

    Raises:
        CorruptShardError: If a file is damaged.
    """
    measurement, projector, ready = featurizer.measurement, featurizer.projector, True
    if isinstance(measurement, LeftOutLoss) and measurement.prior is None:
        prior = _read_fit(folder / PRIOR_FILE, Prior.load, PRIOR_OF_STORE)
        ready = prior is not None
        featurizer.measurement = replace(measurement, prior=prior)
    if isinstance(projector, Whitened) and projector.curvature is None:
        curvature = _read_fit(folder / CURVATURE_FILE, Curvature.load, FITTED_TO_STORE)
        ready = ready and curvature is not None
        featurizer.projector = replace(projector, curvature=curvature)
    return ready


def _read_fit(path: Path, load: Callable[[Path, dict[str, Any]], _Fit], origin: dict[str, Any]) -> _Fit | None:
    if not path.exists():
        return None
    try:
        return load(path, origin)
    except ValueError as error:
        raise CorruptShardError(
            f"{path} is damaged: {error}. Delete this file and run featurize again with the same arguments; it fits "
            "it anew and keeps the features"
        ) from error


def fingerprints(featurizer: Featurizer, draws: Draws, checkpoints: Sequence[Checkpoint | None]) -> dict[str, Any]:
    """Return what the features of an image depend on besides the image, as JSON values."""
    denoiser = featurizer.denoiser
    hashes = []
    for checkpoint in checkpoints:
        with loaded(denoiser.network, checkpoint):
            hashes.append(fingerprint_tensors(denoiser.network.state_dict()))
    names = [slot.name for slot in featurizer.engine.slots.values()]
    return {
        "weights": hashes,
        "architecture": type(denoiser.network).__name__,
        "schedule": denoiser.schedule.fingerprint(),
        "prediction_type": denoiser.prediction_type,
        "parameters": {"count": featurizer.engine.num_parameters, "names": fingerprint_json(names)},
        "measurement": featurizer.measurement.fingerprint(),
        "projector": featurizer.projector.fingerprint(),
        "draws": draws.fingerprint(),
        **({"encoding": encoding} if (encoding := denoiser.fingerprint()) else {}),
    }
