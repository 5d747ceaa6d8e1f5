"""What a store fits to some of its own images and keeps beside their features: their prior, and the curvature."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

from journey.curvature.kfac import ROWS_PER_BATCH, fit_factors
from journey.curvature.pseudo_gradients import PseudoGradients
from journey.curvature.whitened import FITTED_TO_STORE, Curvature, Whitened
from journey.errors import CorruptShardError, NonFiniteGradientError
from journey.features.features import Features
from journey.measure.batch import measure_batch
from journey.measure.draws import StratifiedDraws
from journey.measure.featurizer import Featurizer
from journey.measure.left_out import PRIOR_OF_STORE, LeftOutLoss, Prior
from journey.models.checkpoints import loaded
from journey.models.condition import Encoded
from journey.models.encoding import EncodedDataset, choose_captions

# What a store fits to some of its own images.
PRIOR_FILE, CURVATURE_FILE = "prior.safetensors", "curvature.safetensors"


_Fit = TypeVar("_Fit")


def fit_to_store(features: Features, encoded: EncodedDataset, *, progress: bool) -> None:
    """Fit the prior and the curvature that measurement and projector are without, keep them, and put them in place.

    To which images depends on their number alone. Several processes may do this at once: the first to finish decides
    for all.

    Args:
        features: The store, and the featurizer, whose measurement or projector is not ready for use.
        encoded: The images as the network takes them.
        progress: Show a progress bar.

    Raises:
        NonFiniteGradientError: If a gradient is NaN or infinite; names the image, a timestep and a layer, or
            else the parameter.
    """
    ids = fitted_ids(features.num_samples)
    samples = _read_samples(features, encoded, ids)
    measurement = features.featurizer.measurement
    if isinstance(measurement, LeftOutLoss) and measurement.prior is None:
        with contextlib.suppress(FileExistsError):
            Prior.of(samples.x0).save(features.store.path / PRIOR_FILE, exclusive=True)
    if not use_store_fits(features.featurizer, features.store.path):
        curvature = _fit_curvature(features, samples, ids, progress)
        with contextlib.suppress(FileExistsError):
            curvature.save(features.store.path / CURVATURE_FILE, exclusive=True)
        use_store_fits(features.featurizer, features.store.path)


def _fit_curvature(features: Features, samples: Encoded, ids: list[int], progress: bool) -> Curvature:
    """Fit the curvature of the last checkpoint."""
    featurizer = features.featurizer
    draws = StratifiedDraws(FITTED_TO_STORE["num_draws"], antithetic=False)
    told = samples.conditions(choose_captions(0, ids, samples.counts, 1))
    gradients = PseudoGradients(featurizer.denoiser, samples.x0, draws, told, exact=False, seed=0)
    with loaded(featurizer.denoiser.network, features.checkpoints[-1]):
        try:
            return fit_factors(gradients, featurizer.engine, featurizer.budget, ROWS_PER_BATCH, progress=progress)
        except NonFiniteGradientError:
            _name_fault(features, samples, ids)
            raise


def _name_fault(features: Features, samples: Encoded, ids: list[int]) -> None:
    """Raise with image, timestep and layer, where the images' own gradients are not finite either, as weights are."""
    spec = features.featurizer.projector
    assert isinstance(spec, Whitened)
    plain = features.featurizer.change(projector=spec.inner)
    for at, i in enumerate(ids):
        measure_batch(plain, features.draws, samples.select(at, at + 1), [i])


def fitted_ids(num_samples: int) -> list[int]:
    """Return the positions of the images that are fitted to: all, or runs of neighbours that are evenly spread."""
    count, run = FITTED_TO_STORE["num_images"], FITTED_TO_STORE["run"]
    if num_samples <= count:
        return list(range(num_samples))
    runs = count // run
    return [j * (num_samples - run) // (runs - 1) + i for j in range(runs) for i in range(run)]


def _read_samples(features: Features, encoded: EncodedDataset, ids: list[int]) -> Encoded:
    """Some images as the network takes them, whichever shards they are in."""
    shard_size, parts = features.store.manifest.shard_size, []
    for index, some in groupby(ids, key=lambda i: i // shard_size):
        read = encoded.reader(index, *features.store.shard_range(index))
        parts += [read([i]) for i in some]
    return Encoded.cat(parts)


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
