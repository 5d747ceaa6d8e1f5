"""The demo's data and model: scikit-learn's handwritten digits and a small DDPM trained on them.

1,797 real images that need no download, and a UNet that draws readable digits after two minutes on two CPU cores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from journey.demo.fit import fit, make_scheduler


class DigitsItem(TypedDict):
    """One training example."""

    image: Tensor  # [1, size, size]
    label: int


@dataclass(frozen=True)
class DigitsDataset:
    """Handwritten digits as a map-style dataset; an item is ``{"image": [1, size, size], "label": int}``.

    Attributes:
        images: Grey images in [-1, 1], float32; ink is +1. [num_samples, 1, size, size]
        labels: The digit that each image shows, int64. [num_samples]
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> DigitsItem:
        """One image with its label."""
        return {"image": self.images[index], "label": int(self.labels[index])}


def load_digits_dataset(size: int = 16) -> DigitsDataset:
    """Load scikit-learn's 1,797 handwritten digits, enlarged from 8x8 by bilinear interpolation.

    Args:
        size: Side of the images in pixels; a multiple of 4, because the UNet halves it and the eye wants whole strokes.

    Returns:
        The dataset, in scikit-learn's order. Nothing is downloaded: the images are part of the scikit-learn package.

    Raises:
        ModuleNotFoundError: If scikit-learn is not installed.
        ValueError: If ``size`` is not a positive multiple of 4.
    """
    if size <= 0 or size % 4:
        raise ValueError(f"size must be a positive multiple of 4, got {size}")
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        message = 'the digits are part of scikit-learn, which is not installed: pip install "journey-attribution[demo]"'
        raise ModuleNotFoundError(message, name="sklearn") from error
    bunch = load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32, device="cpu")[:, None] / 8 - 1  # ink 0..16 -> [-1, 1]
    images = F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
    return DigitsDataset(images.contiguous(), torch.tensor(bunch.target, dtype=torch.int64, device="cpu"))


def build_unet(size: int = 16, *, seed: int = 0) -> nn.Module:
    """Build the demo's denoiser: two levels of 16 and 32 channels, one ResNet layer each, 160 thousand parameters.

    Args:
        size: Side of the images in pixels.
        seed: Seed of the initial weights. The global random state is neither read nor changed.

    Returns:
        The untrained ``UNet2DModel``, float32, on the CPU.
    """
    from diffusers import UNet2DModel

    untyped: Any = UNet2DModel  # diffusers carries no types
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = untyped(
            sample_size=size,
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=(16, 32),
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            norm_num_groups=8,
            add_attention=False,
        )
    return model


def train(
    dataset: DigitsDataset,
    *,
    steps: int = 1200,
    batch_size: int = 64,
    learning_rate: float = 4e-3,
    seed: int = 0,
    progress: bool = True,
) -> tuple[nn.Module, Any]:
    """Train the demo's DDPM from scratch on the CPU.

    Minimises ``mean((v - model(x_t, t))**2)`` with Adam and a learning rate that rises over the first steps and falls
    to zero along a cosine. The model predicts the velocity ``v`` under a cosine noise schedule: at images this small a
    linear one is pure noise half of the time. 1,200 steps of 64 images at 16x16 take about 110 seconds on two cores.

    Args:
        dataset: The training images.
        steps: Optimiser steps.
        batch_size: Images per step, drawn with replacement.
        learning_rate: The highest rate.
        seed: Seed of weights, batches, timesteps and noise. The global random state is neither read nor changed, and
            equal seeds give bitwise equal weights for an equal number of threads.
        progress: Show a progress bar with the loss.

    Returns:
        The ``UNet2DModel`` in eval mode, holding the exponential moving average of its weights, and its
        ``DDPMScheduler``.

    Raises:
        ValueError: If ``dataset`` is empty, or ``steps``, ``batch_size`` or ``learning_rate`` is not positive.
    """
    model = build_unet(dataset.images.shape[-1], seed=seed)
    fit(
        model,
        dataset.images,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        progress=progress,
    )
    return model, make_scheduler()


def knn_labels(images: Tensor, dataset: DigitsDataset, k: int = 5) -> Tensor:
    """Name the digit in each image: the most frequent label among its nearest training images, pixel by pixel.

    Args:
        images: Generated images in [-1, 1]. [num_images, 1, size, size]
        dataset: The labelled images.
        k: Neighbours that vote. A tie goes to the tied label that owns the nearest of them.

    Returns:
        Labels, int64. [num_images]

    Raises:
        ValueError: If the images' shapes differ from the dataset's, or ``k`` is not in 1..len(dataset).
    """
    shape = list(dataset.images.shape[1:])
    if list(images.shape[1:]) != shape:
        raise ValueError(f"images must be [num_images, {', '.join(map(str, shape))}], got {list(images.shape)}")
    if not 1 <= k <= len(dataset):
        raise ValueError(f"k must be in 1..{len(dataset)}, the dataset's size, got {k}")
    distances = torch.cdist(images.detach().float().cpu().flatten(1), dataset.images.flatten(1))
    nearest = dataset.labels[distances.topk(k, largest=False, sorted=True).indices]  # [num_images, k]
    # A neighbour's vote is 1 plus 2^-(rank+1): those extras add up to less than one vote, and a nearer neighbour's
    # outweighs all farther ones together, so they break ties and nothing else.
    votes = 1 + 0.5 ** torch.arange(1, k + 1, dtype=torch.float64, device="cpu")
    counts = torch.zeros(len(images), int(dataset.labels.max()) + 1, dtype=torch.float64, device="cpu")
    counts.scatter_add_(1, nearest, votes.expand(len(images), k).contiguous())
    return counts.argmax(dim=1)
