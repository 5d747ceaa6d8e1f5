"""The curvature that a store fits to some of its own images and keeps beside their features."""

from __future__ import annotations

import contextlib
from itertools import groupby

from journey.checkpoints import loaded
from journey.condition import Encoded
from journey.curvature import FITTED_TO_STORE
from journey.draws import StratifiedDraws
from journey.encoding import EncodedDataset, choose_captions
from journey.features import CURVATURE_FILE, Features, use_store_curvature
from journey.kfac import fit_factors
from journey.pseudo_gradients import PseudoGradients


def fit_store_curvature(features: Features, encoded: EncodedDataset, *, progress: bool) -> None:
    """Fit the curvature of the last checkpoint to a few hundred images, keep it, and give it to the projector.

    Which images depends on their number alone. Several processes may do this at once: the first to finish decides for
    all.

    Args:
        features: The store and the featurizer, whose projector is without a curvature.
        encoded: The images as the network takes them.
        progress: Show a progress bar.

    Raises:
        NonFiniteGradientError: If a gradient is NaN or infinite; names the images whose own is, if there are any.
    """
    featurizer, folder = features.featurizer, features.store.path
    ids = _chosen(features.num_samples)
    samples = _read(features, encoded, ids)
    draws = StratifiedDraws(FITTED_TO_STORE["num_draws"], antithetic=False)
    told = samples.conditions(choose_captions(0, ids, samples.counts, 1))
    gradients = PseudoGradients(featurizer.denoiser, samples.x0, draws, told, exact=False, seed=0)
    with loaded(featurizer.denoiser.network, features.checkpoints[-1]):
        curvature = fit_factors(gradients, featurizer.engine, progress=progress)
    with contextlib.suppress(FileExistsError):
        curvature.save(folder / CURVATURE_FILE, exclusive=True)
    use_store_curvature(featurizer, folder)


def _chosen(num_samples: int) -> list[int]:
    """Positions in the dataset: all of them, or runs of neighbours that are evenly spread."""
    count, run = FITTED_TO_STORE["num_images"], FITTED_TO_STORE["run"]
    if num_samples <= count:
        return list(range(num_samples))
    runs = count // run
    return [j * (num_samples - run) // (runs - 1) + i for j in range(runs) for i in range(run)]


def _read(features: Features, encoded: EncodedDataset, ids: list[int]) -> Encoded:
    shard_size, parts = features.store.manifest.shard_size, []
    for index, some in groupby(ids, key=lambda i: i // shard_size):
        read = encoded.reader(index, *features.store.shard_range(index))
        parts += [read([i]) for i in some]
    return Encoded.cat(parts)
