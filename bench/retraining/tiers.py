"""Data and sizes of the benchmark: each tier is a configuration of the same code."""

from __future__ import annotations

import gzip
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor

from journey.demo.digits import load_digits_dataset
from journey.evaluate.training import UNetTraining
from journey.models.denoiser import Denoiser

FASHION = Path("/usr/share/datasets/fashion-mnist")  # Debian's dataset-fashion-mnist


@dataclass(frozen=True)
class Tier:
    """One size of the benchmark.

    Args:
        name: Name of its result files.
        load: Loads the images, given ``--data``. [num_images, C, H, W]
        num_train: Training images; held-out queries are taken from the others.
        channels: Channels of the UNet's levels.
        steps: Optimiser steps of a training.
        batch_size: Images per step.
        num_subsets: Random halves that are reported.
        num_tuning: Random halves that choices are made on, and that are never reported. With none, methods keep the
            dampings that they come with.
        num_seeds: Trainings per reported half.
        num_queries: Queries of each kind: training, held-out, generated.
        num_noises: Noises of a response at a single step.
        prediction_type: What the network predicts.
    """

    name: str
    load: Callable[[Path | None], Tensor]
    num_train: int = 256
    channels: tuple[int, ...] = (16, 32)
    steps: int = 400
    batch_size: int = 64
    num_subsets: int = 32
    num_tuning: int = 16
    num_seeds: int = 2
    num_queries: int = 32
    num_noises: int = 32
    prediction_type: str = "v_prediction"

    def images(self, data: Path | None) -> tuple[Tensor, Tensor]:
        """Return training images and held-out queries. [num_train, C, H, W], [num_queries, C, H, W]"""
        images = self.load(data)
        chosen = images[self.order(len(images))[: self.num_train + self.num_queries]]
        return chosen[: self.num_train], chosen[self.num_train :]

    def order(self, num_images: int) -> Tensor:
        """Return the order in which images are taken: training images, then held-out queries. [num_images]"""
        return torch.from_numpy(np.random.RandomState(0).permutation(num_images))  # frozen: the same on every machine

    def training(self, images: Tensor, kind: type[UNetTraining] = UNetTraining) -> UNetTraining:
        """Return how models of this tier are trained."""
        untyped: Any = UNet2DModel
        levels = len(self.channels)
        network = untyped(
            sample_size=images.shape[-1],
            in_channels=images.shape[1],
            out_channels=images.shape[1],
            layers_per_block=1,
            block_out_channels=self.channels,
            down_block_types=("DownBlock2D",) * levels,
            up_block_types=("UpBlock2D",) * levels,
            norm_num_groups=8,
            add_attention=False,
        )
        scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type=self.prediction_type)
        model = Denoiser(network.eval(), scheduler)
        return kind(model, images, steps=self.steps, batch_size=self.batch_size)


def _digits(size: int) -> Callable[[Path | None], Tensor]:
    return lambda _: load_digits_dataset(size).images


def _fashion(data: Path | None) -> Tensor:
    path = (data or FASHION) / "train-images-idx3-ubyte.gz"
    pixels = np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=16).reshape(-1, 1, 28, 28)
    images = torch.from_numpy(pixels[:10_000].copy()).float() / 127.5 - 1
    return F.interpolate(images, size=(16, 16), mode="area")


def _cifar2(data: Path | None) -> Tensor:
    """The automobiles and horses of CIFAR-10's Python version, 5,000 each: whoever has it names its folder."""
    if data is None:
        raise FileNotFoundError("the cifar2 tier needs --data, the folder of CIFAR-10's Python version")
    images = []
    for batch in range(1, 6):
        with (data / f"data_batch_{batch}").open("rb") as file:
            content = pickle.load(file, encoding="bytes")
        kept = np.isin(content[b"labels"], (1, 7))
        images.append(content[b"data"].reshape(-1, 3, 32, 32)[kept])
    return torch.from_numpy(np.concatenate(images)).float() / 127.5 - 1


TIERS = {
    "laptop": Tier("digits8", _digits(8)),
    "digits16": Tier("digits16", _digits(16), num_train=512, steps=600, num_subsets=16, num_tuning=8),
    "fashion": Tier("fashion", _fashion, num_train=512, steps=600, num_subsets=16, num_tuning=8),
    "cifar2": Tier(
        "cifar2",
        _cifar2,
        num_train=5000,
        channels=(128, 256, 256, 256),
        steps=8000,
        batch_size=128,
        num_subsets=64,
        num_seeds=3,
        num_queries=500,
        prediction_type="epsilon",
    ),
}
