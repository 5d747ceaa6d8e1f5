"""The layers that the bench measures are layers of the models it names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel
from torch import Tensor, nn

from bench.featurize.layers import CIFAR10, DIT, LORA, SD1, SMALL
from bench.featurize.workload import NETWORKS

# input features, output features, kernel, stride, size of the input
Shape = tuple[int, int, int, int, tuple[int, ...]]


def shapes_in(network: nn.Module, *args: Any, **kwargs: Any) -> set[Shape]:
    found: set[Shape] = set()

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            kernel, stride = module.kernel_size[0], module.stride[0]
            found.add((module.in_channels, module.out_channels, kernel, stride, tuple(inputs[0].shape[2:])))
        elif isinstance(module, nn.Linear):
            tokens = tuple(inputs[0].shape[1:-1]) or (1,)
            found.add((module.in_features, module.out_features, 0, 1, tokens))

    for module in network.modules():
        module.register_forward_hook(note)
    network(*args, **kwargs)
    return found


def unet(name: str) -> set[Shape]:
    network: Any = UNet2DModel(sample_size=32, **NETWORKS[name])
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    assert f"{millions:.1f}M" == name
    return shapes_in(network, torch.randn(1, 3, 32, 32), torch.zeros(1))


def stable_diffusion() -> set[Shape]:
    network: Any = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    text = torch.randn(1, 77, 768)
    return shapes_in(network, torch.randn(1, 4, 64, 64), torch.zeros(1), encoder_hidden_states=text)


def dit() -> set[Shape]:
    network: Any = DiTTransformer2DModel(
        num_attention_heads=16,
        attention_head_dim=72,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=32,
        patch_size=2,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
    )
    label = torch.zeros(1, dtype=torch.long)
    return shapes_in(network, torch.randn(1, 4, 32, 32), label, label)


@pytest.mark.parametrize(
    ("layers", "model"),
    [
        (SMALL, lambda: unet("4.4M")),
        (CIFAR10, lambda: unet("35.7M")),
        (SD1, stable_diffusion),
        (DIT, dit),
    ],
    ids=["small", "cifar10", "sd1", "dit-xl/2"],
)
def test_every_layer_is_one_of_its_model(layers: Any, model: Any) -> None:
    with torch.device("meta"):
        present = model()
    assert {(layer.c_in, layer.c_out, layer.kernel, layer.stride, layer.size) for layer in layers} <= present


def test_every_lora_layer_is_a_half_of_rank_128_beside_an_attention_layer() -> None:
    with torch.device("meta"):
        present = stable_diffusion()
    for layer in LORA:
        assert 128 in layer.matrix
        width = max(layer.c_in, layer.c_out)
        assert (width, width, 0, 1, layer.size) in present


def test_a_layer_knows_its_output_and_its_flops() -> None:
    strided = CIFAR10[7]
    assert strided.stride == 2
    with torch.device("meta"):
        conv = nn.Conv2d(strided.c_in, strided.c_out, strided.kernel, stride=strided.stride)
        output = conv(torch.randn(1, strided.c_in, *strided.size))
    assert strided.output_size == tuple(output.shape[2:])
    assert strided.flops_per_row == 2 * conv.weight.numel() * output[0, 0].numel()
