"""Completions: images that a model may still make from one latent, samples of the paper's p(image | x_t)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from journey.denoiser import Denoiser
from journey.keys import derive_key
from journey.sampler import Sampler


class Completer:
    """Samples from a latent to the end, with noise in every step.

    A deterministic sampler (DDIM with eta = 0) continues a latent in one way only. What the latent leaves open is the
    distribution of images under the model's own reverse process, so completions always take DDPM's steps (or
    stochastic flow matching), whatever sampler made the trajectory.

    Args:
        denoiser: The model.
        num_inference_steps: Steps of the sampler from pure noise to the image; a completion takes those that are left.
        seed: Names the noise: completion j of query q from step t is the same, to rounding, whatever else is computed.
        batch_size: Completions that go through the denoiser at once.
    """

    def __init__(self, denoiser: Denoiser, num_inference_steps: int, *, seed: int, batch_size: int = 64) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive, got {batch_size}")
        self._sampler = Sampler(denoiser, num_inference_steps, stochastic=True)
        self._seed = seed
        self._batch_size = batch_size

    def check_steps(self, steps: Sequence[int]) -> None:
        """Refuse timesteps at which the sampler cannot begin.

        Raises:
            ValueError: If a step is not one of the sampler's.
        """
        unknown = [t for t in steps if t not in self._sampler.timesteps]
        if unknown:
            raise ValueError(
                f"completions with num_inference_steps {self._sampler.num_inference_steps} begin at the timesteps "
                f"{self._sampler.timesteps}, not at {unknown}; give the num_inference_steps of the trajectory, or "
                "steps that both have"
            )

    @torch.no_grad()
    def complete(self, x_t: Tensor, timestep: int, *, query: int, numbers: Sequence[int]) -> Tensor:
        """Return completions of one latent.

        Args:
            x_t: The latent, in the network's scale. [C, H, W]
            timestep: Its step.
            query: Which generated image it belongs to; names the noise.
            numbers: Which completions.

        Returns:
            In the model's space, on the CPU. [len(numbers), C, H, W]

        Raises:
            ValueError: If ``timestep`` is not one of the sampler's.
        """
        self.check_steps([timestep])
        first = self._sampler.timesteps.index(timestep)
        images = []
        for begin in range(0, len(numbers), self._batch_size):
            chosen = numbers[begin : begin + self._batch_size]
            keys = [derive_key(self._seed, "completion", query, timestep, j) for j in chosen]
            generators = [torch.Generator().manual_seed(key) for key in keys]
            x = x_t.expand(len(chosen), *x_t.shape)
            for step in self._sampler.steps(x, first=first, generators=generators):
                x = step.prev
            images.append(x.cpu())
        return torch.cat(images)
