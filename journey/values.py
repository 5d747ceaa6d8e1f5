"""Measured values without gradients: what a model says about images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from journey.batch import draw_batch
from journey.draws import Draws
from journey.measurements import Measurement, Prediction
from journey.models.condition import Condition, Encoded
from journey.models.denoiser import Denoiser

# Rows that go through the network at once, fewer of large images: so many that they have 2**20 entries, 64 of 4x64x64.
_ROWS_PER_BATCH = 512
_ENTRIES_PER_BATCH = 2**20


@torch.no_grad()
def measure_values(
    denoiser: Denoiser,
    images: Tensor | Encoded,
    *,
    draws: Draws,
    measurement: Measurement,
    ids: Sequence[int] | None = None,
) -> Tensor:
    """Measure images under the denoiser's current weights.

    Args:
        denoiser: The model.
        images: Samples as the network takes them; of an unconditional model in pixels also images [num_samples, C, H,
            W] in its range.
        draws: Timesteps and noise; of several captions each draw takes one.
        measurement: What is measured.
        ids: Whose draws each image has; by default image i has those of sample i.

    Returns:
        The mean over the draws of each bin, float32, on the CPU. [num_samples, bins]
    """
    samples = images if isinstance(images, Encoded) else Encoded.single(images)
    device, names = denoiser.device, range(len(samples)) if ids is None else ids
    rows = max(1, min(_ROWS_PER_BATCH, _ENTRIES_PER_BATCH // samples.x0[0].numel()))
    size = max(1, rows // (draws.bins * draws.num_draws))

    def measure(x0: Tensor, noise: Tensor, times: Tensor, told: Condition | None) -> Tensor:
        x_t, target = denoiser.add_noise(x0, noise, times), denoiser.target(x0, noise, times)
        prediction = denoiser.predict(x_t, times, told)
        return measurement(Prediction(prediction, target, x0, x_t, noise, times, denoiser.schedule))

    values = []
    for first in range(0, len(names), size):
        some = names[first : first + size]
        batch = samples.select(first, first + len(some))
        timesteps, noise, told, counts = draw_batch(denoiser, draws, batch, some)
        x0 = batch.x0.to(device).repeat_interleave(timesteps[0].numel(), 0)
        noise, times = noise.flatten(0, 2), timesteps.flatten().to(device)
        parts = [slice(begin, begin + rows) for begin in range(0, len(times), rows)]
        measured = torch.cat([measure(x0[p], noise[p], times[p], told and told.select(p)) for p in parts])
        measured = measured.view(timesteps.shape)
        values.append((measured if counts is None else measured * counts.to(device)).mean(-1).cpu())
    return torch.cat(values)
