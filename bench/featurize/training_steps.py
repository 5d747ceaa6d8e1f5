"""What the default costs in training steps on two architectures: ``python -m bench.featurize.training_steps``.

Two images of four draws each, in two groups of draws as ``journey.featurize`` measures them, beside a training step on
the same eight rows; calls take turns, and medians are compared.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers import DDPMScheduler, DiTTransformer2DModel, UNet2DModel
from torch import Tensor, nn

from journey.measure.featurizer import Featurizer
from journey.measure.measurements import TrainingLoss
from journey.models.condition import Condition
from journey.models.load import as_denoiser
from journey.projectors.random import CountSketch
from journey.projectors.scaled import Scaled

IMAGES, DRAWS, ROUNDS = 2, 4, 6


def main() -> int:
    """Print the ratios; the first round does not count."""
    for name, network, channels in (("UNet", make_unet(), 3), ("DiT, 256 tokens", make_dit(), 4)):
        millions = sum(p.numel() for p in network.parameters()) / 1e6
        seconds: dict[str, list[float]] = {}
        calls = make_calls(network, channels)
        for _ in range(ROUNDS):
            for call, run in calls.items():
                begin = time.perf_counter()
                run()
                seconds.setdefault(call, []).append(time.perf_counter() - begin)
        medians = {call: statistics.median(found[1:]) for call, found in seconds.items()}
        for call in ("count sketch", "default"):
            ratio = medians[call] / medians["training step"]
            print(f"{name}, {millions:.1f}M parameters: {call} costs {ratio:.2f} training steps")
    return 0


def make_unet() -> nn.Module:
    """Return the UNet of 35.7M parameters for images of 32x32."""
    untyped: Any = UNet2DModel
    return untyped(  # type: ignore[no-any-return]
        sample_size=32,
        in_channels=3,
        out_channels=3,
        layers_per_block=2,
        block_out_channels=(128, 256, 256, 256),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    ).eval()


def make_dit() -> nn.Module:
    """Return a DiT of linear layers, hidden size 384, six layers."""
    untyped: Any = DiTTransformer2DModel
    fields = {"num_attention_heads": 6, "attention_head_dim": 64, "in_channels": 4, "out_channels": 4}
    return untyped(**fields, num_layers=6, sample_size=32, patch_size=2, num_embeds_ada_norm=10).eval()  # type: ignore[no-any-return]


def make_calls(network: nn.Module, channels: int) -> dict[str, Callable[[], object]]:
    """Return a training step, a pass with plain sketches, and one by the default."""
    torch.manual_seed(0)
    scheduler: Any = DDPMScheduler()
    for p in network.parameters():
        if not p.any():
            p.data.normal_(0, 0.02)  # a DiT begins with gates that are zero
    denoiser = as_denoiser((network, scheduler))
    told = isinstance(network, DiTTransformer2DModel)
    labels = torch.arange(IMAGES)
    shape = (channels, 32, 32)
    x0, noise = torch.randn(IMAGES, *shape), torch.randn(IMAGES, DRAWS, *shape)
    times = torch.randint(0, 1000, (IMAGES, DRAWS))

    def measure(groups: int, projector: CountSketch | Scaled) -> Callable[[], object]:
        featurizer = Featurizer(denoiser, measurement=TrainingLoss(), projector=projector)
        condition = Condition({"class_labels": labels}) if told else None
        grouped = times.view(IMAGES, groups, -1), noise.view(IMAGES, groups, -1, *shape)
        return lambda: featurizer.features(x0, *grouped, condition=condition)

    def step() -> None:
        network.requires_grad_(True)
        rows, e, t = x0.repeat_interleave(DRAWS, 0), noise.flatten(0, 1), times.flatten()
        given: dict[str, Tensor] = {"class_labels": labels.repeat_interleave(DRAWS)} if told else {}
        output: Any = network(scheduler.add_noise(rows, e, t), timestep=t, **given)
        torch.autograd.backward((output.sample - e).square().mean())
        network.zero_grad()

    scales = {name: 1.5 for name, _ in network.named_parameters()}
    return {
        "training step": step,
        "count sketch": measure(1, CountSketch(4096)),
        "default": measure(2, Scaled(CountSketch(4096), scales)),
    }


if __name__ == "__main__":
    sys.exit(main())
