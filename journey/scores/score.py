"""Scores of every training image for every generated image: at every step, or as a whole."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor

from journey.curvature.gram import DEFAULT_DAMPING, GramMatrix
from journey.data.items import Dataset
from journey.errors import check_count
from journey.features.features import Features
from journey.generation.trajectory import Trajectory
from journey.models.condition import Condition
from journey.models.schedules import Interval, check_interval
from journey.scores.columns import Gains, noises, products, strongest
from journey.scores.errors import ScoreErrors
from journey.scores.image_queries import IMAGE_DRAWS, ImageQueries, plan_images
from journey.scores.queries import Queries, check_features, plan_queries
from journey.scores.regions import Region
from journey.scores.removal import Removals
from journey.scores.scores import Scores
from journey.scores.top import TopCollector, TopScores

_STEP_DRAWS = 16
# Rows whose scores under groups of a query's draws tell the noise of the query.
_NOISE_ROWS = 64


@overload
def score(features: Features, trajectory: Trajectory | None = None, *, top: None = None, **options: Any) -> Scores: ...


@overload
def score(features: Features, trajectory: Trajectory | None = None, *, top: int, **options: Any) -> TopScores: ...


def score(  # type: ignore[misc]  # the two above tell their options as Any
    features: Features,
    trajectory: Trajectory | None = None,
    *,
    images: Trajectory | Dataset | Tensor | str | os.PathLike[str] | None = None,
    conditions: Condition | None = None,
    steps: Sequence[int] | None = None,
    interval: Interval | None = None,
    train_interval: Interval | None = None,
    region: Region | list[Region] | None = None,
    completions: int = 0,
    num_inference_steps: int | None = None,
    damping: float = DEFAULT_DAMPING,
    num_draws: int | None = None,
    seed: int = 0,
    noise: Tensor | None = None,  # [num_queries, num_steps, num_draws, C, H, W]
    top: int | None = None,
    candidates: Iterable[int | str] | None = None,
    progress: bool = True,
) -> Scores | TopScores:
    """Score every training image for every generated image, at chosen steps or as a whole.

    ``scores[q, t, i] = mean over checkpoints of query(q, t)^T (M + damping I)^-1 features[i]``

    with the Gram matrix M of the fit (``journey.curvature.gram``). The query at step t is the image predicted there,
    noised again to t, measured as the training images were, and averaged over noises. The query of a whole image is
    the image itself, measured over the whole range of timesteps.

    Args:
        features: The training images, from ``journey.featurize`` with the same model.
        trajectory: The generated images, from ``journey.record``, to score their steps.
        images: Whole images instead: generated ones, as a trajectory; or pictures from anywhere, in the forms of a
            dataset or as the folder that holds them, with captions or labels where the model reads them.
        conditions: What the model is told with ``images`` that are a tensor as the network takes them (latents, for a
            model of latents), one row per image.
        steps: Timesteps among the recorded ones, each scored by itself; all by default.
        interval: Average the recorded steps in timesteps (t0, t1), t1 excluded, into one score instead;
            ``(0, num_train_timesteps)`` is the whole generation.
        train_interval: Count the training images' draws in timesteps (t0, t1) alone, as their part of the whole score:
            intervals that cut the range in pieces have scores that add up to it. Bins that lie in it in part enter by
            the share of their timesteps; features in one bin have no such part.
        region: Score a part of the images alone: a box (top, left, bottom, right) in pixels, a mask image or a
            function, for all or one for each, see ``journey.scores.regions.pixel_masks``. The scores of a region and
            of its complement add up to those of the whole image.
        completions: Measure so many images that the model completes from x_t, and average their features, instead of
            the one predicted image: 0 is the published method; where a step leaves much open, the prediction is a blur
            of what completions show one by one. Each costs as much as the prediction, and sampling it.
        num_inference_steps: Steps of the completions' sampler, the trajectory's by default; fewer are faster, and must
            visit the scored steps too.
        damping: Ridge in mean diagonals of the Gram matrix; 1 agrees best with retraining (docs/results/choices.md).
            It may be changed without featurizing again.
        num_draws: Noises per query and step, in antithetic pairs, 16 by default; of whole images 40, stratified over
            the range.
        seed: Names the noises.
        noise: The caller's own noises instead, as when comparing with another implementation; completions share them.
            [num_queries, num_steps, num_draws, C, H, W]
        top: Keep only so many of the highest and of the lowest scores of each query and step, in the memory of a few
            shards, however many images there are.
        candidates: Score these training images alone, by id; all by default.
        progress: Show a progress bar.

    Returns:
        Scores, or with ``top`` the strongest of them, in a unit of their own: a measurement that is twice as large
        gives scores four times as large. Positive is a proponent. Whole images have one step, named 0.

    Raises:
        ValueError: If a step was not recorded, an argument is out of range, ``train_interval`` is given with features
            in one bin, the trajectory is of another noise schedule than the features, or arguments of steps are given
            with ``images``.
        TypeError: If ``features`` or ``trajectory`` is a path, ``region`` is of an unknown form, or the features'
            measurement cannot be restricted to one.
        FileNotFoundError: If the fit of the features has no Gram matrix.
        StoreMismatchError: If the model's weights are no longer those of the features.
        IncompleteStoreError: If features are missing.
        CorruptShardError: If a file of the store was damaged.

    Reference:
        Georgiev et al., "The Journey, Not the Destination: How Data Guides Diffusion Models", 2023, section 3.
    """
    check_features(features)
    check_damping(damping)
    if top is not None:
        check_count("top", top)
    collector = None if top is None else TopCollector(int(top))
    if candidates is not None:
        features = features.select(candidates)
    num_train_timesteps = features.featurizer.denoiser.num_train_timesteps
    if train_interval is not None:
        check_interval("train_interval", train_interval, num_train_timesteps)
        if features.draws.bins == 1:
            raise ValueError(
                "train_interval needs features in several bins of timesteps, got one bin: featurize with "
                "draws=StratifiedDraws(2, bins=10)"
            )
    weights = features.draws.weights(num_train_timesteps, train_interval)
    if (trajectory is None) == (images is None):
        raise ValueError("give a trajectory, to score its steps, or images, to score whole ones")
    queries: Queries | ImageQueries
    if images is not None:
        of_steps = {"steps": steps, "interval": interval, "noise": noise, "num_inference_steps": num_inference_steps}
        given = [name for name, value in of_steps.items() if value is not None] + ["completions"] * bool(completions)
        if given:
            raise ValueError(f"{', '.join(given)} belong to the steps of a trajectory, got images")
        draws = IMAGE_DRAWS if num_draws is None else num_draws
        queries = plan_images(features, images, conditions, region=region, num_draws=draws, seed=seed)
    else:
        if conditions is not None:
            raise ValueError("conditions belong to images; a trajectory has its own")
        queries = plan_queries(
            features,
            trajectory,
            steps=steps,
            interval=interval,
            region=region,
            num_draws=_STEP_DRAWS if num_draws is None else num_draws,
            seed=seed,
            noise=noise,
            completions=completions,
            num_inference_steps=num_inference_steps,
        )
    solved = [
        _solve(features, number, queries.measure(features, checkpoint, progress), damping)
        for number, checkpoint in enumerate(features.checkpoints)
    ]
    steps_told = [0] if isinstance(queries, ImageQueries) else queries.timesteps
    settings: dict[str, Any] = {
        "timesteps": torch.tensor(steps_told, dtype=torch.int64, device="cpu"),
        "damping": float(damping),
        "interval": interval,
        "train_interval": train_interval,
        "region": queries.masks,
    }
    gains = None
    if train_interval is None:
        gains = Gains(*(torch.stack(part) for part in zip(*(each.gains for each in solved), strict=True)))
    solutions = [each.solution for each in solved]
    if collector is not None:
        return strongest(features, solutions, weights, gains, collector, settings)
    errors = None if gains is None else ScoreErrors(*noises(features), *gains)
    values, stacked = products(features, solutions, weights), torch.stack(solutions)
    removals = None if train_interval is not None else Removals(features, stacked, float(damping))
    return Scores(values, train_ids=features.ids, errors=errors, solutions=stacked, removals=removals, **settings)


@dataclass(frozen=True)
class _Solved:
    """Queries under one checkpoint.

    Attributes:
        solution: float32, on the CPU. [num_queries, num_steps, proj_dim]
        gains: Each [num_queries, num_steps].
    """

    solution: Tensor
    gains: Gains


def _solve(features: Features, number: int, groups: Tensor, damping: float) -> _Solved:
    """Solve queries of which groups of draws were measured. [num_queries, num_steps, num_groups, proj_dim]"""
    gram, shape = features.fit.gram(number), groups.shape[:2]
    solution = gram.solve(groups.mean(2).flatten(0, 1), damping).cpu()
    row_gain = gram.row_errors(solution).unflatten(0, shape).float()
    gain = _query_gain(features, number, gram, groups, damping)
    return _Solved(solution.float().unflatten(0, shape), Gains(row_gain, gain))


def check_damping(damping: float) -> None:
    """Refuse a damping that is no number >= 0.

    Raises:
        ValueError: If it is not.
    """
    if isinstance(damping, bool) or not (isinstance(damping, int | float) and 0 <= damping < float("inf")):
        raise ValueError(f"damping must be a number >= 0, got {damping!r}")


def _query_gain(features: Features, number: int, gram: GramMatrix, groups: Tensor, damping: float) -> Tensor:
    """Standard error of scores from the query's draws, per unit norm of the row. [num_queries, num_steps]"""
    count = groups.shape[2]
    if count == 1:
        return torch.full(groups.shape[:2], torch.nan, dtype=torch.float32, device="cpu")
    # Of the first images of the store, whichever are scored.
    store, name = features.store, features.store.manifest.checkpoints[number]
    store.require_complete()
    shard = next(found for each in store.shards() if len(found := store.read_shard(name, each)))
    chosen = torch.linspace(0, len(shard) - 1, _NOISE_ROWS, device="cpu", dtype=torch.float64)
    weights = features.draws.weights(features.featurizer.denoiser.num_train_timesteps)
    rows = torch.einsum("nbk,b->nk", shard.features[chosen.long().unique()].double(), weights)
    scores = groups.cpu().double() @ gram.solve(rows, damping).T  # [num_queries, num_steps, num_groups, num_rows]
    variance = scores.var(2) / count
    return (variance.mean(-1) / rows.square().sum(1).mean()).sqrt().float()
