"""What the features of an image depend on, as fingerprints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from journey.data.items import Dataset, check_range, image_of
from journey.files.fingerprint import TensorFingerprint, fingerprint_json, fingerprint_tensors
from journey.measure.featurizer import Featurizer
from journey.models.checkpoints import Checkpoint, loaded
from journey.models.denoiser import Denoiser

# Images whose pixels enter the dataset's fingerprint, evenly spread.
_FINGERPRINTED_IMAGES = 64


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


def fingerprint_dataset(dataset: Dataset, denoiser: Denoiser) -> dict[str, Any]:
    """Hash some items: tells datasets apart without reading them twice, but not one exchanged image."""
    count = min(len(dataset), _FINGERPRINTED_IMAGES)
    pixels, told, extremes = TensorFingerprint(), {}, []
    for i in sorted({j * (len(dataset) - 1) // max(1, count - 1) for j in range(count)}):
        item, name = dataset[i], f"dataset[{i}]"
        image = image_of(item, name)
        denoiser.check_image(image, name)
        pixels.update(str(i), image)
        extremes.append((image.min(), image.max()))
        if (description := denoiser.describe(item, name)) is not None:
            told[str(i)] = description
    check_range(extremes)
    conditions = {"sampled_conditions": fingerprint_json(told)} if told else {}
    return {"num_samples": len(dataset), "sampled_pixels": pixels.hexdigest(), **conditions}
