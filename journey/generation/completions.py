"""Completions: images that a model may still make from one latent, samples of the paper's p(image | x_t)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from journey.generation.trajectory import Trajectory
from journey.models.denoiser import Denoiser
from journey.ops.keys import derive_key


class Completer:
    """Samples from a latent to the end, with noise in every step.

    A deterministic sampler (DDIM with eta = 0) continues a latent in one way only. What the latent leaves open is the
    distribution of images under the model's own reverse process, so completions always take DDPM's steps (or
    stochastic flow matching), whatever sampler made the trajectory.

    Args:
        denoiser: The model.
        trajectory: The generated images, whose latents, prompts and guidance completions share.
        seed: Names the noise: completion j of query q from step t is the same, to rounding, whatever else is computed.
        num_inference_steps: Steps from pure noise to the image, of which a completion takes those that are left; by
            default the trajectory's.
        batch_size: Completions that go through the denoiser at once.

    Raises:
        ValueError: If a number is not positive.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        trajectory: Trajectory,
        *,
        seed: int,
        num_inference_steps: int | None = None,
        batch_size: int = 64,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive, got {batch_size}")
        if num_inference_steps is not None:
            trajectory = replace(trajectory, num_inference_steps=num_inference_steps)
        self._denoiser = denoiser
        self._trajectory = trajectory
        self._recorded = trajectory.timesteps.tolist()
        self._visited = trajectory.sampler(denoiser, stochastic=True).timesteps
        self._seed = seed
        self._batch_size = batch_size

    @property
    def timesteps(self) -> list[int]:
        """The recorded timesteps at which completions can begin, descending."""
        return sorted(set(self._recorded) & set(self._visited), reverse=True)

    def check_steps(self, steps: Sequence[int]) -> None:
        """Refuse timesteps at which completions cannot begin.

        Raises:
            ValueError: If a step was not recorded, or is not one of the sampler's.
        """
        unknown = [t for t in steps if t not in self.timesteps]
        if unknown:
            raise ValueError(
                f"completions can begin at the recorded timesteps that their sampler visits, {self.timesteps}, not at "
                f"{unknown}; the sampler takes the num_inference_steps of the trajectory unless others are given"
            )

    @torch.no_grad()
    def complete(self, query: int, timestep: int, numbers: Sequence[int]) -> Tensor:
        """Return completions of one generated image.

        Args:
            query: Which image.
            timestep: The step of the latent to begin with.
            numbers: Which completions.

        Returns:
            float32, in the model's space, on the CPU. [len(numbers), C, H, W]

        Raises:
            ValueError: If completions cannot begin at ``timestep``.
        """
        self.check_steps([timestep])
        sampler = self._trajectory.sampler(self._denoiser, query, stochastic=True)
        latent = self._trajectory.x_t[query, self._recorded.index(timestep)]
        images = []
        for begin in range(0, len(numbers), self._batch_size):
            chosen = numbers[begin : begin + self._batch_size]
            keys = [derive_key(self._seed, "completion", query, timestep, j) for j in chosen]
            generators = [torch.Generator("cpu").manual_seed(key) for key in keys]
            x = latent.expand(len(chosen), *latent.shape)
            for step in sampler.steps(x, first=self._visited.index(timestep), generators=generators):
                x = step.prev
            images.append(x.cpu())
        return torch.cat(images)

    @torch.no_grad()
    def to_pictures(self, images: Tensor) -> Tensor:
        """Return completions as pictures in [-1, 1], decoded one by one where they are latents. [num_images, ...]"""
        if self._denoiser.is_latent:
            images = torch.cat([self._denoiser.decode(image.unsqueeze(0)).cpu() for image in images])
        return images.float().clamp(-1, 1)
