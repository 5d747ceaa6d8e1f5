"""Scores of every training image for every generated image: at every step, or as a whole."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from journey.curvature.gram import DEFAULT_DAMPING, GramMatrix
from journey.data.items import Dataset
from journey.features.features import Features
from journey.generation.trajectory import Trajectory
from journey.models.condition import Condition
from journey.models.schedules import Interval, check_interval
from journey.scores.errors import ScoreErrors
from journey.scores.image_queries import IMAGE_DRAWS, ImageQueries, plan_images
from journey.scores.queries import Queries, check_features, plan_queries
from journey.scores.regions import Region
from journey.scores.scores import Scores

_STEP_DRAWS = 16
# Rows whose scores under groups of a query's draws tell the noise of the query.
_NOISE_ROWS = 64


def score(
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
    progress: bool = True,
) -> Scores:
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
        progress: Show a progress bar.

    Returns:
        Scores, in a unit of their own: a measurement that is twice as large gives scores four times as large. Positive
        is a proponent. Whole images have one step, named 0.

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
    values, errors = products(features, [each.solution for each in solved], weights), None
    if train_interval is None:
        noise, norm = _noises(features)
        gains = torch.stack([each.row_gain for each in solved]), torch.stack([each.query_gain for each in solved])
        errors = ScoreErrors(noise, norm, *gains)
    return Scores(
        values,
        torch.tensor([0] if isinstance(queries, ImageQueries) else queries.timesteps, dtype=torch.int64, device="cpu"),
        features.ids,
        float(damping),
        interval,
        train_interval,
        queries.masks,
        errors,
    )


@dataclass(frozen=True)
class _Solved:
    """Queries under one checkpoint.

    Attributes:
        solution: float32, on the CPU. [num_queries, num_steps, proj_dim]
        row_gain: See ``ScoreErrors``. [num_queries, num_steps]
        query_gain: Likewise. [num_queries, num_steps]
    """

    solution: Tensor
    row_gain: Tensor
    query_gain: Tensor


def _solve(features: Features, number: int, groups: Tensor, damping: float) -> _Solved:
    """Solve queries of which groups of draws were measured. [num_queries, num_steps, num_groups, proj_dim]"""
    gram, shape = features.fit.gram(number), groups.shape[:2]
    solution = gram.solve(groups.mean(2).flatten(0, 1), damping).cpu()
    row_gain = gram.row_errors(solution).unflatten(0, shape).float()
    gain = _query_gain(features, number, gram, groups, damping)
    return _Solved(solution.float().unflatten(0, shape), row_gain, gain)


def check_damping(damping: float) -> None:
    """Refuse a damping that is no number >= 0.

    Raises:
        ValueError: If it is not.
    """
    if isinstance(damping, bool) or not (isinstance(damping, int | float) and 0 <= damping < float("inf")):
        raise ValueError(f"damping must be a number >= 0, got {damping!r}")


def products(features: Features, solutions: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Return the inner products of solved queries with the features of all training images, averaged over checkpoints.

    Args:
        features: The training images.
        solutions: Of each checkpoint, float32, on the CPU. [num_queries, num_steps, proj_dim]
        weights: Of each bin. [bins]

    Returns:
        float32. [num_queries, num_steps, num_train]
    """
    found = torch.empty(*solutions[0].shape[:2], features.num_samples, dtype=torch.float32, device="cpu")
    for column, values in blocks(features, solutions, weights):
        found[..., column : column + values.shape[2]] = values
    return found


def blocks(features: Features, solutions: Sequence[Tensor], weights: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield ``products`` some columns at a time, with the first of them. [num_queries, num_steps, num_columns]"""
    shares, column = weights.float(), 0
    for shards in zip(*(features.shards(number) for number in range(len(solutions))), strict=True):
        parts = [shard.products(each.flatten(0, 1)) @ shares for shard, each in zip(shards, solutions, strict=True)]
        values = torch.stack(parts).mean(0) if len(parts) > 1 else parts[0]
        yield column, values.unflatten(0, solutions[0].shape[:2])
        column += values.shape[1]


def _noises(features: Features) -> tuple[Tensor, Tensor]:
    """Noise and norm of every row. Each [num_checkpoints, num_train]"""
    found = []
    for number in range(len(features.checkpoints)):
        shards = list(features.shards(number, verify=False))
        found.append([torch.cat([shard.noise for shard in shards]), torch.cat([shard.norm for shard in shards])])
    noise, norm = zip(*found, strict=True)
    return torch.stack(noise), torch.stack(norm)


def _query_gain(features: Features, number: int, gram: GramMatrix, groups: Tensor, damping: float) -> Tensor:
    """Standard error of scores from the query's draws, per unit norm of the row. [num_queries, num_steps]"""
    count = groups.shape[2]
    if count == 1:
        return torch.full(groups.shape[:2], torch.nan, dtype=torch.float32, device="cpu")
    shard = next(features.shards(number))
    chosen = torch.linspace(0, len(shard) - 1, _NOISE_ROWS, device="cpu", dtype=torch.float64)
    weights = features.draws.weights(features.featurizer.denoiser.num_train_timesteps)
    rows = torch.einsum("nbk,b->nk", shard.features[chosen.long().unique()].double(), weights)
    scores = groups.cpu().double() @ gram.solve(rows, damping).T  # [num_queries, num_steps, num_groups, num_rows]
    variance = scores.var(2) / count
    return (variance.mean(-1) / rows.square().sum(1).mean()).sqrt().float()
