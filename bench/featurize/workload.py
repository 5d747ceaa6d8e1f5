"""What the end-to-end cases run: an untrained UNet with a batch of noised images, in front of a projector."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, NamedTuple, cast

import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor, nn

from bench.case import PROJ_DIM, SEED
from journey import ops
from journey.measure.draws import StratifiedDraws
from journey.measure.featurizer import Featurizer
from journey.measure.measurements import TrainingLoss
from journey.models.denoiser import Denoiser
from journey.ops import reference
from journey.ops.geometry import tap_major
from journey.ops.keys import derive_key
from journey.projectors.base import Projector
from journey.projectors.random import CountSketch

NETWORKS: dict[str, dict[str, Any]] = {
    "4.4M": {
        "block_out_channels": (64, 128, 128),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    },
    # The configuration of google/ddpm-cifar10-32.
    "35.7M": {
        "block_out_channels": (128, 256, 256, 256),
        "layers_per_block": 2,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": None,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
    },
}


class Sizes(NamedTuple):
    """The network, by its parameters and dtype, and a batch: images with their draws, which go through it at once."""

    network: str
    num_samples: int
    num_draws: int
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        """Name them."""
        return (
            f"UNet2DModel {self.network} at 32x32 batch={self.num_samples} draws={self.num_draws} "
            f"proj_dim={PROJ_DIM} {str(self.dtype)[6:]}"
        )


class Workload:
    """A batch of images with their draws, in front of an untrained UNet2DModel.

    Args:
        sizes: Network and batch.
        device: Where they are.
    """

    def __init__(self, sizes: Sizes, device: torch.device) -> None:
        """Make the network and the batch."""
        torch.manual_seed(SEED)
        network = cast(nn.Module, UNet2DModel(sample_size=32, **NETWORKS[sizes.network]))
        # Not the network's own method, which warns of modules that are to stay float32: it has none.
        self.network = nn.Module.to(network.eval(), device, sizes.dtype)
        self.denoiser = Denoiser(self.network, DDPMScheduler())
        self.num_samples, self.num_draws = sizes.num_samples, sizes.num_draws
        self.images = torch.rand(self.num_samples, 3, 32, 32) * 2 - 1
        draws = StratifiedDraws(num_draws=self.num_draws)
        ids = range(self.num_samples)
        self.timesteps = draws.timesteps(ids, self.denoiser.num_train_timesteps)
        self.noise = draws.noise(ids, (3, 32, 32), device)
        self.times = self.timesteps.flatten().to(device)
        self.target = self.noise.flatten(0, 2)
        images = self.images.repeat_interleave(self.num_draws, 0).to(device)
        self.x_t = self.denoiser.add_noise(images, self.target, self.times).to(sizes.dtype)

    def featurizer(self, projector: Projector) -> Featurizer:
        """Return what measures the batch's network."""
        return Featurizer(self.denoiser, measurement=TrainingLoss(), projector=projector)

    def features(self, featurizer: Featurizer) -> Tensor:
        """Featurize the batch, giving [num_samples, proj_dim]."""
        return featurizer.features(self.images, self.timesteps, self.noise)[0].squeeze(1)

    def loss(self, x_t: Tensor) -> Tensor:
        """Return the training loss of the whole batch."""
        prediction: Tensor = self.network(x_t, self.times).sample
        return (self.target - prediction).square().mean()

    def training_step(self) -> None:
        """Run forward and backward with all weight gradients, without an optimiser."""
        self.network.zero_grad(set_to_none=True)
        self.loss(self.x_t).backward()

    @torch.no_grad()
    def forward(self) -> None:
        """Run the network."""
        self.loss(self.x_t)

    def input_gradients(self) -> None:
        """Run forward and the part of backward that every gradient needs: no weight gradient."""
        for p in self.network.parameters():
            p.requires_grad_(False)
        self.loss(self.x_t.clone().requires_grad_()).backward()
        for p in self.network.parameters():
            p.requires_grad_(True)

    def expected_gradients(self, sample: int) -> dict[str, Tensor]:
        """Return a sample's gradient of its mean loss in float64 by plain autograd, by parameter."""
        network = deepcopy(self.network).double()
        rows = slice(sample * self.num_draws, (sample + 1) * self.num_draws)
        prediction = network(self.x_t[rows].double(), self.times[rows]).sample
        (self.target[rows] - prediction).square().mean().backward()
        return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def sketched(grads: dict[str, Tensor], projector: CountSketch) -> Tensor:
    """Return the reference sketch of one sample's gradients, float64 [1, proj_dim]."""
    features = torch.zeros(1, projector.proj_dim, dtype=torch.float64)
    for name, grad in grads.items():
        key = derive_key(projector.seed, "sketch", name)
        features += reference.sketch(_matrix(grad)[None].cpu(), projector.proj_dim, key)
    return features


def projected(grads: dict[str, Tensor], kind: ops.ProjectionKind, seed: int) -> Tensor:
    """Return the dense projection of one sample's gradients, float32 [1, proj_dim].

    By the kernel, since the matrix in float64 would take hours; the cases of ``project`` check the kernel.
    """
    device = next(iter(grads.values())).device
    features = torch.zeros(1, PROJ_DIM, device=device)
    for name, grad in grads.items():
        ops.project_(features, _matrix(grad).float().reshape(1, -1), key=derive_key(seed, kind, name), kind=kind)
    return features


def _matrix(grad: Tensor) -> Tensor:
    """A parameter's gradient as projectors take it. [rows, cols]"""
    return tap_major(grad.flatten(1), grad[0, 0].numel() if grad.dim() > 2 else 1) if grad.dim() > 1 else grad[None]
