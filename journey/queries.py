"""The features of generated images: what is measured at which recorded steps, and in which region."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from journey.checkpoints import Checkpoint, loaded
from journey.draws import Interval, check_interval, query_noise
from journey.features import Features
from journey.measurements import PixelMeasurement
from journey.regions import Region, pixel_masks, resample_masks
from journey.trajectory import Trajectory

# Rows (queries x draws) that go through the denoiser at once.
_ROWS_PER_BATCH = 64


@dataclass(frozen=True)
class Queries:
    """What is measured of the generated images. Made by ``plan_queries``, which checks it.

    Attributes:
        trajectory: The generated images.
        ids: Which of them are measured.
        steps: Timesteps that are measured.
        averaged: Whether the steps' features are averaged into one.
        masks: The region in pixels, float32; None is the whole image. [num_queries, H, W]
        num_draws: Noises per query and step.
        seed: Names the noises.
        noise: The caller's own noises instead. [num_queries, num_steps, num_draws, C, H, W]
    """

    trajectory: Trajectory
    ids: list[int]
    steps: list[int]
    averaged: bool
    masks: Tensor | None
    num_draws: int
    seed: int
    noise: Tensor | None

    @property
    def timesteps(self) -> list[int]:
        """The step of each measured feature; the middle one of those that are averaged."""
        return [sorted(self.steps)[len(self.steps) // 2]] if self.averaged else self.steps

    def noise_at(self, step: int, ids: list[int], device: torch.device) -> Tensor:
        """Return the noises of some queries at the step of that position. [num_queries, num_draws, C, H, W]"""
        if self.noise is not None:
            return self.noise[ids, step]
        shape = tuple(self.trajectory.x0_hat.shape[2:])
        return query_noise(self.seed, ids, self.steps[step], self.num_draws, shape, device)

    def measure(self, features: Features, checkpoint: Checkpoint | None, progress: bool) -> Tensor:
        """Measure the predicted images under one checkpoint, noised again to their own step.

        Args:
            features: The training images, with how they were measured.
            checkpoint: Which weights, as in ``features.checkpoints``.
            progress: Show a progress bar.

        Returns:
            float32, on the model's device; one step where they are averaged. [num_queries, num_steps, proj_dim]
        """
        network = features.featurizer.denoiser.network
        total = len(self.steps) * len(self.ids)
        with loaded(network, checkpoint), tqdm(total=total, unit="query", desc="score", disable=not progress) as bar:
            measured = torch.stack([self._measure_step(features, step, bar) for step in range(len(self.steps))], 1)
        return measured.mean(1, keepdim=True) if self.averaged else measured

    def _measure_step(self, features: Features, step: int, bar: tqdm) -> Tensor:
        """Measure the queries at one step. [num_queries, proj_dim]"""
        t = self.steps[step]
        images = self.trajectory.x0_hat[:, self.trajectory.timesteps.tolist().index(t)]
        masks = None if self.masks is None else resample_masks(self.masks, images.shape[2:]).unsqueeze(1)
        num_draws = self.num_draws if self.noise is None else self.noise.shape[2]
        batch = max(1, _ROWS_PER_BATCH // num_draws)
        rows = []
        for first in range(0, len(self.ids), batch):
            ids = self.ids[first : first + batch]
            noise = self.noise_at(step, ids, features.featurizer.denoiser.device).unsqueeze(1)
            timesteps = torch.full((len(ids), 1, num_draws), t)
            mask = None if masks is None else masks[ids]
            rows.append(features.featurizer.features(images[ids], timesteps, noise, mask=mask, ids=ids)[0][:, 0])
            bar.update(len(ids))
        return torch.cat(rows)


def plan_queries(
    features: Features,
    trajectory: Trajectory,
    *,
    steps: Sequence[int] | None,
    interval: Interval | None,
    region: Region | list[Region] | None,
    num_draws: int,
    seed: int,
    noise: Tensor | None,
) -> Queries:
    """Check what is to be measured of a trajectory; the arguments are those of ``journey.score``.

    Returns:
        The plan.

    Raises:
        ValueError: If a step was not recorded, or an argument is out of range.
        TypeError: If the measurement cannot be restricted to a region.
    """
    recorded = trajectory.timesteps.tolist()
    chosen = recorded if steps is None else [int(t) for t in steps]
    unknown = [t for t in chosen if t not in recorded]
    if unknown or not chosen:
        raise ValueError(f"steps must be among the recorded timesteps {recorded}, got {unknown or 'none'}")
    if interval is not None:
        if steps is not None:
            raise ValueError("give steps, to score each, or interval, to average the steps in it, not both")
        check_interval("interval", interval, features.featurizer.denoiser.num_train_timesteps)
        chosen = [t for t in recorded if interval[0] <= t < interval[1]]
        if not chosen:
            raise ValueError(f"interval must hold at least one of the recorded timesteps {recorded}, got {interval}")
    shape = tuple(trajectory.x0_hat.shape[2:])
    if noise is not None:
        expected = (trajectory.num_queries, len(chosen), noise.shape[2] if noise.dim() > 2 else 0, *shape)
        if tuple(noise.shape) != expected or expected[2] == 0:
            raise ValueError(
                f"noise must be [num_queries, num_steps, num_draws, C, H, W] = {list(expected)}, "
                f"got {list(noise.shape)}"
            )
    elif num_draws < 1:
        raise ValueError(f"num_draws must be positive, got {num_draws}")
    masks = None
    if region is not None:
        measurement = features.featurizer.measurement
        if not isinstance(measurement, PixelMeasurement):
            raise TypeError(
                "region needs a measurement that is a mean over pixels (journey.PixelMeasurement), such as "
                f"TrainingLoss; these features were made with {type(measurement).__name__}"
            )
        masks = pixel_masks(region, trajectory.images)
    ids = list(range(trajectory.num_queries))
    return Queries(trajectory, ids, chosen, interval is not None, masks, num_draws, seed, noise)
