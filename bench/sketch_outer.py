"""Per-sample weight gradients of real layers, sketched as they are formed, beside one plain weight gradient."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.case import PROJ_DIM, Case, Context
from bench.harness import Row, checked, measure, relative_error
from journey import ops, reference
from journey.geometry import ConvGeometry

KEY = 0x5EED
NUM_SAMPLES = 8

# Sums over up to 4096 positions in float32 round by some 1e-6, ten times that where a convolution is done by a fast
# transform. One entry of 2.4 million in a wrong bucket changes a sketch by 1e-3.
TOLERANCE = 2e-5


class Layer(NamedTuple):
    """A layer of a denoiser: kernel 0 is a Linear layer over size * size positions."""

    model: str
    c_in: int
    c_out: int
    size: int
    kernel: int

    @property
    def conv(self) -> ConvGeometry | None:
        """How it walks; None for Linear."""
        square = (self.kernel, self.kernel)
        padding = (self.kernel // 2, self.kernel // 2)
        return ConvGeometry(square, (1, 1), padding, (1, 1)) if self.kernel else None

    @property
    def flops_per_row(self) -> float:
        """FLOPs of the weight gradient of one row."""
        return 2.0 * self.c_in * self.c_out * self.size**2 * max(self.kernel, 1) ** 2

    def __str__(self) -> str:
        """Name it."""
        kind = f"conv{self.kernel}x{self.kernel}" if self.kernel else "linear"
        return f"{kind} {self.c_in}->{self.c_out} at {self.size}x{self.size}"


# Of google/ddpm-cifar10-32 (128-256-256-256, 35.7M parameters) and of the small UNet that bench/featurize.py measures.
_CIFAR, _SMALL = "cifar10", "small"
LAYERS = (
    Layer(_CIFAR, 128, 128, 32, 3),
    Layer(_CIFAR, 256, 256, 16, 3),
    Layer(_CIFAR, 256, 256, 8, 3),
    Layer(_CIFAR, 256, 256, 4, 3),
    Layer(_CIFAR, 512, 256, 16, 1),
    Layer(_CIFAR, 256, 256, 16, 0),
    Layer(_CIFAR, 512, 512, 1, 0),
    Layer(_SMALL, 64, 64, 32, 3),
    Layer(_SMALL, 128, 128, 16, 3),
    Layer(_SMALL, 128, 128, 8, 3),
)
_QUICK = (1, 3, 5, 7)


def cases(context: Context) -> Iterator[Case]:
    """Yield the cases: layer and draws per sample."""
    layers = [LAYERS[i] for i in _QUICK] if context.quick else LAYERS
    for num_draws in (1, 4):
        for layer in layers:

            def run(row: Row, layer: Layer = layer, num_draws: int = num_draws) -> None:
                _run(row, context, layer, num_draws)

            yield Case("sketch_outer", f"{layer} ({layer.model}) batch={NUM_SAMPLES} draws={num_draws} float32", run)


def _run(row: Row, context: Context, layer: Layer, num_draws: int) -> None:
    a, g = _capture(context, layer, NUM_SAMPLES * num_draws)
    features = context.zeros(NUM_SAMPLES, PROJ_DIM)
    ops.sketch_outer_(features, a, g, key=KEY, conv=layer.conv)
    last = slice(-num_draws, None)
    expected = reference.sketch_outer(
        a[last].cpu(), g[last].cpu(), PROJ_DIM, KEY, rows_per_group=num_draws, conv=layer.conv
    )
    row.error = checked(relative_error(features[-1:], expected), TOLERANCE)
    materialised = context.zeros(NUM_SAMPLES, PROJ_DIM)
    _unfold_and_sketch(materialised, a, g, layer)
    unfold_error = relative_error(materialised[-1:], expected)

    floor = "one batched weight gradient"
    unfold = "unfold, bmm, sketch of the whole"
    measure(
        row,
        lambda: ops.sketch_outer_(features, a, g, key=KEY, conv=layer.conv),
        effort=context.effort,
        bound=context.ceilings.gemm_bound(len(a) * layer.flops_per_row),
        peers={
            floor: lambda: _batched_weight_grad(a, g, layer.conv),
            unfold: lambda: _unfold_and_sketch(materialised, a, g, layer),
        },
        floor=floor,
    )
    row.ratios[1].error = unfold_error


def _capture(context: Context, layer: Layer, num_rows: int) -> tuple[Tensor, Tensor]:
    """Return a layer's input and output gradient."""
    if layer.kernel:
        shape = (layer.size, layer.size)
        return context.randn(num_rows, layer.c_in, *shape), context.randn(num_rows, layer.c_out, *shape, seed=1)
    positions = layer.size**2
    return context.randn(num_rows, positions, layer.c_in), context.randn(num_rows, positions, layer.c_out, seed=1)


def _batched_weight_grad(a: Tensor, g: Tensor, conv: ConvGeometry | None) -> Tensor:
    """The weight gradient of the whole batch, as a plain training step computes it."""
    if conv is None:
        return g.flatten(0, 1).T @ a.flatten(0, 1)
    weight = torch.empty(1, device=a.device).expand(g.shape[1], a.shape[1], *conv.kernel_size)
    walk = (conv.stride, conv.padding, conv.dilation, False, [0, 0], conv.groups)
    grads: Tensor = torch.ops.aten.convolution_backward(g, a, weight, None, *walk, [False, True, False])[1]
    return grads


def _unfold_and_sketch(features: Tensor, a: Tensor, g: Tensor, layer: Layer) -> None:
    """All per-sample gradients at once by unfold and bmm, then their sketch."""
    num_samples = len(features)
    if layer.conv is not None:
        a = F.unfold(a, layer.conv.kernel_size, padding=layer.conv.padding).transpose(1, 2)
        g = g.flatten(2).transpose(1, 2)
    a = a.reshape(num_samples, -1, a.shape[-1])
    g = g.reshape(num_samples, -1, g.shape[-1])
    ops.sketch_(features, torch.bmm(g.transpose(1, 2), a), key=KEY)
