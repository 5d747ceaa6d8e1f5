"""Which timesteps of training count at which steps of a generation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from journey.curvature.gram import DEFAULT_DAMPING
from journey.data.ids import check_id
from journey.features.features import Features
from journey.files.paths import GivenPath
from journey.files.tensors import read_tensors, write_tensors
from journey.generation.trajectory import Trajectory
from journey.scores.queries import check_features, plan_queries
from journey.scores.regions import Region
from journey.scores.score import check_damping
from journey.store.ids import pack_ids, unpack_ids

_TENSORS = ("values", "edges", "timesteps")


@dataclass(frozen=True)
class InfluenceMatrix:
    """How the training images' draws in each range of timesteps steer each step of one generation.

    Attributes:
        values: Scores; the sum of a column is the whole score of that step. float32. [train_bins, query_steps]
        edges: Bin b holds the timesteps edges[b] ... edges[b + 1] - 1, int64. [train_bins + 1]
        timesteps: The steps of the generation, int64. [query_steps]
        train_ids: The training images whose scores are summed.
    """

    values: Tensor
    edges: Tensor
    timesteps: Tensor
    train_ids: list[int | str]

    def __post_init__(self) -> None:
        """Check that the shapes agree."""
        expected = [len(self.edges) - 1, len(self.timesteps)]
        if list(self.values.shape) != expected:
            raise ValueError(f"values must be [train_bins, query_steps] = {expected}, got {list(self.values.shape)}")

    def save(self, path: GivenPath) -> None:
        """Write the matrix as one safetensors file; equal ones give equal bytes."""
        tensors = {name: getattr(self, name) for name in _TENSORS}
        write_tensors(path, "influence", {**tensors, **pack_ids(self.train_ids)})

    @staticmethod
    def load(path: GivenPath) -> InfluenceMatrix:
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
        return InfluenceMatrix(saved["values"], saved["edges"], saved["timesteps"], unpack_ids(saved))


def influence_matrix(
    features: Features,
    trajectory: Trajectory,
    train_ids: int | str | Sequence[int | str],
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
        train_ids: The id of one image, or several whose scores are summed.
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
    chosen = [check_id(i, "train_ids") for i in np.atleast_1d(np.asarray(train_ids)).tolist()]
    unknown = set(chosen).difference(features.ids)
    if unknown or not chosen:
        raise ValueError(f"train_ids must be of images that have features, got {list(unknown)[:5] or 'none'}")
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
    for number, checkpoint in enumerate(features.checkpoints):
        measured = queries.measure(features, checkpoint, progress)[0].mean(1)
        rows = features.fit.gram(number).solve(measured, damping)
        group = _sum_of(features, number, chosen).to(rows) * weights.to(rows)[:, None]
        total = group @ rows.T if total is None else total + group @ rows.T
    assert total is not None
    values = (total / len(features.checkpoints)).float().cpu()
    return InfluenceMatrix(
        values,
        features.draws.edges(num_train_timesteps),
        torch.tensor(queries.steps, dtype=torch.int64, device="cpu"),
        chosen,
    )


def _sum_of(features: Features, checkpoint: int, chosen: list[int | str]) -> Tensor:
    """The features of some training images, summed, one row for each bin, float64. [bins, proj_dim]"""
    times = Counter(chosen)
    sums = []
    for shard in features.select(chosen).shards(checkpoint):
        counts = torch.tensor([times[i] for i in shard.ids], dtype=torch.float64, device="cpu")
        sums.append(torch.einsum("nbk,n->bk", shard.features.double(), counts))
    return torch.stack(sums).sum(0)
