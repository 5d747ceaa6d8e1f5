"""Shapes, inputs and yardsticks that the kernel tests share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from journey.ops.geometry import ConvGeometry

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

KEY = 0x243F6A8885A308D3  # any 64-bit number; its top bit is clear
HIGH_KEY = 0xA4093822299F31D0  # one that does not fit a signed 64-bit integer
KEYS = st.integers(0, 2**64 - 1)

# [rows, cols]: empty, one entry, around the 32 lanes, around a tile of proj_dim 1024 (32 rows), primes.
MATRICES = [(0, 5), (5, 0), (1, 1), (1, 31), (1, 32), (1, 33), (31, 33), (32, 32), (33, 31), (7, 97), (101, 131)]


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normals from a generator of their own, made in float32 on the CPU. [*shape]."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def integers(*shape: int, seed: int = 0) -> Tensor:
    """Integers in [-8, 8] as float32: a few thousand of them add up exactly in any order. [*shape]."""
    return torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(seed)).float()


def unit_pair(*shape: int, related: bool) -> tuple[Tensor, Tensor]:
    """Two unit vectors whose entries have a mean far from zero, so that signs that are not independent bias estimates.

    Unrelated ones still have a cosine of about 0.5, related ones nearly 1. [*shape], [*shape].
    """
    x, y = 1 + randn(*shape, seed=1), 1 + randn(*shape, seed=2)
    if related:
        y = x + 0.1 * y
    return x / x.norm(), y / y.norm()


def largest_error(result: Tensor, expected: Tensor) -> float:
    """Largest absolute difference from a float64 result on the CPU; 0 for empty tensors."""
    assert result.shape == expected.shape, f"shape {list(result.shape)}, expected {list(expected.shape)}"
    return (result.double().cpu() - expected).abs().max().item() if expected.numel() else 0.0


def assert_same_but_for_rounding(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Hold what a network gave twice to one another: every entry within a fraction of the largest.

    Torch's matrix products sum in an order that depends on the processor, on where weights and inputs lie in memory, on
    the size of the batch and on the number of threads. So weights that were loaded, copied or built again give a layer
    whose float32 outputs are off by about 1e-7 of their scale, and a network of layers some times that. Equal bits are
    asked of our own kernels, of tensors that are only moved, of keyed noise, and of what the library promises: equal
    runs, and stores that shards, processes and deaths do not change, whose rows go through equal passes.
    """
    assert found.shape == expected.shape, f"shape {list(found.shape)}, expected {list(expected.shape)}"
    error, largest = (found - expected).abs().max().item(), expected.abs().max().item()
    assert error <= tolerance * largest, f"off by {error:.1e}, the largest entry is {largest:.1e}"


def assert_exact_to(actual: Tensor, expected: Tensor, plain_error: float) -> None:
    """Hold a float32 result to twice the largest error of plain torch float32 plus four ulps of the largest entry.

    Storing and scaling cost an ulp. The rest is because the largest of a few errors is a noisy yardstick: without it a
    lucky result of torch, which other processors compute in another order, would forbid honest rounding.
    """
    error = largest_error(actual, expected)
    atol = 4 * torch.finfo(torch.float32).eps * (expected.abs().max().item() if expected.numel() else 0.0)
    assert error <= 2 * plain_error + atol, f"error {error:.3e}; plain torch has {plain_error:.3e}, atol is {atol:.3e}"


def assert_as_exact_as_torch(actual: Tensor, plain: Tensor, expected: Tensor) -> None:
    """Hold a float32 result to the error that plain torch float32 makes on the same problem, see above."""
    assert_exact_to(actual, expected, largest_error(plain, expected))


def assert_estimates(estimates: Tensor, truth: float, variance: float, what: str) -> None:
    """Check that independent estimates have the right mean and, to 15 % in standard deviation, the right spread."""
    count = estimates.numel()
    mean, deviation = estimates.mean().item(), (estimates - truth).square().mean().sqrt().item()
    standard_error = math.sqrt(variance / count)
    assert abs(mean - truth) < 5 * standard_error, (
        f"{what}: mean {mean:.4f}, true value {truth:.4f}, standard error {standard_error:.4f}. "
        "A factor of nnz or proj_dim points to a missing 1/sqrt; a small shift to signs that are not independent."
    )
    ratio = deviation / math.sqrt(variance)
    assert 0.85 < ratio < 1.15, (
        f"{what}: RMS error is {ratio:.3f} of theory. Above 1 points to collisions that should not happen, "
        "below 1 to entries that are dropped or kept apart."
    )


def as_matrix(weight: Tensor) -> Tensor:
    """A parameter, or its gradient, as the matrix that a sketch takes: columns tap by tap, channels last. [rows, cols].

    Said again without the library's ``tap_major``, to which it is compared.
    """
    return weight.movedim(1, -1).flatten(1) if weight.dim() > 1 else weight[None]


@dataclass(frozen=True)
class Conv:
    """One convolution: channels, size of the input, and geometry, one entry of each tuple per spatial axis."""

    c_in: int
    c_out: int
    size: tuple[int, ...]
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1

    @property
    def geometry(self) -> ConvGeometry:
        """What the operations take."""
        return ConvGeometry(self.kernel_size, self.stride, self.padding, self.dilation, self.groups)

    @property
    def size_out(self) -> tuple[int, ...]:
        """Spatial size of the output."""
        axes = zip(self.size, self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes)


CONVS = {
    "3d": Conv(2, 3, (4, 5, 3), (2, 3, 1), (1, 2, 1), (1, 0, 0), (1, 1, 1)),
    "1d": Conv(3, 5, (11,), (3,), (1,), (1,), (1,)),
    "1d, stride, dilation, groups": Conv(4, 6, (17,), (4,), (3,), (5,), (2,), groups=2),
    "1x1": Conv(5, 7, (4, 3), (1, 1), (1, 1), (0, 0), (1, 1)),
    "1x1, stride": Conv(5, 7, (4, 5), (1, 1), (2, 2), (0, 0), (1, 1)),
    "1x1, padding": Conv(5, 7, (4, 3), (1, 1), (1, 1), (1, 1), (1, 1)),
    "1x1, groups": Conv(6, 9, (4, 3), (1, 1), (1, 1), (0, 0), (1, 1), groups=3),
    "3x3": Conv(6, 8, (8, 8), (3, 3), (1, 1), (1, 1), (1, 1)),
    "3x3, larger image": Conv(4, 7, (13, 11), (3, 3), (1, 1), (1, 1), (1, 1)),
    "3x3, no padding": Conv(3, 4, (5, 6), (3, 3), (1, 1), (0, 0), (1, 1)),
    "3x3, stride": Conv(4, 5, (9, 8), (3, 3), (2, 2), (1, 1), (1, 1)),
    "3x3, dilation": Conv(4, 5, (9, 9), (3, 3), (1, 1), (2, 2), (2, 2)),
    "groups": Conv(6, 9, (5, 5), (3, 3), (1, 1), (1, 1), (1, 1), groups=3),
    "depthwise": Conv(8, 8, (6, 6), (3, 3), (1, 1), (1, 1), (1, 1), groups=8),
    "every axis different": Conv(4, 6, (10, 13), (3, 2), (2, 3), (0, 4), (3, 1), groups=2),
    "kernel as large as the image": Conv(3, 40, (4, 4), (4, 4), (1, 1), (0, 0), (1, 1)),
    "wide": Conv(33, 67, (4, 4), (3, 3), (1, 1), (1, 1), (1, 1)),
    "input that no output sees": Conv(3, 5, (8, 8), (2, 2), (5, 5), (0, 0), (1, 1)),
}


def layer_tensors(
    conv: Conv, rows: int, dtype: torch.dtype = torch.float32, make: Callable[..., Tensor] = randn
) -> tuple[Tensor, Tensor]:
    """Input and output gradient of a convolution. [rows, c_in, *size], [rows, c_out, *size_out]."""
    a = make(rows, conv.c_in, *conv.size, seed=1).to(dtype)
    return a, make(rows, conv.c_out, *conv.size_out, seed=2).to(dtype)
