"""Per-sample weight gradients of real layers, sketched as they are formed, beside the library's weight gradients."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from bench.case import PROJ_DIM, Case, Context
from bench.featurize.layers import CIFAR10, DIT, LORA, SD1, SMALL, Layer
from bench.harness import Row, checked, measure, relative_error
from journey import ops
from journey.ops import reference
from journey.ops.geometry import ConvGeometry, tap_major

KEY = 0x5EED

# Sums over up to 4096 positions in float32 round by some 1e-6, ten times that where a convolution is done by a fast
# transform. One entry of 15 million in a wrong bucket changes a sketch by 5e-4.
TOLERANCE = 2e-5

FLOOR = "one batched weight gradient"
LOOP = "a library weight gradient per sample, each sketched"


def cases(context: Context) -> Iterator[Case]:
    """Yield the cases: layer and draws per sample, with fewer samples where a layer is large."""
    single, narrow = torch.float32, torch.bfloat16
    if context.quick:
        chosen = [(CIFAR10[2], 4, single), (CIFAR10[5], 4, single), (CIFAR10[9], 4, single), (DIT[0], 1, single)]
        chosen.append((CIFAR10[2], 4, narrow))
    else:
        chosen = [(layer, 1, single) for layer in (*SMALL, *CIFAR10)]
        chosen += [(layer, 4, single) for layer in (*SMALL, *CIFAR10, *SD1, *DIT, *LORA)]
        chosen += [(layer, 4, narrow) for layer in (*CIFAR10, *DIT, *LORA)]
    for layer, num_draws, dtype in chosen:
        num_samples = 8 if layer.model in ("small", "cifar10", "lora128") else 2
        run = partial(_run, context=context, layer=layer, num_samples=num_samples, num_draws=num_draws, dtype=dtype)
        yield Case("sketch_outer", f"{layer} batch={num_samples} draws={num_draws} {str(dtype)[6:]}", run)


def _run(row: Row, *, context: Context, layer: Layer, num_samples: int, num_draws: int, dtype: torch.dtype) -> None:
    a, g = (x.to(dtype) for x in _capture(context, layer, num_samples * num_draws))
    features = context.zeros(num_samples, PROJ_DIM)
    ops.sketch_outer_(features, a, g, key=KEY, conv=layer.conv)
    last = slice(-num_draws, None)
    expected = reference.sketch_outer(
        a[last].cpu(), g[last].cpu(), PROJ_DIM, KEY, rows_per_group=num_draws, conv=layer.conv
    )
    row.error = checked(relative_error(features[-1:], expected), TOLERANCE)
    looped = context.zeros(num_samples, PROJ_DIM)
    _loop_and_sketch(looped, a, g, layer.conv)
    loop_error = relative_error(looped[-1:], expected)

    measure(
        row,
        lambda: ops.sketch_outer_(features, a, g, key=KEY, conv=layer.conv),
        effort=context.effort,
        bound=context.ceilings.gemm_bound(len(a) * layer.flops_per_row, dtype),
        peers={
            FLOOR: lambda: _weight_grad(a, g, layer.conv),
            LOOP: lambda: _loop_and_sketch(looped, a, g, layer.conv),
        },
        floor=FLOOR,
    )
    row.ratios[1].error = loop_error


def _capture(context: Context, layer: Layer, num_rows: int) -> tuple[Tensor, Tensor]:
    """Return a layer's input and output gradient."""
    if layer.conv is None:
        a, g = (num_rows, *layer.size, layer.c_in), (num_rows, *layer.size, layer.c_out)
    else:
        a, g = (num_rows, layer.c_in, *layer.size), (num_rows, layer.c_out, *layer.output_size)
    return context.randn(*a), context.randn(*g, seed=1)


def _weight_grad(a: Tensor, g: Tensor, conv: ConvGeometry | None) -> Tensor:
    """The weight gradient summed over all rows, as a plain training step computes it."""
    if conv is None:
        return g.flatten(0, 1).T @ a.flatten(0, 1)
    weight = torch.empty(1, dtype=a.dtype, device=a.device).expand(g.shape[1], a.shape[1], *conv.kernel_size)
    walk = (conv.stride, conv.padding, conv.dilation, False, [0, 0], conv.groups)
    grads: Tensor = torch.ops.aten.convolution_backward(g, a, weight, None, *walk, [False, True, False])[1]
    return grads


def _loop_and_sketch(features: Tensor, a: Tensor, g: Tensor, conv: ConvGeometry | None) -> None:
    """One library call per sample over its draws, whose result is sketched while it is in cache."""
    num_samples = len(features)
    for i, (a_i, g_i) in enumerate(zip(a.chunk(num_samples), g.chunk(num_samples), strict=True)):
        grads = _weight_grad(a_i, g_i, conv).flatten(1)[None]
        ops.sketch_(features[i : i + 1], tap_major(grads, 1 if conv is None else conv.kernel_positions), key=KEY)
