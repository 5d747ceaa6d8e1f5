"""Attribution without gradients: what every method must beat.

Each function scores every training image for every query, float64 [num_queries, num_train]; positive is a proponent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from journey.models.denoiser import Denoiser
from journey.ops.noise import query_noise


def pixels(images: Tensor, queries: Tensor, *, cosine: bool = False) -> Tensor:
    """Score by the inner product, or the cosine, of centred images.

    Centred by the mean training image: otherwise brightness decides.

    Args:
        images: Training images. [num_train, C, H, W]
        queries: Queries. [num_queries, C, H, W]
        cosine: Divide by both norms.

    Returns:
        Scores. [num_queries, num_train]
    """
    return embedding(images, queries, lambda batch: batch, cosine=cosine)


def embedding(images: Tensor, queries: Tensor, embed: Callable[[Tensor], Tensor], *, cosine: bool = False) -> Tensor:
    """Score by the inner product, or the cosine, of centred embeddings, such as those of CLIP or DINO.

    Args:
        images: Training images. [num_train, C, H, W]
        queries: Queries. [num_queries, C, H, W]
        embed: Maps images to embeddings of any shape. [num, C, H, W] to [num, ...]
        cosine: Divide by both norms.

    Returns:
        Scores. [num_queries, num_train]
    """
    train, query = (embed(batch).flatten(1).double() for batch in (images, queries))
    mean = train.mean(0)
    train, query = train - mean, query - mean
    if cosine:
        train, query = F.normalize(train, dim=1), F.normalize(query, dim=1)
    return query @ train.T


def optimal_denoiser(
    denoiser: Denoiser,
    images: Tensor,
    queries: Tensor,
    *,
    patch: int | None = 3,
    timesteps: Sequence[int] | None = None,
    num_draws: int = 4,
    seed: int = 0,
) -> Tensor:
    """Score by the weights with which the optimal denoiser of the training set averages its images (NDA).

    The denoiser of least loss on the training set predicts from x_t the mean of the training images with weights

        w_i = softmax over i of ( - |x_t - sqrt(abar_t) x_i|^2 / (2 (1 - abar_t)) )

    here patch by patch, averaged over places, timesteps and noise. Needs the schedule and no network.

    Args:
        denoiser: Gives the schedule.
        images: Training images. [num_train, C, H, W]
        queries: Queries. [num_queries, C, H, W]
        patch: Side of the square patches that are compared, odd; None compares whole images.
        timesteps: Where; five between a tenth and half of the range by default.
        num_draws: Noises per query and timestep.
        seed: Names the noise.

    Returns:
        Scores, weights that sum to one for every query. [num_queries, num_train]

    Raises:
        ValueError: If ``patch`` is even or not positive.

    Reference:
        Published as "NDA" (ICML 2026), there with the strongest hundred patches.
    """
    num = denoiser.num_train_timesteps
    chosen = [num * tenth // 10 for tenth in range(1, 6)] if timesteps is None else list(timesteps)
    total = torch.zeros(len(queries), len(images), dtype=torch.float64, device="cpu")
    for t in chosen:
        signal, sigma = (
            float(x) for x in denoiser.schedule.signal_and_sigma(torch.tensor([t], dtype=torch.int64, device="cpu"))
        )
        noise = query_noise(seed, range(len(queries)), t, num_draws, tuple(queries.shape[1:]), torch.device("cpu"))
        for draw in range(num_draws):
            x_t = signal * queries.cpu() + sigma * noise[:, draw]
            total += optimal_denoiser_at(denoiser, images, x_t, t, patch=patch)
    return total / (len(chosen) * num_draws)


def optimal_denoiser_at(
    denoiser: Denoiser, images: Tensor, latents: Tensor, timestep: int, *, patch: int | None = 3
) -> Tensor:
    """Score by the weights with which the optimal denoiser averages the training images at latents as they are.

    Args:
        denoiser: Gives the schedule.
        images: Training images. [num_train, C, H, W]
        latents: Noised images, such as one step of ``Trajectory.x_t``. [num_queries, C, H, W]
        timestep: Where they are.
        patch: As for ``optimal_denoiser``.

    Returns:
        Scores, weights that sum to one for every query. [num_queries, num_train]

    Raises:
        ValueError: If ``patch`` is even or not positive.
    """
    if patch is not None and (patch < 1 or patch % 2 == 0):
        raise ValueError(f"patch must be odd and positive, or None, got {patch}")
    signal, sigma = (
        float(x) for x in denoiser.schedule.signal_and_sigma(torch.tensor([timestep], dtype=torch.int64, device="cpu"))
    )
    scaled, rows = signal * images.cpu(), []
    for x_t in latents.cpu():
        distances = (x_t - scaled).square().sum(1)  # [num_train, H, W]
        if patch is None:
            distances = distances.sum((1, 2), keepdim=True)
        else:
            distances = F.avg_pool2d(distances, patch, 1, patch // 2, divisor_override=1)
        rows.append((-distances.double() / (2 * sigma**2)).softmax(0).mean((1, 2)))
    return torch.stack(rows)
