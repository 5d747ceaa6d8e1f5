"""A fit on disk: what was learned from some images before any is measured, and the Gram matrices of scores.

A folder in two stages, each with a fingerprint of its own::

    fit/
        fit.json              what was fitted to which model
        measure.safetensors   prior of the left-out loss, and one scale per parameter: every row depends on them
        gram-000.safetensors  Gram matrix of the first checkpoint: scores alone depend on it; may be made again
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from journey.curvature.gram import GramMatrix
from journey.errors import CorruptShardError, StoreMismatchError
from journey.files.fingerprint import fingerprint_json, fingerprint_tensors, json_differences
from journey.files.paths import GivenPath, Location, as_path, exists, is_path
from journey.files.publish import publish
from journey.files.tensors import check_fields, read_json, read_tensors, write_tensors
from journey.measure.featurizer import Featurizer
from journey.measure.left_out import PRIOR_OF_FIT, LeftOutLoss, Prior
from journey.projectors.scaled import Scaled

DESCRIPTION, MEASURE = "fit.json", "measure.safetensors"
_SCALE = "scale/"
_FORMAT = 1


@dataclass(frozen=True, eq=False)
class Fit:
    """What ``journey.fit`` learned, read from its folder.

    Attributes:
        path: The folder.
        model: Fingerprints of the model, the measurement and the projector that it is for.
        prior: Mean and variance of the images; None if the measurement needs none.
        scales: One number per parameter; None if the projector needs none.
    """

    path: Location
    model: Mapping[str, Any]
    prior: Prior | None
    scales: Mapping[str, float] | None
    _grams: dict[int, GramMatrix] = field(default_factory=dict, init=False, repr=False)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the stage that rows depend on; two fits of one fingerprint measure the same rows."""
        return fingerprint_json({"model": dict(self.model), "tensors": fingerprint_tensors(self._tensors())})

    def prepare(self, featurizer: Featurizer) -> None:
        """Give a measurement that is without a prior, and a projector without scales, those of the fit."""
        measurement, projector = featurizer.measurement, featurizer.projector
        if isinstance(measurement, LeftOutLoss) and measurement.prior is None:
            featurizer.measurement = replace(measurement, prior=self.prior)
        if isinstance(projector, Scaled) and projector.scales is None:
            featurizer.projector = replace(projector, scales=self.scales, of_fit=True)

    def gram(self, checkpoint: int = 0) -> GramMatrix:
        """Return the Gram matrix of a checkpoint, by position.

        Raises:
            FileNotFoundError: If there is none: it was not made yet.
            CorruptShardError: If the file was damaged.
        """
        if checkpoint not in self._grams:
            path = gram_path(self.path, checkpoint)
            if not exists(path):
                raise FileNotFoundError(
                    f"{path} is missing: this fit has no Gram matrix to score with; run journey.fit again with the "
                    "same arguments, it makes only what is missing; of features so long that it would take more than "
                    "256 MiB there is none"
                )
            self._grams[checkpoint] = _sound(path, partial(GramMatrix.load, fit=self.fingerprint))
        return self._grams[checkpoint]

    def check(self, model: Mapping[str, Any], name: str = "fit") -> None:
        """Refuse a fit of another model, measurement or projector.

        Args:
            model: Fingerprints, as of ``model``.
            name: What the fit is called in the error.

        Raises:
            StoreMismatchError: Names what differs.
        """
        differences = json_differences(dict(self.model), dict(model))
        if differences:
            shown = "; ".join(f"{key}: {ours} in the fit, {theirs} now" for key, ours, theirs in differences[:5])
            raise StoreMismatchError(
                f"{name} in {self.path} is of another run: {shown}. Give the model, checkpoints, select, measurement "
                "and projector that it was made with, or fit again into another folder"
            )

    def save(self) -> None:
        """Write the first stage; ``fit.json``, by which a fit is known, comes last."""
        write_tensors(self.path / MEASURE, "measure", self._tensors())
        text = json.dumps({"format": _FORMAT, "model": dict(self.model)}, sort_keys=True, indent=2, allow_nan=False)
        publish(self.path / DESCRIPTION, [text.encode() + b"\n"])

    @staticmethod
    def load(path: GivenPath) -> Fit:
        """Read the folder that ``journey.fit`` wrote.

        Args:
            path: The folder.

        Returns:
            The fit; Gram matrices are read when they are needed.

        Raises:
            FileNotFoundError: If there is no fit.
            CorruptShardError: If a file was damaged.
        """
        folder = as_path(path)
        if not exists(folder / DESCRIPTION):
            raise FileNotFoundError(f"{folder} is no fit: it has no {DESCRIPTION}; give the folder that fit wrote")
        told = _sound(
            folder / DESCRIPTION,
            lambda file: check_fields(read_json(file), {"format": int, "model": dict}, str(file)),
        )
        if told["format"] != _FORMAT:
            raise CorruptShardError(
                f"{folder / DESCRIPTION} has format {told['format']}, this version reads {_FORMAT}; fit again into "
                "another folder"
            )
        tensors = _sound(folder / MEASURE, lambda file: read_tensors(file, "measure"))
        scales = {name.removeprefix(_SCALE): t.item() for name, t in tensors.items() if name.startswith(_SCALE)}
        prior = Prior(tensors["mean"], tensors["variance"], PRIOR_OF_FIT) if "mean" in tensors else None
        return Fit(folder, told["model"], prior, scales or None)

    def _tensors(self) -> dict[str, Tensor]:
        prior = {} if self.prior is None else {"mean": self.prior.mean, "variance": self.prior.variance}
        scales = {
            _SCALE + name: torch.tensor([scale], dtype=torch.float32, device="cpu")
            for name, scale in (self.scales or {}).items()
        }
        return {**prior, **scales}


def gram_path(folder: Location, checkpoint: int) -> Location:
    """Return the file of a checkpoint's Gram matrix."""
    return folder / f"gram-{checkpoint:03d}.safetensors"


def _sound(path: Location, read: Any) -> Any:
    try:
        return read(path)
    except (ValueError, KeyError) as error:
        raise CorruptShardError(
            f"{path} is damaged: {error}. Delete this file and run journey.fit again with the same arguments"
        ) from error


def use_fit(fit: Fit | GivenPath, featurizer: Featurizer, model: Mapping[str, Any]) -> Fit:
    """Give a featurizer the prior and scales of a fit.

    Args:
        fit: The fit, or its folder.
        featurizer: Measures.
        model: What ``fingerprint_model`` returned.

    Returns:
        The fit.

    Raises:
        TypeError: If it is neither.
        FileNotFoundError: If there is none.
        StoreMismatchError: If it is of another model, measurement or projector; names what differs.
        CorruptShardError: If a file was damaged.
    """
    if not isinstance(fit, Fit):
        if not is_path(fit):
            raise TypeError(f"fit must be what journey.fit returned, or its folder, got {type(fit).__name__}")
        fit = Fit.load(fit)
    fit.check(model)
    fit.prepare(featurizer)
    return fit
