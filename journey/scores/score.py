"""Scores of every training image for every generated image at every step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from journey.features.features import Features
from journey.generation.trajectory import Trajectory
from journey.models.schedules import Interval, check_interval
from journey.scores.gram import decompose_bins
from journey.scores.queries import check_arguments, plan_queries
from journey.scores.regions import Region
from journey.scores.scores import Scores
from journey.scores.spectrum import DEFAULT_DAMPING, Spectrum, check_damping

# Decompositions that are kept of some features, each of up to 2 * proj_dim**2 float64: 256 MiB at proj_dim 4096.
_KEPT_SPECTRA = 2
# By the features they are of, while those live; then by checkpoint and damping.
_SPECTRA: WeakKeyDictionary[Features, dict[tuple[str, float | str], tuple[Spectrum, float]]] = WeakKeyDictionary()


def score(
    features: Features,
    trajectory: Trajectory,
    *,
    steps: Sequence[int] | None = None,
    interval: Interval | None = None,
    train_interval: Interval | None = None,
    region: Region | list[Region] | None = None,
    completions: int = 0,
    num_inference_steps: int | None = None,
    damping: float | Literal["auto"] = DEFAULT_DAMPING,
    num_draws: int = 16,
    seed: int = 0,
    noise: Tensor | None = None,  # [num_queries, num_steps, num_draws, C, H, W]
    progress: bool = True,
) -> Scores:
    """Score every training image for every generated image at chosen steps.

    ``scores[q, t, i] = mean over checkpoints of query(q, t)^T (gram + damping I)^-1 features[i]``

    The query at step t is the image predicted there, noised again to t, measured as the training images were, and
    averaged over ``num_draws`` noises. The Gram matrix is always that of the whole range of timesteps: the sum, over
    images and bins, of the outer products of the bins' features, weighted by their share of the timesteps.

    Args:
        features: The training images, from ``journey.featurize`` with the same model.
        trajectory: The generated images, from ``journey.record``.
        steps: Timesteps among the recorded ones, each scored by itself; all by default.
        interval: Average the recorded steps in timesteps (t0, t1), t1 excluded, into one score instead;
            ``(0, num_train_timesteps)`` is the whole generation.
        train_interval: Count the training images' draws in timesteps (t0, t1) alone, as their part of the whole score:
            intervals that cut the range in pieces have scores that add up to it. Bins that lie in it in part enter by
            the share of their timesteps; features in one bin have no such part.
        region: Score a part of the generated images alone: a box (top, left, bottom, right) in pixels, a mask image or
            a function, for all or one for each, see ``journey.scores.regions.pixel_masks``. The scores of a region and
            of its complement add up to those of the whole image.
        completions: Measure so many images that the model completes from x_t, and average their features, instead of
            the one predicted image: 0 is the published method; where a step leaves much open, the prediction is a blur
            of what completions show one by one. Each costs as much as the prediction, and sampling it.
        num_inference_steps: Steps of the completions' sampler, the trajectory's by default; fewer are faster, and must
            visit the scored steps too.
        damping: Ridge as a multiple of the mean eigenvalue of the Gram matrix. 10 by default, which agrees best with
            retraining for whitened features; for plain gradients it is 1. ``"auto"`` chooses it for each checkpoint by
            generalised cross-validation on the training images, which is too little damping on models that were
            retrained.
        num_draws: Noises per query and step, in antithetic pairs.
        seed: Names the noises.
        noise: The caller's own noises instead, as when comparing with another implementation; completions share them.
            [num_queries, num_steps, num_draws, C, H, W]
        progress: Show a progress bar.

    Returns:
        Scores, without a unit: the gradients' unit cancels. Positive is a proponent.

    Raises:
        ValueError: If a step was not recorded, an argument is out of range, ``train_interval`` is given with features
            in one bin, or the trajectory is of another noise schedule than the features.
        TypeError: If ``features`` or ``trajectory`` is a path, ``region`` is of an unknown form, or the features'
            measurement cannot be restricted to one.
        StoreMismatchError: If the model's weights are no longer those of the features.
        IncompleteStoreError: If features are missing.
        CorruptShardError: If a file of the store was damaged.

    Reference:
        Georgiev et al., "The Journey, Not the Destination: How Data Guides Diffusion Models", 2023, section 3.
    """
    check_arguments(features, trajectory)
    check_damping(damping)
    num_train_timesteps = features.featurizer.denoiser.num_train_timesteps
    if train_interval is not None:
        check_interval("train_interval", train_interval, num_train_timesteps)
        if features.draws.bins == 1:
            raise ValueError(
                "train_interval needs features in several bins of timesteps, such as StratifiedDraws(num_draws=2, "
                "bins=10) gives, got one bin"
            )
    weights = features.draws.weights(num_train_timesteps, train_interval)
    queries = plan_queries(
        features,
        trajectory,
        steps=steps,
        interval=interval,
        region=region,
        num_draws=num_draws,
        seed=seed,
        noise=noise,
        completions=completions,
        num_inference_steps=num_inference_steps,
    )
    store = features.store
    total, dampings = None, []
    for name, checkpoint in zip(store.manifest.checkpoints, features.checkpoints, strict=True):
        spectrum, used = solved(features, name, damping)
        query = queries.measure(features, checkpoint, progress)
        rows = query.flatten(0, 1)
        if features.draws.bins == 1:
            scores = spectrum.scores(rows, used)
        else:
            solution = spectrum.precondition(rows, used)
            scores = torch.cat([solution @ some.double().T for some in weighted_rows(features, name, weights)], 1)
        scores = scores.view(*query.shape[:2], -1)
        total = scores if total is None else total + scores
        dampings.append(used)
    assert total is not None
    return Scores(
        (total / len(dampings)).float().cpu(),
        torch.tensor(queries.timesteps, dtype=torch.int64, device="cpu"),
        train_ids(features),
        sum(dampings) / len(dampings),
        interval,
        train_interval,
        queries.masks,
    )


def train_ids(features: Features) -> list[int]:
    """Return the dataset index of each row of the features."""
    store = features.store
    ids: list[int] = torch.cat([shard.ids for shard in store.iter_shards(store.manifest.checkpoints[0])]).tolist()
    return ids


def weighted_rows(features: Features, name: str, weights: Tensor) -> Iterator[Tensor]:
    """Yield a checkpoint's features summed over bins, shard by shard, on the model's device. Each [num_rows, proj_dim]

    Args:
        features: The training images.
        name: Which checkpoint, as the store names it.
        weights: Weight of each bin. [bins]
    """
    for shard in features.store.iter_shards(name):
        rows = torch.einsum("nbk,b->nk", shard.features, weights.float())
        yield rows.to(features.featurizer.denoiser.device)


def solved(features: Features, name: str, damping: float | Literal["auto"]) -> tuple[Spectrum, float]:
    """Decompose a checkpoint's Gram matrix and settle the damping, with its warnings.

    The last few decompositions are kept: a complete store does not change, and eigenvectors cost more than scores.

    Returns:
        The spectrum and the relative damping.
    """
    kept, denoiser = _SPECTRA.setdefault(features, {}), features.featurizer.denoiser
    if (name, damping) not in kept:
        weights = features.draws.weights(denoiser.num_train_timesteps)
        found = decompose_bins(features.store, name, weights, damping, denoiser.device)
        while len(kept) >= _KEPT_SPECTRA:
            kept.pop(next(iter(kept)))
        kept[name, damping] = found
    spectrum, used = kept[name, damping]
    spectrum.check(used)
    return spectrum, used
