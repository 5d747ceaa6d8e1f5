"""Measured values without gradients: what a model says about images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from journey.denoiser import Denoiser
from journey.draws import Draws
from journey.measurements import Measurement, Prediction

_ROWS_PER_BATCH = 512


@torch.no_grad()
def measure_values(
    denoiser: Denoiser, images: Tensor, *, draws: Draws, measurement: Measurement, ids: Sequence[int] | None = None
) -> Tensor:
    """Measure images under the denoiser's current weights.

    Args:
        denoiser: The model.
        images: Images in its range. [num_samples, C, H, W]
        draws: Timesteps and noise.
        measurement: What is measured.
        ids: Whose draws each image has; by default image i has those of sample i.

    Returns:
        The mean over the draws of each bin, float32, on the CPU. [num_samples, bins]
    """
    device, names = denoiser.device, range(len(images)) if ids is None else ids
    size = max(1, _ROWS_PER_BATCH // (draws.bins * draws.num_draws))

    def measure(x0: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        x_t, target = denoiser.add_noise(x0, noise, times), denoiser.target(x0, noise, times)
        return measurement(Prediction(denoiser.predict(x_t, times), target, x0, x_t, noise, times, denoiser.schedule))

    values = []
    for first in range(0, len(images), size):
        some = names[first : first + size]
        timesteps = draws.timesteps(some, denoiser.num_train_timesteps)
        counts = draws.row_weights(timesteps, denoiser.num_train_timesteps)
        noise = draws.noise(some, tuple(images.shape[1:]), device).flatten(0, 2)
        times = timesteps.flatten().to(device)
        x0 = images[first : first + size].to(device).repeat_interleave(timesteps[0].numel(), 0)
        measured = torch.cat(
            [measure(*rows) for rows in zip(*(x.split(_ROWS_PER_BATCH) for x in (x0, noise, times)), strict=True)]
        )
        measured = measured.view(timesteps.shape)
        values.append((measured if counts is None else measured * counts.to(device)).mean(-1).cpu())
    return torch.cat(values)
