"""Small denoisers, datasets and the slow oracle that the tests of the Python layers share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from inspect import signature
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import randn
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DModel
from torch import Tensor, nn

from journey.gradients.engine import GradientEngine
from journey.projectors.exact import Identity

NUM_TRAIN_TIMESTEPS = 100
IMAGE = (1, 8, 8)


def make_scheduler(prediction_type: str = "epsilon", **changes: Any) -> DDPMScheduler:
    """A short noise schedule; beta_end is large, so that its last timesteps are almost noise."""
    fields = {"num_train_timesteps": NUM_TRAIN_TIMESTEPS, "beta_end": 0.2, "prediction_type": prediction_type}
    return DDPMScheduler(**{**fields, **changes})


def need_stochastic_flow() -> None:
    """Skip a test where diffusers is too old to sample flows stochastically."""
    if "stochastic_sampling" not in signature(FlowMatchEulerDiscreteScheduler.__init__).parameters:
        pytest.skip("needs a newer diffusers, with stochastic_sampling")


def make_unet(seed: int = 0, **changes: Any) -> UNet2DModel:
    """A diffusers UNet of 45,000 parameters for 8x8 grey images, with attention, in eval mode."""
    fields: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "layers_per_block": 1,
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "attention_head_dim": 4,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    torch.manual_seed(seed)
    return UNet2DModel(**{**fields, **changes}).eval()


class SmallDenoiser(nn.Module):
    """A denoiser of 193 parameters: a convolution, a time embedding, a norm, a convolution. Takes 8x8 grey images."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.config = SimpleNamespace(in_channels=1, sample_size=8)
        self.inward = nn.Conv2d(1, 8, 3, padding=1)
        self.time = nn.Linear(2, 8)
        self.norm = nn.GroupNorm(4, 8)
        self.outward = nn.Conv2d(8, 1, 3, padding=1)
        self.eval()

    def forward(self, x_t: Tensor, timesteps: Tensor) -> Tensor:
        angle = timesteps.to(x_t) / NUM_TRAIN_TIMESTEPS
        embedding = self.time(torch.stack([angle.sin(), angle.cos()], 1))
        return self.outward(F.silu(self.norm(self.inward(x_t) + embedding[:, :, None, None])))


class LinearDenoiser(nn.Module):
    """A denoiser that is linear in its parameters: a pointwise convolution of the image and its square.

    Its training loss is quadratic in the parameters, so what a gradient step does to a loss is known in closed form.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.config = SimpleNamespace(in_channels=1, sample_size=8)
        self.mix = nn.Conv2d(2, 1, 1)
        self.eval()

    def forward(self, x_t: Tensor, timesteps: Tensor) -> Tensor:
        return self.mix(torch.cat([x_t, x_t.square()], 1))


class Images:
    """A map-style dataset of images in memory. [num_samples, C, H, W]."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def make_images(num_samples: int, seed: int = 7) -> Tensor:
    """Different images within [-1, 1]. [num_samples, 1, 8, 8]."""
    return torch.tanh(randn(num_samples, *IMAGE, seed=seed))


def one_at_a_time(model: nn.Module, values: Callable[[slice], Tensor], num_groups: int, rows_per_group: int) -> Tensor:
    """The gradient of each group's mean value by autograd, one group after the other. [num_groups, grad_dim]."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    rows = []
    for group in range(num_groups):
        loss = values(slice(group * rows_per_group, (group + 1) * rows_per_group)).mean()
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        pairs = zip(found, parameters, strict=True)
        rows.append(torch.cat([(torch.zeros_like(p) if grad is None else grad).flatten() for grad, p in pairs]))
    return torch.stack(rows)


def per_sample(
    model: nn.Module, values: Callable[[slice], Tensor], num_groups: int, rows_per_group: int, **options: Any
) -> Tensor:
    """The same by the engine. [num_groups, grad_dim]."""
    engine = GradientEngine(model, **options)
    features = torch.zeros(num_groups, engine.num_parameters)
    engine.add_gradients_(features, values, num_rows=num_groups * rows_per_group, projector=Identity())
    return features


def split(model: nn.Module, grads: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Cut flat gradients into those of each trainable parameter. Each [num_groups, numel]."""
    named = [(name, p.numel()) for name, p in model.named_parameters() if p.requires_grad]
    sizes = [numel for _, numel in named]
    for (name, _), piece in zip(named, grads.split(sizes, dim=1), strict=True):
        yield name, piece


def assert_same_gradients(model: nn.Module, actual: Tensor, expected: Tensor, *, may_be_zero: bool = False) -> None:
    """Hold every sample's gradient of every parameter to 1e-5 of its norm or 1e-6 of the sample's whole gradient.

    Both sides sum the same float32 products in another order, so their difference is a small multiple of 6e-8; the
    second bound is for parameters whose true gradient is zero, such as the key biases of softmax attention.
    """
    assert actual.shape == expected.shape
    whole = expected.norm(dim=1)
    assert may_be_zero or (whole > 0).all(), "a test with zero gradients proves nothing"
    pairs = zip(split(model, actual), split(model, expected), strict=True)
    for (name, found), (_, wanted) in pairs:
        difference, norm = (found - wanted).norm(dim=1), wanted.norm(dim=1)
        bound = torch.maximum(1e-5 * norm, 1e-6 * whole)
        worst = int((difference / bound).argmax())
        assert (difference <= bound).all(), (
            f"{name}: sample {worst} differs by {difference[worst]:.2e} of a gradient of norm {norm[worst]:.2e}"
        )
