"""The protocols that published evaluations retrained by, as data for ``random_subsets``, ``retrain`` and ``lds``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from journey.data.items import Dataset
from journey.evaluate.responses import measure_responses
from journey.evaluate.retrain import Run
from journey.evaluate.subsets import Subsets, random_subsets
from journey.generation.trajectory import Trajectory
from journey.measure.draws import Draws, GridDraws, UniformDraws
from journey.measure.measurements import Measurement
from journey.models.checkpoints import Checkpoint


@dataclass(frozen=True)
class Protocol:
    """How many models are retrained on what, and what is asked of them.

    Attributes:
        reference: Where it is published.
        num_subsets: Subsets of the training images, all of one size.
        fraction: Share of the images that each holds.
        num_seeds: Trainings of each subset.
        num_queries: Generated images that are asked about; as many held-out ones where ``held_out``.
        draws: Timesteps and noise of the responses, which are averaged over all of these.
        held_out: Whether held-out images are asked about too.
    """

    reference: str
    num_subsets: int
    fraction: float
    num_seeds: int
    num_queries: int
    draws: tuple[Draws, ...]
    held_out: bool = False

    def subsets(self, num_train: int, *, seed: int = 0) -> Subsets:
        """Return the subsets, see ``random_subsets``."""
        return random_subsets(num_train, self.num_subsets, fraction=self.fraction, seed=seed)

    def runs(self, subsets: Subsets) -> list[Run]:
        """Return the trainings, for ``retrain``: all seeds of a subset follow each other."""
        return [Run(subsets.indices(j), seed) for j in range(len(subsets)) for seed in range(self.num_seeds)]

    def losses(
        self,
        model: Any,
        checkpoints: Sequence[Checkpoint],
        queries: Dataset | Tensor | Trajectory,
        *,
        measurement: Measurement | None = None,
        progress: bool = True,
    ) -> Tensor:
        """Measure the queries under the models of ``runs``, for ``lds``.

        Args:
            model: As for ``measure_responses``.
            checkpoints: The retrained models in the order of ``runs``.
            queries: Likewise.
            measurement: What is measured, ``TrainingLoss()`` by default.
            progress: Show progress bars.

        Returns:
            float32. [num_subsets, num_seeds, num_queries]
        """
        found = [
            measure_responses(model, checkpoints, queries, draws=draws, measurement=measurement, progress=progress)
            for draws in self.draws
        ]
        num_queries = found[0].shape[1]
        return torch.stack(found).mean((0, 3)).view(-1, self.num_seeds, num_queries)


def dtrak_protocol(*, num_train_timesteps: int = 1000) -> Protocol:
    """Return the protocol of D-TRAK: 64 halves, three seeds, the loss at every timestep under three noises.

    There images in one slot of a batch share their noise; here every query has its own, the same for all models.

    Args:
        num_train_timesteps: Timesteps of the schedule.

    Returns:
        The protocol.

    Reference:
        Zheng et al., "Intriguing Properties of Data Attribution on Diffusion Models", ICLR 2024, and its published
        code (CIFAR-2, CelebA, ArtBench; one seed on CIFAR-10).
    """
    draws = tuple(GridDraws(num_train_timesteps, antithetic=False, seed=seed) for seed in range(3))
    return Protocol("Zheng et al. 2024", 64, 0.5, 3, 1000, draws, held_out=True)


def kfac_protocol() -> Protocol:
    """Return the protocol of the K-FAC paper: 100 halves, five seeds, 5,000 draws of the loss.

    Returns:
        The protocol.

    Reference:
        Mlodozeniec et al., "Influence Functions for Scalable Data Attribution in Diffusion Models", ICLR 2025, and
        its published code (50 subsets on ArtBench).
    """
    return Protocol("Mlodozeniec et al. 2025", 100, 0.5, 5, 1000, (UniformDraws(5000, antithetic=False),))
