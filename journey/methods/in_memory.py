"""Features of samples whose draws are averaged, averaged at equal length, or kept apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from journey.generation.trajectory import Trajectory
from journey.measure.batch import Drawn, draw_batch
from journey.measure.draws import Draws
from journey.measure.featurizer import Featurizer
from journey.models.condition import Encoded
from journey.ops.noise import query_noise

# Rows (samples x draws) that go through the denoiser at once where the caller names no batch size.
_ROWS_PER_BATCH = 128

PerDraw = Literal["mean", "normalized", "concatenated"]


@dataclass(frozen=True)
class DrawFeatures:
    """Measures samples, batch after batch, and puts the features of each one's draws together.

    Attributes:
        featurizer: Measures a batch.
        per_draw: How draws are put together, see ``journey.methods.method.Method``.
        name: Stands at the progress bars.
        batch_size: Samples per batch; by default as many as make 128 rows with their draws.
        progress: Show progress bars.
    """

    featurizer: Featurizer
    per_draw: PerDraw
    name: str
    batch_size: int | None = None
    progress: bool = True

    def of_samples(self, samples: Encoded, draws: Draws, first_id: int = 0) -> tuple[Tensor, Tensor]:
        """Measure samples at their draws.

        Args:
            samples: The samples.
            draws: Timesteps and noise; bins enter by their share of the timesteps.
            first_id: The id of the first sample, by which draws are keyed.

        Returns:
            Features [num_samples, proj_dim], of draws that are kept apart [num_samples, bins * draws * proj_dim]; and
            mean values [num_samples]. float32, on the model's device.

        Raises:
            ValueError: If draws that are kept apart do not all count alike.
        """
        denoiser, count = self.featurizer.denoiser, len(samples)
        shares = draws.weights(denoiser.num_train_timesteps).float().to(denoiser.device)
        size = self._size(draws.bins * draws.num_draws)
        rows, values = [], []
        for first in tqdm(range(0, count, size), unit="batch", desc=self.name, disable=not self.progress):
            batch = samples.select(first, min(first + size, count))
            ids = [first_id + first + i for i in range(len(batch))]
            found, measured = self._measure(batch.x0, draw_batch(denoiser, draws, batch, ids), ids)
            if self.per_draw == "concatenated":
                rows.append(found.flatten(1))
            else:
                rows.append(torch.einsum("nbk,b->nk", found, shares))
            values.append(measured @ shares)
        return torch.cat(rows), torch.cat(values)

    def of_steps(
        self,
        trajectory: Trajectory,
        steps: Sequence[int],
        num_draws: int,
        noise: Tensor | None = None,  # [num_queries, num_steps, num_draws, C, H, W]
    ) -> Tensor:
        """Measure the images that were predicted along a trajectory, noised again to their own step.

        Args:
            trajectory: The generations, with what they were told.
            steps: Which of the recorded timesteps.
            num_draws: Noises per query and step.
            noise: The caller's own noises instead. [num_queries, num_steps, num_draws, C, H, W]

        Returns:
            float32, on the model's device. [num_queries, num_steps, proj_dim]
        """
        recorded, device = trajectory.timesteps.tolist(), self.featurizer.denoiser.device
        shape, size = tuple(trajectory.images.shape[1:]), self._size(num_draws)
        rows = []
        for step, t in enumerate(tqdm(steps, unit="step", desc=f"{self.name}, queries", disable=not self.progress)):
            images, found = trajectory.x0_hat[:, recorded.index(t)], []
            for first in range(0, len(images), size):
                ids = list(range(first, min(first + size, len(images))))
                drawn = noise[ids, step] if noise is not None else query_noise(0, ids, t, num_draws, shape, device)
                told = None if trajectory.condition is None else trajectory.condition.select(ids)
                at_step = Drawn(
                    torch.full((len(ids), 1, num_draws), t, dtype=torch.int64, device="cpu"),
                    drawn.unsqueeze(1),
                    told,
                    None,
                )
                found.append(self._measure(images[ids], at_step, ids)[0].flatten(1))
            rows.append(torch.cat(found))
        return torch.stack(rows, 1)

    def _measure(self, images: Tensor, drawn: Drawn, ids: list[int]) -> tuple[Tensor, Tensor]:
        """Features, together over the draws of each bin unless they are kept apart, and mean values of bins."""
        if self.per_draw == "mean":
            return self.featurizer.features(images, **drawn._asdict(), ids=ids)
        timesteps, noise, condition, counts = drawn
        if counts is not None and self.per_draw == "concatenated":
            raise ValueError("draws must all count alike where they are kept apart, got importance draws")
        num_samples, bins, num_draws = timesteps.shape
        # Each draw a bin of its own: its feature is its own gradient.
        apart, values = self.featurizer.features(
            images, timesteps.view(num_samples, -1, 1), noise.flatten(1, 2).unsqueeze(2), condition=condition, ids=ids
        )
        apart = normalized(apart).view(num_samples, bins, num_draws, -1)
        values = values.view(num_samples, bins, num_draws)
        if counts is not None:
            apart, values = apart * counts.to(apart).unsqueeze(-1), values * counts.to(values)
        values = values.mean(2)
        return (apart if self.per_draw == "concatenated" else apart.mean(2)), values

    def _size(self, num_draws: int) -> int:
        """Samples per batch."""
        return max(1, _ROWS_PER_BATCH // num_draws) if self.batch_size is None else self.batch_size


def normalized(features: Tensor) -> Tensor:
    """Divide by the norm; a zero stays zero."""
    norm = features.norm(dim=-1, keepdim=True)
    return features / torch.where(norm > 0, norm, 1.0)
