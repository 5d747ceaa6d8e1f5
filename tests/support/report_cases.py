"""Made-up runs for the tests of the page, the picture, the animation and the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from journey.generation.trajectory import Trajectory
from journey.generation.transitions import Transition
from journey.scores.errors import ScoreErrors
from journey.scores.scores import Scores

TIMESTEPS = [900, 500, 100]
HOSTILE = (
    """</bdi></script><script>alert("x")</script> & 'quoted' <!-- <img src=http://example.org/a.png onerror=alert(1)>"""
)


@dataclass
class Case:
    trajectory: Trajectory
    scores: Scores
    dataset: Any


def make_case(
    num_queries: int = 2, channels: int = 1, num_train: int = 12, side: int = 8, timesteps: Sequence[int] = TIMESTEPS
) -> Case:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator) * 2 - 1

    shape = (num_queries, len(timesteps), channels, side, side)
    trajectory = Trajectory(
        torch.tensor(timesteps), random(*shape), random(*shape), random(num_queries, channels, side, side)
    )
    # Ids are not positions: the dataset is longer than the scored part and in another order.
    train_ids = (torch.randperm(num_train, generator=generator) + 5).tolist()
    scores = Scores(random(num_queries, len(timesteps), num_train), torch.tensor(timesteps), train_ids, 0.1)
    return Case(trajectory, scores, list(random(num_train + 5, channels, side, side)))


def make_region(case: Case, box: tuple[int, int, int, int]) -> Scores:
    """Other scores, as if of a box (top, left, bottom, right) of the images."""
    masks = torch.zeros(len(case.scores.values), *case.trajectory.image_pixels.shape[-2:])
    masks[:, box[0] : box[2], box[1] : box[3]] = 1
    values = case.scores.values.flip(2)
    return Scores(values, case.scores.timesteps, case.scores.train_ids, 0.1, region=masks)


def with_errors(scores: Scores) -> Scores:
    """The same scores with standard errors."""
    generator = torch.Generator().manual_seed(7)
    num_queries, num_steps, num_train = scores.values.shape
    rows = torch.rand(2, 1, num_train, generator=generator)
    gains = torch.rand(2, 1, num_queries, num_steps, generator=generator) * 0.3
    return replace(scores, errors=ScoreErrors(*rows, *gains))


def make_transition(likelihood: Sequence[float] = (0.1, 0.1, 0.9, 1.0), completions: int = 40) -> Transition:
    """A feature that is decided between timesteps 700 and 300."""
    outcomes = [[float(i < share * completions) for i in range(completions)] for share in likelihood]
    bootstrap = torch.tensor([[301.0, 701.0, 500.0]], dtype=torch.float64).repeat(20, 1)
    timesteps = torch.tensor([900, 700, 300, 100])
    return Transition(timesteps, torch.tensor(outcomes, dtype=torch.float64), 0.95, bootstrap)


def bytes_of(image: Tensor) -> np.ndarray:
    """[-1, 1] to 0..255, halves to even as torch and numpy both round."""
    array = np.clip(np.round((image.numpy() + 1) * np.float32(127.5)), 0, 255).astype(np.uint8)
    return np.moveaxis(array, 0, -1) if len(array) == 3 else array[0]
