"""What the features of an image depend on, as fingerprints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from journey.files.fingerprint import fingerprint_json, fingerprint_tensors
from journey.measure.featurizer import Featurizer
from journey.models.checkpoints import Checkpoint, loaded


def check_choices(**choices: Any) -> None:
    """Refuse what cannot be a choice of how to measure: a class instead of one of its objects, a name, a number.

    Args:
        **choices: ``measurement``, ``draws`` or ``projector``.

    Raises:
        TypeError: If one has no fingerprint to tell it from others.
    """
    examples = {"measurement": "SquaredNorm()", "draws": "StratifiedDraws()", "projector": "CountSketch(4096)"}
    for name, given in choices.items():
        if isinstance(given, type) or not hasattr(given, "fingerprint"):
            raise TypeError(f"{name} must be an object such as journey.{examples[name]}, got {given!r}")


def fingerprint_model(featurizer: Featurizer, checkpoints: Sequence[Checkpoint | None]) -> dict[str, Any]:
    """Return what rows depend on besides the image and its draws, as JSON values."""
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
        **({"encoding": encoding} if (encoding := denoiser.fingerprint()) else {}),
    }
