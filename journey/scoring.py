"""Scores of every training image for every generated image at every step."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from journey.checkpoints import loaded
from journey.draws import query_noise
from journey.features import Features
from journey.solve import Spectrum, decompose
from journey.trajectory import Trajectory

# Rows (queries x draws) that go through the denoiser at once.
_ROWS_PER_BATCH = 64


class Ranked(NamedTuple):
    """Training images in order of strength.

    Attributes:
        ids: int64. [num_queries, num_steps, k]
        values: Their scores, float32. [num_queries, num_steps, k]
    """

    ids: Tensor
    values: Tensor


class Top(NamedTuple):
    """The training images that count most.

    Attributes:
        proponents: Highest scores first: training on them makes the image more likely from this step.
        opponents: Lowest scores first: training on them makes it less likely.
    """

    proponents: Ranked
    opponents: Ranked


@dataclass(frozen=True)
class Scores:
    """Scores of all training images; positive is a proponent.

    Attributes:
        values: float32. [num_queries, num_steps, num_train]
        timesteps: int64. [num_steps]
        train_ids: Dataset index of each column.
        damping: The relative damping that was used, averaged over checkpoints.
    """

    values: Tensor
    timesteps: Tensor
    train_ids: list[int]
    damping: float

    def __post_init__(self) -> None:
        """Check that the shapes agree."""
        if self.values.dim() != 3 or list(self.values.shape[1:]) != [len(self.timesteps), len(self.train_ids)]:
            raise ValueError(
                "values must be [num_queries, num_steps, num_train] = "
                f"[..., {len(self.timesteps)}, {len(self.train_ids)}], got {list(self.values.shape)}"
            )

    def top(self, k: int = 8) -> Top:
        """Return the k strongest proponents and opponents of every query and step.

        Args:
            k: How many of each, at most the number of training images.

        Returns:
            Both rankings, strongest first.

        Raises:
            ValueError: If ``k`` is out of range.
        """
        if not 1 <= k <= len(self.train_ids):
            raise ValueError(f"k must be between 1 and the {len(self.train_ids)} training images, got {k}")
        ids = torch.tensor(self.train_ids)
        ranked = []
        for descending in (True, False):
            # A stable sort, so that equal scores are ranked by id on every machine.
            values, columns = self.values.sort(dim=-1, descending=descending, stable=True)
            ranked.append(Ranked(ids[columns[..., :k]], values[..., :k].contiguous()))
        return Top(*ranked)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the scores as one safetensors file; equal scores give equal bytes."""
        tensors = {
            "values": self.values.contiguous(),
            "timesteps": self.timesteps,
            "train_ids": torch.tensor(self.train_ids),
            # Not metadata: safetensors writes several entries of that in an order that changes from run to run.
            "damping": torch.tensor(self.damping, dtype=torch.float64),
        }
        save_file(tensors, path, metadata={"kind": "scores"})

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Scores:
        """Read what ``save`` wrote.

        Args:
            path: The file.

        Returns:
            The scores.

        Raises:
            ValueError: If the file holds something else.
        """
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("kind") != "scores":
                raise ValueError(f"{os.fspath(path)} holds no saved scores")
            saved = {name: file.get_tensor(name) for name in ("values", "timesteps", "train_ids", "damping")}
        ids = saved["train_ids"].tolist()
        return Scores(saved["values"], saved["timesteps"], ids, saved["damping"].item())


def score(
    features: Features,
    trajectory: Trajectory,
    *,
    steps: Sequence[int] | None = None,
    damping: float | Literal["auto"] = "auto",
    num_draws: int = 16,
    seed: int = 0,
    noise: Tensor | None = None,  # [num_queries, num_steps, num_draws, C, H, W]
    progress: bool = True,
) -> Scores:
    """Score every training image for every generated image at chosen steps.

    ``scores[q, t, i] = mean over checkpoints of query(q, t)^T (gram + damping I)^-1 features[i]``

    The query at step t is the image predicted there, noised again to t, measured as the training images were and
    averaged over ``num_draws`` noises.

    Args:
        features: The training images, from ``journey.featurize`` with the same model.
        trajectory: The generated images, from ``journey.record``.
        steps: Timesteps among the recorded ones; all by default.
        damping: Ridge as a fraction of the mean eigenvalue of the Gram matrix; ``"auto"`` chooses it for each
            checkpoint by generalised cross-validation on the training images.
        num_draws: Noises per query and step, in antithetic pairs.
        seed: Names the noises.
        noise: The caller's own noises instead, as when comparing with another implementation.
            [num_queries, num_steps, num_draws, C, H, W]
        progress: Show a progress bar.

    Returns:
        Scores, without a unit: the gradients' unit cancels. Positive is a proponent.

    Raises:
        ValueError: If a step was not recorded, or an argument is out of range.
        StoreMismatchError: If the model's weights are no longer those of the features.
        IncompleteStoreError: If features are missing.
        CorruptShardError: If a file of the store was damaged.

    Reference:
        Georgiev et al., "The Journey, Not the Destination: How Data Guides Diffusion Models", 2023, section 3.
    """
    recorded = trajectory.timesteps.tolist()
    chosen = recorded if steps is None else [int(t) for t in steps]
    unknown = [t for t in chosen if t not in recorded]
    if unknown or not chosen:
        raise ValueError(f"steps must be among the recorded timesteps {recorded}, got {unknown or 'none'}")
    if damping != "auto" and not (isinstance(damping, int | float) and 0 <= damping < float("inf")):
        raise ValueError(f'damping must be "auto" or a number >= 0, got {damping!r}')
    shape = tuple(trajectory.images.shape[1:])
    if noise is not None:
        expected = (trajectory.num_queries, len(chosen), noise.shape[2] if noise.dim() > 2 else 0, *shape)
        if tuple(noise.shape) != expected or expected[2] == 0:
            raise ValueError(
                f"noise must be [num_queries, num_steps, num_draws, C, H, W] = {list(expected)}, "
                f"got {list(noise.shape)}"
            )
    elif num_draws < 1:
        raise ValueError(f"num_draws must be positive, got {num_draws}")
    features.check_model()

    store, network = features.store, features.featurizer.denoiser.network
    total, dampings = None, []
    for name, checkpoint in zip(store.manifest.checkpoints, features.checkpoints, strict=True):
        spectrum = _decompose(features, name)
        used = _choose_damping(features, name, spectrum) if damping == "auto" else float(damping)
        spectrum.check(used)
        with loaded(network, checkpoint):
            query = _query_features(features, trajectory, chosen, num_draws, seed, noise, progress)
        scores = spectrum.scores(query.flatten(0, 1), used).view(*query.shape[:2], -1)
        total = scores if total is None else total + scores
        dampings.append(used)
    assert total is not None
    values = (total / len(dampings)).float().cpu()
    ids = torch.cat([shard.ids for shard in store.iter_shards(store.manifest.checkpoints[0])]).tolist()
    return Scores(values, torch.tensor(chosen), ids, sum(dampings) / len(dampings))


def _whole_range(features: Features, name: str) -> Iterator[Tensor]:
    """Features over the whole range of timesteps, shard by shard, on the model's device. [num_rows, proj_dim]"""
    denoiser = features.featurizer.denoiser
    weights = features.draws.weights(denoiser.num_train_timesteps).float()
    for shard in features.store.iter_shards(name):
        yield torch.einsum("nbk,b->nk", shard.features, weights).to(denoiser.device)


def _decompose(features: Features, name: str) -> Spectrum:
    return decompose(lambda: _whole_range(features, name), features.num_samples, features.featurizer.features_dim)


def _choose_damping(features: Features, name: str, spectrum: Spectrum) -> float:
    weights = features.draws.weights(features.featurizer.denoiser.num_train_timesteps)
    values = torch.cat([shard.values.double() @ weights for shard in features.store.iter_shards(name)])
    return spectrum.choose_damping(values)


def _query_features(
    features: Features,
    trajectory: Trajectory,
    steps: list[int],
    num_draws: int,
    seed: int,
    noise: Tensor | None,
    progress: bool,
) -> Tensor:
    """Measure the predicted images, noised again to their own step. [num_queries, num_steps, proj_dim]"""
    device = features.featurizer.denoiser.device
    recorded = trajectory.timesteps.tolist()
    num_draws = num_draws if noise is None else noise.shape[2]
    batch = max(1, _ROWS_PER_BATCH // num_draws)
    shape = tuple(trajectory.images.shape[1:])
    rows = []
    with tqdm(total=len(steps) * trajectory.num_queries, unit="query", desc="score", disable=not progress) as bar:
        for s, t in enumerate(steps):
            images = trajectory.x0_hat[:, recorded.index(t)]
            measured = []
            for first in range(0, len(images), batch):
                ids = list(range(first, min(first + batch, len(images))))
                draws = query_noise(seed, ids, t, num_draws, shape, device) if noise is None else noise[ids, s]
                timesteps = torch.full((len(ids), 1, num_draws), t)
                condition = None if trajectory.condition is None else trajectory.condition.select(ids)
                found, _ = features.featurizer.features(
                    images[ids], timesteps, draws.unsqueeze(1), condition=condition, ids=ids
                )
                measured.append(found)
                bar.update(len(ids))
            rows.append(torch.cat(measured)[:, 0])
    return torch.stack(rows, 1)
