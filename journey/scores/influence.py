"""Which timesteps of training count at which steps of a generation."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from journey.curvature.gram import DEFAULT_DAMPING
from journey.data.numbers import as_tensor
from journey.features.features import Features
from journey.files.tensors import read_tensors, write_tensors
from journey.generation.trajectory import Trajectory
from journey.scores.queries import check_features, plan_queries
from journey.scores.regions import Region
from journey.scores.score import check_damping

_TENSORS = ("values", "edges", "timesteps", "train_ids")


@dataclass(frozen=True)
class InfluenceMatrix:
    """How the training images' draws in each range of timesteps steer each step of one generation.

    Attributes:
        values: Scores; the sum of a column is the whole score of that step. float32. [train_bins, query_steps]
        edges: Bin b holds the timesteps edges[b] ... edges[b + 1] - 1, int64. [train_bins + 1]
        timesteps: The steps of the generation, int64. [query_steps]
        train_ids: The training images whose scores are summed, int64. [num_images]
    """

    values: Tensor
    edges: Tensor
    timesteps: Tensor
    train_ids: Tensor

    def __post_init__(self) -> None:
        """Check that the shapes agree."""
        expected = [len(self.edges) - 1, len(self.timesteps)]
        if list(self.values.shape) != expected:
            raise ValueError(f"values must be [train_bins, query_steps] = {expected}, got {list(self.values.shape)}")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the matrix as one safetensors file; equal ones give equal bytes."""
        write_tensors(path, "influence", {name: getattr(self, name) for name in _TENSORS})

    @staticmethod
    def load(path: str | os.PathLike[str]) -> InfluenceMatrix:
        """Read what ``save`` wrote.

        Args:
            path: The file.

        Returns:
            The matrix.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is damaged or holds something else.
        """
        saved = read_tensors(path, "influence", _TENSORS)
        return InfluenceMatrix(**{name: saved[name] for name in _TENSORS})


def influence_matrix(
    features: Features,
    trajectory: Trajectory,
    train_ids: int | Sequence[int],
    *,
    query: int = 0,
    steps: Sequence[int] | None = None,
    region: Region | None = None,
    damping: float = DEFAULT_DAMPING,
    num_draws: int = 16,
    seed: int = 0,
    progress: bool = True,
) -> InfluenceMatrix:
    """Split the scores of one training image, or of a group, by the timestep of training.

    ``values[b, t] = sum over i of query(t)^T (M + damping I)^-1 w_b features[i, b]``, averaged over checkpoints,
    with w_b the bin's share of all timesteps and the Gram matrix M of the fit. Columns add up to
    ``journey.score``.

    Args:
        features: The training images, featurized with as many bins as the matrix is to have rows, such as
            ``draws=StratifiedDraws(2, bins=10)``.
        trajectory: The generated images.
        train_ids: One dataset index, or several whose scores are summed.
        query: Which generated image.
        steps: Timesteps among the recorded ones; all by default.
        region: As for ``journey.score``.
        damping: Likewise.
        num_draws: Likewise.
        seed: Likewise.
        progress: Show a progress bar.

    Returns:
        The matrix.

    Raises:
        ValueError: If an id, a query or a step does not exist, an argument is out of range, or there is one bin alone.
        TypeError: As ``journey.score``.
        StoreMismatchError: If the model's weights are no longer those of the features.
        IncompleteStoreError: If features are missing.
        CorruptShardError: If a file of the store was damaged.
    """
    check_features(features)
    chosen = as_tensor(train_ids).flatten()
    if len(chosen) and (chosen.is_floating_point() or chosen.is_complex() or chosen.dtype == torch.bool):
        raise TypeError(f"train_ids must be integers, got {chosen.dtype}")
    chosen = chosen.long()
    outside = sorted({i for i in chosen.tolist() if not 0 <= i < features.num_samples})
    if outside or len(chosen) == 0:
        raise ValueError(f"train_ids must be in 0..{features.num_samples - 1}, got {outside or 'none'}")
    check_damping(damping)
    queries = plan_queries(
        features, trajectory, steps=steps, interval=None, region=region, num_draws=num_draws, seed=seed
    )
    if features.draws.bins == 1:
        raise ValueError(
            "influence_matrix needs features in several bins of timesteps, got one bin: featurize with "
            "draws=StratifiedDraws(2, bins=10)"
        )
    if not 0 <= query < trajectory.num_queries:
        raise ValueError(f"query must be in 0..{trajectory.num_queries - 1}, got {query}")
    queries = replace(queries, ids=[query])

    num_train_timesteps = features.featurizer.denoiser.num_train_timesteps
    weights = features.draws.weights(num_train_timesteps)
    total = None
    names = features.store.manifest.checkpoints
    for number, (name, checkpoint) in enumerate(zip(names, features.checkpoints, strict=True)):
        measured = queries.measure(features, checkpoint, progress)[0].mean(1)
        rows = features.fit.gram(number).solve(measured, damping)
        group = _sum_of(features, name, chosen).to(rows) * weights.to(rows)[:, None]
        total = group @ rows.T if total is None else total + group @ rows.T
    assert total is not None
    values = (total / len(features.checkpoints)).float().cpu()
    return InfluenceMatrix(
        values,
        features.draws.edges(num_train_timesteps),
        torch.tensor(queries.steps, dtype=torch.int64, device="cpu"),
        chosen,
    )


def _sum_of(features: Features, name: str, chosen: Tensor) -> Tensor:
    """The features of some training images, summed, one row for each bin, float64. [bins, proj_dim]"""
    counts = torch.bincount(chosen, minlength=features.num_samples).double()
    return torch.stack(
        [
            torch.einsum("nbk,n->bk", shard.features.double(), counts[shard.ids])
            for shard in features.store.iter_shards(name)
            if counts[shard.ids].any()
        ]
    ).sum(0)
