"""What is learned from some images before any is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from journey.curvature.gram import LARGEST_GRAM
from journey.curvature.scales import fit_scales
from journey.data.ids import IdOf
from journey.data.items import Dataset
from journey.data.sources import open_dataset
from journey.data.stream import Stream
from journey.errors import NonFiniteGradientError, check_count, naming_folder
from journey.features.contents import OnError, Readable
from journey.features.fill_stream import first_items
from journey.features.fitted import DESCRIPTION, Fit, gram_path
from journey.features.gram_rows import OWN_DRAWS, GramPlan, make_gram, pseudo_gradients
from journey.features.identity import check_choices, fingerprint_model
from journey.files.lock import locked
from journey.files.paths import GivenPath, Location, as_path, exists, make_folder
from journey.files.publish import remove_leftovers
from journey.gradients.selection import Selection
from journey.measure.batch import measure_batch
from journey.measure.featurizer import Featurizer
from journey.measure.left_out import LeftOutLoss, Prior
from journey.measure.measurements import Measurement, TrainingLoss
from journey.models.checkpoints import Checkpoint, as_checkpoints, loaded
from journey.models.condition import Encoded
from journey.models.denoiser import Denoiser
from journey.models.encoding import encode_some
from journey.models.load import as_denoiser
from journey.projectors.base import Projector
from journey.projectors.random import CountSketch
from journey.projectors.scaled import Scaled
from journey.store.manifest import stored_manifest

IMAGES = 512  # that are looked at, evenly spread
SCALE_ROWS, SCALE_BATCH = 512, 32  # pseudo-gradients that the scales are measured from, and how many at once
# Pseudo-gradients by default, at most: more do not predict retraining better (docs/results/choices.md).
_MOST, _MOST_OF_IMAGE = 4096, 128
_OWN_SHARE = 0.5


def fit(
    model: Any,
    dataset: Any,
    out: GivenPath,
    *,
    measurement: Measurement | None = None,
    projector: Projector | None = None,
    checkpoints: Sequence[Checkpoint] | None = None,
    select: Selection | None = None,
    uncovered: Literal["error", "autograd"] = "error",
    pseudo_gradients: int | None = None,
    own_share: float | None = None,
    on_error: OnError = "error",
    progress: bool = True,
) -> Fit:
    """Learn from some images of a dataset what measuring and scoring need; once per model.

    In two stages. The first one is needed before any image is measured: the mean and variance of the images (``Prior``,
    for ``LeftOutLoss``), and one scale per parameter from 512 pseudo-gradients (``Scaled``). The second one is the Gram
    matrix of scores for each checkpoint, of own gradients and pseudo-gradients (``journey.curvature.gram``): rows do
    not depend on it, and a call with other ``pseudo_gradients`` or ``own_share`` replaces it alone.

    A fit that was stopped goes on where it was; one that is finished is returned, whatever images are given. Several
    processes may ask for the same one: one of them makes it, the others wait. Several stores may share a fit.

    Args:
        model: As for ``journey.featurize``.
        dataset: Likewise; up to 512 images are looked at, evenly spread, of a stream the first.
        out: Folder of the fit, or its address on an object store; gets little more than proj_dim^2 * 4 bytes for each
            checkpoint.
        measurement: What is differentiated; ``LeftOutLoss()`` by default.
        projector: Maps gradients to features; ``Scaled(CountSketch(4096))`` by default. Longer features get no Gram
            matrix where it would take more than 256 MiB, and cannot be scored with.
        checkpoints: As for ``journey.featurize``.
        select: Likewise.
        uncovered: Likewise.
        pseudo_gradients: How many, rounded up to as many of each image; by default those of the Gram matrix that is
            there, else one for each direction that features can have, at most 4,096 and 128 of each image.
        own_share: Weight of the images' own gradients in the Gram matrix, 0 to 1, the rest is that of pseudo-gradients;
            by default that of the Gram matrix that is there, else a half.
        on_error: As for ``journey.featurize``: ``"skip"`` leaves out images that cannot be read.
        progress: Show progress bars.

    Returns:
        The fit.

    Raises:
        ValueError: If the dataset is empty, an image does not fit the model, or an argument is out of range.
        TypeError: If the model or an image has an unknown form.
        CoverageError: If a parameter has no gradient rule; names it.
        NonFiniteGradientError: If a gradient is NaN or infinite; names the image, a timestep and a layer.
        StoreMismatchError: If ``out`` holds the fit of another model, measurement or projector; names what differs.
        FileExistsError: If ``out`` holds a feature store.
        OSError: If ``out`` cannot be written to.

    Example:
        >>> fit = journey.fit((unet, scheduler), dataset, "fit/")
        >>> features = journey.featurize((unet, scheduler), dataset, "features/", fit=fit)
    """
    if pseudo_gradients is not None:
        check_count("pseudo_gradients", pseudo_gradients)
    if own_share is not None and not 0 <= own_share <= 1:
        raise ValueError(f"own_share must be between 0 and 1, got {own_share}")
    denoiser = as_denoiser(model)
    source = as_dataset(dataset, denoiser)
    if isinstance(source, Stream):
        sample: Dataset = first_items(source, IMAGES, on_error)
    else:
        sample = some_of(source, denoiser, on_error)
    featurizer = as_featurizer(denoiser, measurement, projector, select, uncovered)
    weights = as_checkpoints(checkpoints)
    told = fingerprint_model(featurizer, weights)
    asked = (pseudo_gradients, own_share)
    return fit_featurizer(featurizer, sample, as_path(out), weights, told, asked, progress=progress)


def as_dataset(dataset: Any, denoiser: Denoiser, id_of: IdOf | None = None) -> Dataset | Stream:
    """Return a map-style dataset or a stream, whose pictures in files have the size that the model takes."""
    size, channels = denoiser.sample_size, denoiser.in_channels or 3
    return open_dataset(dataset, size=size, channels=channels, id_of=id_of)


def some_of(dataset: Dataset, denoiser: Denoiser, on_error: OnError) -> Dataset:
    """Return what is learned from: the dataset, or those that can be read of the images that would be looked at."""
    if on_error == "error":
        return dataset
    positions = sampled_ids(len(dataset))
    readable = Readable(dataset, positions, denoiser)
    return dataset if len(readable) == len(positions) else readable


def as_featurizer(
    denoiser: Denoiser,
    measurement: Measurement | None,
    projector: Projector | None,
    select: Selection | None,
    uncovered: Literal["error", "autograd"],
) -> Featurizer:
    """Return what measures, with the defaults of ``fit`` and ``featurize``."""
    measurement = LeftOutLoss() if measurement is None else measurement
    projector = Scaled(CountSketch()) if projector is None else projector
    check_choices(measurement=measurement, projector=projector)
    return Featurizer(denoiser, measurement=measurement, projector=projector, select=select, uncovered=uncovered)


def fit_featurizer(
    featurizer: Featurizer,
    dataset: Dataset,
    folder: Location,
    checkpoints: Sequence[Checkpoint | None],
    model: dict[str, Any],
    asked: tuple[int | None, float | None] = (None, None),
    *,
    progress: bool,
) -> Fit:
    """Make what is missing of a fit, and give the featurizer its prior and scales; see ``fit``.

    Args:
        featurizer: Measures.
        dataset: The images.
        folder: Of the fit.
        checkpoints: Weights that have a Gram matrix each; scales are measured under the last.
        model: What ``fingerprint_model`` returned.
        asked: ``pseudo_gradients`` and ``own_share``, as for ``fit``.
        progress: Likewise.

    Returns:
        The fit.

    Raises:
        FileExistsError: If the folder holds a feature store.
    """
    if stored_manifest(folder) is not None:
        raise FileExistsError(f"out must be a folder for a fit, got {folder}, which holds a feature store")
    with naming_folder(folder):
        make_folder(folder)
    ids, samples = sampled_ids(len(dataset)), None
    plan = plan_gram(featurizer, len(ids), asked)
    numbers = range(len(checkpoints) if plan else 0)
    if exists(folder / DESCRIPTION):
        found = Fit.load(folder)
        found.check(model)
        if all(_stands(found, number, len(ids), asked) for number in numbers):
            found.prepare(featurizer)  # of a fit that is read alone
            return found
    with locked(folder):
        remove_leftovers(folder)
        if not exists(folder / DESCRIPTION):
            samples = encode_some(featurizer.denoiser, dataset, ids)
            with loaded(featurizer.denoiser.network, checkpoints[-1]):
                _measure_stage(featurizer, samples, ids, folder, model, progress).save()
        found = Fit.load(folder)
        found.check(model)
        found.prepare(featurizer)
        for number in numbers:
            if _stands(found, number, len(ids), asked):
                continue
            samples = encode_some(featurizer.denoiser, dataset, ids) if samples is None else samples
            assert plan is not None
            with loaded(featurizer.denoiser.network, checkpoints[number]):
                gram = make_gram(featurizer, samples, ids, replace(plan, seed=number), folder, progress=progress)
            gram.save(gram_path(folder, number), fit=found.fingerprint)
    return Fit.load(folder)


def plan_gram(
    featurizer: Featurizer, num_images: int, asked: tuple[int | None, float | None] = (None, None)
) -> GramPlan | None:
    """Return what a Gram matrix is made of; None where features are so long that there is none."""
    most = min(featurizer.features_dim, featurizer.engine.num_parameters, _MOST, _MOST_OF_IMAGE * num_images)
    count, share = asked[0] or most, _OWN_SHARE if asked[1] is None else float(asked[1])
    rows = min(count + num_images * (1 + OWN_DRAWS.bins), featurizer.features_dim)
    if rows * featurizer.features_dim > LARGEST_GRAM:
        return None
    return GramPlan(num_images, count, share, seed=0)


def sampled_ids(num_samples: int) -> list[int]:
    """Return the positions of the images that are looked at: all, or 512 evenly spread."""
    count = min(IMAGES, num_samples)
    return [i * num_samples // count for i in range(count)]


def _stands(found: Fit, number: int, num_images: int, asked: tuple[int | None, float | None]) -> bool:
    """Whether there is a Gram matrix of a checkpoint, made as it is asked for."""
    if not exists(gram_path(found.path, number)):
        return False
    count, share = asked
    (_, own_share, _), (pseudo, _, _) = found.gram(number).parts.tolist()
    same = count is None or -(-count // num_images) * num_images == pseudo
    return same and (share is None or share == own_share)


def _measure_stage(
    featurizer: Featurizer, samples: Encoded, ids: list[int], folder: Location, model: dict[str, Any], progress: bool
) -> Fit:
    """What rows depend on: the prior, and the scales under the network's current weights."""
    prior = Prior.of(samples.x0) if needs_prior(featurizer) else None
    scales = measure_scales(featurizer, samples, ids, SCALE_ROWS, progress) if needs_scales(featurizer) else None
    return Fit(folder, model, prior, scales)


def needs_prior(featurizer: Featurizer) -> bool:
    """Whether the measurement lacks the mean and variance of the images."""
    return isinstance(featurizer.measurement, LeftOutLoss) and featurizer.measurement.prior is None


def needs_scales(featurizer: Featurizer) -> bool:
    """Whether the projector lacks the scales of the parameters."""
    return isinstance(featurizer.projector, Scaled) and featurizer.projector.scales is None


def measure_scales(
    featurizer: Featurizer, samples: Encoded, ids: list[int], count: int, progress: bool
) -> dict[str, float]:
    """Return one scale per parameter from so many pseudo-gradients, rounded up to as many of each image.

    Raises:
        NonFiniteGradientError: If a gradient is NaN or infinite; names the image, a timestep and a layer, where the
            images' own gradients are not finite either, as weights are.
    """
    gradients = pseudo_gradients(featurizer, samples, ids, GramPlan(0, count, 0.0, seed=0))
    try:
        return fit_scales(gradients, featurizer.engine, featurizer.budget, SCALE_BATCH, progress=progress)
    except NonFiniteGradientError:
        assert isinstance(featurizer.projector, Scaled)
        plain = featurizer.change(measurement=TrainingLoss(), projector=featurizer.projector.inner)
        for at, i in enumerate(ids):
            measure_batch(plain, OWN_DRAWS, samples.select(at, at + 1), [i])
        raise
