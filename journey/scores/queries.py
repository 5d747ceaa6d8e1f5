"""The features of generated images: what is measured at which recorded steps, and in which region."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from journey.features.features import Features
from journey.generation.completions import Completer
from journey.generation.trajectory import Trajectory
from journey.measure.batch import num_groups
from journey.measure.measurements import PixelMeasurement
from journey.models.checkpoints import Checkpoint, loaded
from journey.models.condition import Condition
from journey.models.schedules import Interval, check_interval
from journey.ops.keys import derive_key
from journey.ops.noise import query_noise
from journey.scores.regions import Region, pixel_masks, resample_masks

# Rows (queries x draws) that go through the denoiser at once.
_ROWS_PER_BATCH = 64


@dataclass(frozen=True)
class Queries:
    """What is measured of the generated images. Made by ``plan_queries``, which checks it.

    Attributes:
        images: What is measured at each step: the predicted image, or completions, whose features are averaged.
            [num_queries, num_steps, num_images, C, H, W]
        condition: What the network is told, one row per query; None for an unconditional model.
        ids: Which queries are measured.
        steps: Timesteps that are measured.
        averaged: Whether the steps' features are averaged into one.
        masks: The region in pixels, float32; None is the whole image. [num_queries, H, W]
        num_draws: Noises per query and step.
        seed: Names the noises.
        noise: The caller's own noises instead. [num_queries, num_steps, num_draws, C, H, W]
    """

    images: Tensor
    condition: Condition | None
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

    def _noise(self, step: int, query: int, number: int, device: torch.device) -> Tensor:
        """The noises of one image of a query at one of the steps. [num_draws, C, H, W]"""
        if self.noise is not None:
            return self.noise[query, step].to(device)
        # Each completion has noises of its own, the first those that the predicted image has.
        seed = self.seed if number == 0 else derive_key(self.seed, "completion", number)
        shape = tuple(self.images.shape[3:])
        return query_noise(seed, [query], self.steps[step], self.num_draws, shape, device)[0]

    def measure(self, features: Features, checkpoint: Checkpoint | None, progress: bool) -> Tensor:
        """Measure the predicted images under one checkpoint, noised again to their own step.

        Args:
            features: The training images, with how they were measured.
            checkpoint: Which weights, as in ``features.checkpoints``.
            progress: Show a progress bar.

        Returns:
            Features of groups of draws, whose mean is the query's, float32, on the model's device; one step where they
            are averaged. [num_queries, num_steps, num_groups, proj_dim]
        """
        network = features.featurizer.denoiser.network
        total = len(self.steps) * len(self.ids) * self.images.shape[2]
        with loaded(network, checkpoint), tqdm(total=total, unit="image", desc="score", disable=not progress) as bar:
            measured = torch.stack([self._measure_step(features, step, bar) for step in range(len(self.steps))], 1)
        return measured.mean(1, keepdim=True) if self.averaged else measured

    def _measure_step(self, features: Features, step: int, bar: tqdm) -> Tensor:
        """Measure the queries at one step. [len(ids), num_groups, proj_dim]"""
        count = self.images.shape[2]
        pairs = [(query, number) for query in self.ids for number in range(count)]
        device = features.featurizer.denoiser.device
        # The caller's own noises may be pairs as well.
        draws = self.num_draws if self.noise is None else self.noise.shape[2]
        groups, batch = num_groups(draws, 2), max(1, _ROWS_PER_BATCH // draws)
        rows = []
        for first in range(0, len(pairs), batch):
            some = pairs[first : first + batch]
            queries = [query for query, _ in some]
            images = torch.stack([self.images[query, step, number] for query, number in some])
            noise = torch.stack([self._noise(step, *pair, device) for pair in some])
            masks = None
            if self.masks is not None:
                masks = resample_masks(self.masks[queries], images.shape[-2:]).unsqueeze(1)
            measured, _ = features.featurizer.features(
                images,
                torch.full((len(some), groups, draws // groups), self.steps[step], dtype=torch.int64, device="cpu"),
                noise.unflatten(1, (groups, -1)),
                condition=None if self.condition is None else self.condition.select(queries),
                mask=masks,
                ids=queries,
            )
            rows.append(measured)
            bar.update(len(some))
        measured = torch.cat(rows)
        return measured.view(len(self.ids), count, *measured.shape[1:]).mean(1)


def plan_queries(
    features: Features,
    trajectory: Trajectory | None,
    *,
    steps: Sequence[int] | None,
    interval: Interval | None,
    region: Region | list[Region] | None,
    num_draws: int,
    seed: int,
    noise: Tensor | None = None,
    completions: int = 0,
    num_inference_steps: int | None = None,
) -> Queries:
    """Check what is to be measured of a trajectory, and sample completions; the arguments are those of ``score``.

    Returns:
        The plan.

    Raises:
        ValueError: If a step was not recorded, an argument is out of range, or the trajectory is of another noise
            schedule than the features.
        TypeError: If there is no trajectory, or the measurement cannot be restricted to a region.
        StoreMismatchError: If the model's weights are no longer those of the features.
    """
    if not isinstance(trajectory, Trajectory):
        cure = "journey.Trajectory.load(path) reads it"
        raise TypeError(f"trajectory must be a Trajectory, {cure} from a file, got {type(trajectory).__name__}")
    trajectory.check_schedule(features.featurizer.denoiser.schedule)
    recorded = trajectory.timesteps.tolist()
    if steps is not None and not hasattr(steps, "__iter__"):
        raise TypeError(f"steps must be a list of timesteps, got {type(steps).__name__}")
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
        check_query_noise(noise, trajectory.num_queries, chosen, shape)
    elif num_draws < 1:
        raise ValueError(f"num_draws must be positive, got {num_draws}")
    if completions < 0:
        raise ValueError(f"completions must be 0, for the predicted image, or positive, got {completions}")
    if num_inference_steps is not None and not completions:
        raise ValueError(
            f"num_inference_steps is of completions' sampler, got {num_inference_steps} with completions=0, which "
            "measures the predicted image"
        )
    masks = None if region is None else check_region(features, region, trajectory.image_pixels)
    features.check_model()
    columns = [recorded.index(t) for t in chosen]
    images = trajectory.x0_hat[:, columns].unsqueeze(2)
    if completions:
        completer = Completer(
            features.featurizer.denoiser, trajectory, seed=seed, num_inference_steps=num_inference_steps
        )
        completer.check_steps(chosen)
        numbers = range(completions)
        images = torch.stack(
            [
                torch.stack([completer.complete(query, t, numbers) for t in chosen])
                for query in range(trajectory.num_queries)
            ]
        )
    ids = list(range(trajectory.num_queries))
    return Queries(images, trajectory.condition, ids, chosen, interval is not None, masks, num_draws, seed, noise)


def check_region(features: Features, region: Region | list[Region], pictures: Tensor) -> Tensor:
    """Return the masks of a region in pictures [num_queries, C, H, W], float32. [num_queries, H, W]

    Raises:
        TypeError: If the measurement cannot be restricted to a region.
        ValueError: As ``pixel_masks``.
    """
    measurement = features.featurizer.measurement
    if not isinstance(measurement, PixelMeasurement):
        raise TypeError(
            "region needs a measurement that is a mean over pixels (a journey.measure PixelMeasurement), as "
            f"TrainingLoss; these features were made with {type(measurement).__name__}"
        )
    return pixel_masks(region, pictures)


def check_features(features: Features) -> None:
    """Refuse what is no features, such as their path.

    Raises:
        TypeError: If it is not.
    """
    if not isinstance(features, Features):
        cure = "journey.open_features(path, model) reads them"
        raise TypeError(f"features must be Features, {cure} from a folder, got {type(features).__name__}")


def check_query_noise(noise: Tensor, num_queries: int, steps: Sequence[int], shape: tuple[int, ...]) -> int:
    """Check the caller's own noises of queries, [num_queries, num_steps, num_draws, C, H, W].

    Args:
        noise: The noises.
        num_queries: How many queries there are.
        steps: The steps that they are measured at.
        shape: Shape of one image.

    Returns:
        How many draws there are.

    Raises:
        ValueError: If they have another shape.
    """
    num_draws = noise.shape[2] if noise.dim() > 2 else 0
    expected = (num_queries, len(steps), num_draws, *shape)
    if tuple(noise.shape) != expected or num_draws == 0:
        raise ValueError(
            f"noise must be [num_queries, num_steps, num_draws, C, H, W] = {list(expected)}, got {list(noise.shape)}"
        )
    return num_draws
