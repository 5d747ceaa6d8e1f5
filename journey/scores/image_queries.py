"""The features of whole images: generated ones, or pictures from anywhere."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from journey.data.folder import ImageFolder
from journey.data.items import Dataset, image_of
from journey.features.features import Features
from journey.generation.trajectory import Trajectory
from journey.measure.batch import draw_batch, num_groups
from journey.measure.draws import StratifiedDraws
from journey.models.checkpoints import Checkpoint, loaded
from journey.models.condition import Condition, Encoded
from journey.models.encoding import encode_all
from journey.scores.queries import check_region
from journey.scores.regions import Region, resample_masks

# An antithetic pair in each twentieth of the range.
IMAGE_DRAWS = 40
_ROWS_PER_BATCH = 80


@dataclass(frozen=True)
class ImageQueries:
    """Images that are measured over the whole range of timesteps, as training images are.

    Attributes:
        samples: The images as the network takes them.
        draws: Timesteps and noise, keyed by the position of the query.
        masks: The region in pixels, float32; None is the whole image. [num_queries, H, W]
    """

    samples: Encoded
    draws: StratifiedDraws
    masks: Tensor | None

    def measure(self, features: Features, checkpoint: Checkpoint | None, progress: bool) -> Tensor:
        """Measure the images under one checkpoint.

        Args:
            features: The training images, with how they were measured.
            checkpoint: Which weights, as in ``features.checkpoints``.
            progress: Show a progress bar.

        Returns:
            Features of groups of draws, whose mean is the query's, float32, on the model's device.
            [num_queries, 1, num_groups, proj_dim]
        """
        featurizer, count = features.featurizer, len(self.samples)
        together = 2 if self.draws.antithetic else 1
        groups, size = num_groups(self.draws.num_draws, together), max(1, _ROWS_PER_BATCH // self.draws.num_draws)
        found = []
        with (
            loaded(featurizer.denoiser.network, checkpoint),
            tqdm(total=count, unit="image", desc="score", disable=not progress) as bar,
        ):
            for first in range(0, count, size):
                some = self.samples.select(first, min(first + size, count))
                ids = [f"query {first + i}" for i in range(len(some))]
                drawn = draw_batch(featurizer.denoiser, self.draws, some, ids).in_groups(groups, together)
                masks = None
                if self.masks is not None:
                    here = self.masks[first : first + len(some)]
                    masks = resample_masks(here, some.x0.shape[-2:]).unsqueeze(1)
                measured, _ = featurizer.features(some.x0, **drawn._asdict(), mask=masks, ids=ids)
                found.append(measured)
                bar.update(len(some))
        return torch.cat(found).unsqueeze(1)


def plan_images(
    features: Features,
    images: Trajectory | Dataset | Tensor | str | os.PathLike[str],
    conditions: Condition | None,
    *,
    region: Region | list[Region] | None,
    num_draws: int,
    seed: int,
) -> ImageQueries:
    """Check and encode whole images; the arguments are those of ``score``.

    Returns:
        The plan.

    Raises:
        ValueError: If there is no image, one does not fit the model, ``conditions`` has another number of rows, or
            an argument is out of range.
        TypeError: If an image has an unknown form, or the measurement cannot be restricted to a region.
        StoreMismatchError: If the model's weights are no longer those of the features.
    """
    if num_draws < 1:
        raise ValueError(f"num_draws must be positive, got {num_draws}")
    denoiser = features.featurizer.denoiser
    if isinstance(images, str | os.PathLike):
        images = ImageFolder(images, size=denoiser.sample_size, channels=denoiser.in_channels or 3)
    masks = None if region is None else check_region(features, region, _pictures(images))
    features.check_model()
    if isinstance(images, Trajectory):
        images.check_schedule(denoiser.schedule)
        samples = images.finished
    elif conditions is not None:
        if not isinstance(images, Tensor):
            raise TypeError("conditions belong to images as the network takes them, a tensor; items have their own")
        samples = Encoded.single(images)
    else:
        samples = encode_all(denoiser, images, name="images")
    if conditions is not None:
        if samples.condition is not None:
            raise ValueError("conditions must be given with images that have none of their own, or not at all")
        if len(conditions) not in (1, len(samples)):
            raise ValueError(f"conditions must have a row for each of {len(samples)} images, got {len(conditions)}")
        samples = Encoded.single(samples.x0, conditions.expand(len(samples)))
    return ImageQueries(samples, StratifiedDraws(num_draws, seed=seed), masks)


def _pictures(images: Any) -> Tensor:
    """The images as pictures, in whose pixels regions are. [num_queries, C, H, W]"""
    if isinstance(images, Trajectory):
        return images.image_pixels
    return torch.stack([image_of(images[i], f"images[{i}]") for i in range(len(images))])
