"""Features of rows that a test makes up, with known noise and a known Gram matrix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from cases import randn
from torch import Tensor

from journey.curvature.gram import GramMatrix
from journey.features.features import Features
from journey.measure.draws import StratifiedDraws

PROJ_DIM = 256


@dataclass(frozen=True, eq=False)
class MadeFeatures(Features):
    """Rows in memory instead of a store, in two shards.

    Attributes:
        rows: Of each checkpoint. [num_checkpoints, num_train, proj_dim]
        noise: Norm of each row's noise. [num_checkpoints, num_train]
        names: The ids.
    """

    rows: Tensor = field(kw_only=True)
    noise: Tensor = field(kw_only=True)
    names: tuple[int | str, ...] = field(kw_only=True)

    @property
    def num_samples(self) -> int:
        return len(self.names)

    @property
    def ids(self) -> list[int | str]:
        return list(self.names)

    def shards(self, checkpoint: int = 0, verify: bool = True) -> Iterator[Any]:
        half = len(self.names) // 2
        for part in (slice(0, half), slice(half, None)):
            yield _Shard(self.rows[checkpoint, part], self.noise[checkpoint, part], list(self.names[part]))


@dataclass
class _Shard:
    rows: Tensor
    noise: Tensor
    ids: list[int | str]

    @property
    def features(self) -> Tensor:
        return self.rows[:, None]

    @property
    def norm(self) -> Tensor:
        norm: Tensor = self.rows.norm(dim=1)
        return norm

    def products(self, queries: Tensor) -> Tensor:
        return (queries @ self.rows.T)[..., None]


def make_features(
    means: Tensor, noise: Tensor | float = 0.0, *, seed: int = 0, checkpoints: int = 1, directions: int = 512
) -> MadeFeatures:
    """Features of known expectation, whose noise is Gaussian with a covariance of its own.

    Args:
        means: What infinitely many draws would give. [num_train, PROJ_DIM]
        noise: Norm of the noise of each row, in the root mean square. [num_train]
        seed: Of the noise.
        checkpoints: How many sets of weights there are, each with its own noise.
        directions: Differences of halves of draws that the fit knows.
    """
    norms = torch.as_tensor(noise).expand(len(means))
    shape = torch.linspace(0.2, 2, PROJ_DIM)
    shape = shape / shape.norm()
    rows = torch.stack(
        [means + norms[:, None] * shape * randn(*means.shape, seed=1000 + seed + 100 * n) for n in range(checkpoints)]
    )
    root = randn(PROJ_DIM, PROJ_DIM, seed=77)
    gram = root @ root.T
    gram = gram / gram.diagonal().mean()
    parts = torch.tensor([[8, 0.5, 2.0], [8, 0.5, 0.25]], dtype=torch.float64)
    matrix = GramMatrix(gram, shape * randn(directions, PROJ_DIM, seed=78), parts)
    model = SimpleNamespace(denoiser=SimpleNamespace(num_train_timesteps=100))
    made: Any = {"store": None, "featurizer": model, "fit": SimpleNamespace(gram=lambda number: matrix)}
    return MadeFeatures(
        **made,
        draws=StratifiedDraws(20),
        checkpoints=(None,) * checkpoints,
        rows=rows,
        noise=norms.expand(checkpoints, -1),
        names=tuple(range(len(means))),
    )


def metric(features: MadeFeatures, damping: float) -> Tensor:
    """The inverse of the damped Gram matrix, float64. [PROJ_DIM, PROJ_DIM]"""
    gram = features.fit.gram(0).matrix.double()
    inverse: Tensor = torch.linalg.inv(gram + damping * torch.eye(PROJ_DIM, dtype=torch.float64))
    return inverse
