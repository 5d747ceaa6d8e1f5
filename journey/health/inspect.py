"""Numerical health of stored features and of scores: what is wrong with the numbers, in numbers and in plain words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from journey.curvature.gram import DEFAULT_DAMPING, GramMatrix
from journey.features.begin import FIT_FOLDER
from journey.features.features import Features
from journey.features.fitted import DESCRIPTION, Fit, gram_path
from journey.files.paths import GivenPath, exists
from journey.generation.trajectory import Trajectory
from journey.health.layers import LayersHealth, inspect_layers
from journey.health.score_noise import ScoreNoise, score_noise
from journey.scores.score import check_damping, score
from journey.store.store import FeatureStore

_QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)
# Beyond these a warning is given.
_OUTLIER_NORM = 100  # largest gradient of a bin over its median
_DOMINANT_BIN = 0.9  # share of the squared norms in one of several bins
_CROWDED = 0.5  # effective rank over proj_dim
_FEW_DIRECTIONS = 0.01  # effective rank over the number of directions
_DOMINANT_DIRECTION = 0.9  # share of the largest eigenvalue in the trace


@dataclass(frozen=True)
class BinHealth:
    """The features of one range of timesteps.

    Attributes:
        first: Where the bin begins, as a fraction of the range of timesteps.
        end: Where it ends.
        nan_rows: Images with a feature that is NaN.
        inf_rows: Images with an infinite feature and no NaN.
        zero_rows: Images whose features are all zero.
        subnormal_rows: Images whose largest feature is below the smallest normal float32: digits were lost.
        norms: Norms of the images' gradients, over the other rows: minimum, 5 %, median, 95 %, maximum; None if none.
        share: The bin's part of the sum over bins of squared norms, weighted as in the whole range.
    """

    first: float
    end: float
    nan_rows: int
    inf_rows: int
    zero_rows: int
    subnormal_rows: int
    norms: list[float] | None
    share: float


@dataclass(frozen=True)
class CheckpointHealth:
    """The features under one checkpoint.

    Attributes:
        name: The checkpoint.
        bins: Each range of timesteps.
        layers: Each layer in a sample of the images; None if the features were written without one.
        damping: Damping of the scores, in mean diagonals of the Gram matrix; None where the fit has none.
        effective_rank: Directions that are in use under this damping.
        rank_bound: The most that there could be, min(rows of the Gram matrix, proj_dim).
        condition: Condition number of the Gram matrix, without the directions that are rounding.
        damped_condition: Condition number of what is inverted.
        largest_share: Part of the largest eigenvalue in the trace.
    """

    name: str
    bins: list[BinHealth]
    layers: LayersHealth | None = None
    damping: float | None = None
    effective_rank: float | None = None
    rank_bound: int | None = None
    condition: float | None = None
    damped_condition: float | None = None
    largest_share: float | None = None


@dataclass(frozen=True)
class Health:
    """What ``inspect`` found; ``str(health)`` is a table.

    Attributes:
        num_samples: Training images.
        proj_dim: Features per image and bin.
        checkpoints: Each checkpoint's features.
        scores: Monte-Carlo noise of the scores, if a trajectory was given.
        warnings: What deserves attention, in plain words.
    """

    num_samples: int
    proj_dim: int
    checkpoints: list[CheckpointHealth]
    scores: ScoreNoise | None
    warnings: list[str]

    def to_json(self) -> str:
        """Return everything as JSON."""
        return json.dumps(asdict(self), indent=2)

    def __str__(self) -> str:
        """Return everything as a text table."""
        lines = [f"{self.num_samples:,} training images, {self.proj_dim:,} features each"]
        for checkpoint in self.checkpoints:
            lines += ["", f"checkpoint {checkpoint.name}", *_table(checkpoint)]
        if self.scores is not None:
            lines += ["", *self.scores.lines()]
        lines += ["", *(f"warning: {text}" for text in self.warnings or [])]
        if not self.warnings:
            lines.append("nothing to warn of")
        return "\n".join(lines)


def _table(health: CheckpointHealth) -> list[str]:
    """The lines of one checkpoint."""
    lines = [
        "  timesteps       NaN    Inf   zero  subnormal   norm: min        5 %     median       95 %        max   share"
    ]
    for part in health.bins:
        norms = "".join(f"{norm:>11.3g}" for norm in part.norms) if part.norms else "          -" * len(_QUANTILES)
        lines.append(
            f"  {part.first:>5.0%} - {part.end:>4.0%} {part.nan_rows:>6} {part.inf_rows:>6} {part.zero_rows:>6} "
            f"{part.subnormal_rows:>10} {norms} {part.share:>7.0%}"
        )
    if health.damping is not None:
        lines.append(
            f"  effective rank {health.effective_rank:.1f} of {health.rank_bound}, damping {health.damping:.3g} of the "
            f"mean diagonal, condition number {health.condition:.2g}, damped {health.damped_condition:.2g}"
        )
    return lines if health.layers is None else [*lines, *health.layers.lines()]


def inspect(
    features: Features | GivenPath,
    trajectory: Trajectory | None = None,
    *,
    steps: Sequence[int] | None = None,
    damping: float = DEFAULT_DAMPING,
    num_draws: int = 16,
    seed: int = 0,
    progress: bool = True,
) -> Health:
    """Look for what is numerically wrong with stored features, and measure the Monte-Carlo noise of their scores.

    Args:
        features: Features, or the folder of a store, which is enough without ``trajectory``; of a fit that lies
            elsewhere it says nothing.
        trajectory: Generated images: the noise of their scores is measured too, see ``journey.health.score_noise``.
        steps: Which of its steps; all by default.
        damping: As for ``journey.score``.
        num_draws: Noises per query and step, as for ``journey.score``.
        seed: Names the noises.
        progress: Show a progress bar.

    Returns:
        What was found.

    Raises:
        ValueError: If an argument is out of range, or a trajectory is given with a folder instead of features.
        FileNotFoundError: If there is no store.
        IncompleteStoreError: If features are missing.
        CorruptShardError: If a file of the store was damaged.
        StoreMismatchError: If a trajectory is given and the model's weights are no longer those of the features.
    """
    check_damping(damping)
    if isinstance(features, Features):
        store = features.store
        weights = features.draws.weights(features.featurizer.denoiser.num_train_timesteps)
        fit: Fit | None = features.fit
    else:
        if trajectory is not None:
            raise ValueError(
                "trajectory needs the model: give journey.open_features(folder, model) instead of a folder"
            )
        store = FeatureStore.open(features)
        # The folder does not tell the number of timesteps; bins of equal width differ by at most one of them.
        weights = torch.full((store.manifest.bins,), 1 / store.manifest.bins, dtype=torch.float64, device="cpu")
        inside = store.path / FIT_FOLDER
        fit = Fit.load(inside) if exists(inside / DESCRIPTION) else None
    grams = [
        fit.gram(number) if fit is not None and exists(gram_path(fit.path, number)) else None
        for number in range(len(store.manifest.checkpoints))
    ]
    checkpoints = [
        _inspect_checkpoint(store, name, weights, gram, damping)
        for name, gram in zip(store.manifest.checkpoints, grams, strict=True)
    ]
    warnings = [text for checkpoint in checkpoints for text in _warnings(checkpoint, store.manifest.proj_dim)]
    noise = None
    if trajectory is not None:
        assert isinstance(features, Features)
        noise = score_noise(
            score(features, trajectory, steps=steps, damping=damping, num_draws=num_draws, seed=seed, progress=progress)
        )
        warnings += noise.warnings()
    num_samples = sum(len(shard) for shard in store.iter_shards(store.manifest.checkpoints[0], verify=False))
    return Health(num_samples, store.manifest.proj_dim, checkpoints, noise, warnings)


def _inspect_checkpoint(
    store: FeatureStore, name: str, weights: Tensor, gram: GramMatrix | None, damping: float
) -> CheckpointHealth:
    norms, faults = [], []
    store.forget_marks()
    for shard in store.iter_shards(name):
        found = shard.features
        norms.append(found.double().norm(dim=-1))
        faults.append(_faults(found))
    bins = _inspect_bins(torch.cat(norms), torch.cat(faults), weights)
    layers = inspect_layers(store, name, weights)
    return CheckpointHealth(name, bins, layers, *(() if gram is None else _inspect_gram(gram, damping)))


def _faults(features: Tensor) -> Tensor:
    """Whether each row is NaN, infinite, zero, subnormal. features [num, bins, proj_dim] -> bool [num, bins, 4]"""
    largest = features.nan_to_num(nan=0, posinf=0, neginf=0).abs().amax(-1)
    nan, inf = features.isnan().any(-1), features.isinf().any(-1)
    finite = ~nan & ~inf
    tiny = torch.finfo(torch.float32).tiny
    return torch.stack([nan, inf & ~nan, finite & (largest == 0), finite & (largest > 0) & (largest < tiny)], -1)


def _inspect_bins(norms: Tensor, faults: Tensor, weights: Tensor) -> list[BinHealth]:
    """Summarize rows. norms [num_samples, bins], faults [num_samples, bins, 4], weights [bins]"""
    sound = ~faults.any(-1)
    squares = (torch.where(sound, norms, 0.0) * weights).square().sum(0)
    shares = squares / squares.sum().clamp(min=torch.finfo(torch.float64).tiny)
    edges = torch.cat([torch.zeros(1, dtype=torch.float64, device="cpu"), weights.cumsum(0)]).tolist()
    bins = []
    for b in range(len(weights)):
        rows = norms[sound[:, b], b]
        probabilities = torch.tensor(_QUANTILES, dtype=rows.dtype, device="cpu")
        quantiles = rows.quantile(probabilities).tolist() if len(rows) else None
        nan, inf, zero, subnormal = faults[:, b].sum(0).tolist()
        bins.append(BinHealth(edges[b], edges[b + 1], nan, inf, zero, subnormal, quantiles, shares[b].item()))
    return bins


def _inspect_gram(gram: GramMatrix, damping: float) -> tuple[float, float, int, float, float, float]:
    """The fields of ``CheckpointHealth`` from ``damping`` on."""
    eigenvalues = gram.eigenvalues()
    # It is kept as float32.
    floor = torch.finfo(torch.float32).eps * len(eigenvalues) * eigenvalues[-1].item()
    present, largest = eigenvalues[eigenvalues > floor], eigenvalues[-1].item()
    rank = (eigenvalues / (eigenvalues + max(damping, floor))).sum().item()
    bound = min(len(eigenvalues), int(gram.parts[:, 0][gram.parts[:, 1] > 0].sum()))
    damped = (largest + damping) / max(eigenvalues[0].item() + damping, floor)
    return damping, rank, bound, largest / present[0].item(), damped, (eigenvalues[-1] / eigenvalues.sum()).item()


def _warnings(health: CheckpointHealth, proj_dim: int) -> list[str]:
    """What deserves attention, in plain words."""
    found = []
    where = f"checkpoint {health.name}, timesteps"
    for part in health.bins:
        bin_name = f"{where} {part.first:.0%} - {part.end:.0%}"
        for rows, fault, cure in (
            (part.nan_rows, "NaN", "their scores mean nothing; featurize again in bfloat16 or float32"),
            (part.inf_rows, "infinite", "their scores mean nothing; featurize again in bfloat16 or float32"),
            (part.zero_rows, "zero", "they score zero; the loss may not depend on the parameters there"),
            (part.subnormal_rows, "too small for float32", "digits were lost; scale the measurement up"),
        ):
            if rows:
                found.append(f"{bin_name}: the features of {rows} images are {fault}: {cure}")
        if part.norms and part.norms[-1] > _OUTLIER_NORM * part.norms[2]:
            found.append(
                f"{bin_name}: the largest gradient is {part.norms[-1] / part.norms[2]:.0f} times the median; such "
                "images rank high for every query, so look at them"
            )
        if len(health.bins) > 1 and part.share > _DOMINANT_BIN:
            found.append(
                f"{bin_name}: holds {part.share:.0%} of the squared gradient; whole-range scores are about these "
                "timesteps, use train_interval for the others"
            )
    if health.layers is not None:
        found += health.layers.warnings(health.name)
    if health.effective_rank is None or health.rank_bound is None or health.largest_share is None:
        return found
    rank = health.effective_rank
    if rank > _CROWDED * proj_dim:
        found.append(
            f"checkpoint {health.name}: effective rank {rank:.0f} is more than half of proj_dim {proj_dim}; a larger "
            "projection would tell more images apart"
        )
    if rank < _FEW_DIRECTIONS * health.rank_bound:
        found.append(
            f"checkpoint {health.name}: only {rank:.1f} of {health.rank_bound} directions are in use; a smaller "
            "damping would tell more images apart"
        )
    if health.largest_share > _DOMINANT_DIRECTION:
        found.append(
            f"checkpoint {health.name}: one direction holds {health.largest_share:.0%} of all gradients; images differ "
            "by little of what was measured"
        )
    return found
