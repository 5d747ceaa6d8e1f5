"""A stand-in for the recorded generation of images that no model generated."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from journey.generation.trajectory import Trajectory
from journey.models.condition import Condition
from journey.models.denoiser import Denoiser
from journey.ops.noise import query_noise


@torch.no_grad()
def noised_trajectory(
    denoiser: Denoiser,
    images: Tensor,
    steps: Sequence[int] | None = None,
    *,
    condition: Condition | None = None,
    seed: int = 0,
) -> Trajectory:
    """Stand in for the recorded generation of images that no model generated.

    At each step the image is noised to it, by one noise for all steps, and the model predicts the image from there.

    Args:
        denoiser: The model.
        images: The images as the network denoises them: themselves, or their latents. [num_queries, C, H, W]
        steps: Timesteps, descending; ten equally spaced ones by default.
        condition: What the network is told, one row per image.
        seed: Names the noise.

    Returns:
        The trajectory.
    """
    num = denoiser.num_train_timesteps
    chosen = [num * (2 * j + 1) // 20 for j in reversed(range(10))] if steps is None else [int(t) for t in steps]
    x0 = images.to(denoiser.device)
    noise = query_noise(seed, range(len(images)), -1, 1, tuple(images.shape[1:]), denoiser.device)[:, 0]
    x_t, x0_hat = [], []
    for t in chosen:
        times = torch.full((len(images),), t, device=denoiser.device, dtype=torch.int64)
        x_t.append(denoiser.add_noise(x0, noise, times))
        x0_hat.append(denoiser.schedule.x0_from(denoiser.predict(x_t[-1], times, condition), x_t[-1], times))
    latents, predicted = torch.stack(x_t, 1).cpu(), torch.stack(x0_hat, 1).cpu()
    told = None if condition is None else condition.to(torch.device("cpu"))
    timesteps = torch.tensor(chosen, dtype=torch.int64, device="cpu")
    return Trajectory(
        timesteps,
        latents,
        predicted,
        images.cpu(),
        told,
        schedule=denoiser.schedule.fingerprint(),
        levels=denoiser.schedule.levels(timesteps),
    )
