"""Layers of real denoisers: the shapes that the operations are measured at."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from journey.ops.geometry import ConvGeometry


class Layer(NamedTuple):
    """A layer of a denoiser.

    Args:
        model: Where it stands.
        c_in: Input channels or features.
        c_out: Output channels or features.
        kernel: Side of the kernel, square; 0 is a Linear layer.
        size: Height and width of the input of a convolution, or the tokens of a Linear layer.
        stride: Of a convolution; padding keeps the size where it is 1, and is part of the input otherwise.
    """

    model: str
    c_in: int
    c_out: int
    kernel: int
    size: tuple[int, ...]
    stride: int = 1

    @property
    def conv(self) -> ConvGeometry | None:
        """How it walks; None for Linear."""
        if not self.kernel:
            return None
        side = self.kernel // 2 if self.stride == 1 else 0
        return ConvGeometry((self.kernel,) * 2, (self.stride,) * 2, (side, side), (1, 1))

    @property
    def output_size(self) -> tuple[int, ...]:
        """Height and width of the output, or the tokens."""
        if self.stride == 1:
            return self.size
        return tuple((side - self.kernel) // self.stride + 1 for side in self.size)

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and columns of the weight as the sketch sees it."""
        return self.c_out, self.c_in * max(self.kernel, 1) ** 2

    @property
    def flops_per_row(self) -> float:
        """FLOPs of the weight gradient of one row."""
        return 2.0 * prod(self.matrix) * prod(self.output_size)

    def __str__(self) -> str:
        """Name it."""
        kind = f"conv{self.kernel}x{self.kernel}" if self.kernel else "linear"
        walk = f"/{self.stride}" if self.stride > 1 else ""
        return f"{kind}{walk} {self.c_in}->{self.c_out} at {'x'.join(map(str, self.size))} ({self.model})"


# Of each model the shapes that hold most of its FLOPs or most of its parameters, and those that are hard for a kernel:
# few positions, one column, a stride.
CIFAR10 = tuple(  # UNet2DModel 128-256-256-256 at 32x32, 35.7M parameters
    Layer("cifar10", *shape)
    for shape in (
        (128, 128, 3, (32, 32)),
        (256, 256, 3, (32, 32)),
        (256, 256, 3, (16, 16)),
        (512, 256, 3, (16, 16)),
        (256, 256, 3, (8, 8)),
        (256, 256, 3, (4, 4)),
        (512, 256, 3, (4, 4)),
        (256, 256, 3, (17, 17), 2),
        (512, 256, 1, (16, 16)),
        (256, 256, 0, (256,)),
        (512, 512, 0, (1,)),
    )
)
SD1 = tuple(  # UNet2DConditionModel of Stable Diffusion 1.x at 64x64 latents, 860M parameters
    Layer("sd1", *shape)
    for shape in (
        (320, 320, 3, (64, 64)),
        (640, 640, 3, (32, 32)),
        (1280, 1280, 3, (16, 16)),
        (1280, 1280, 3, (8, 8)),
        (320, 320, 0, (4096,)),
        (320, 2560, 0, (4096,)),
        (1280, 10240, 0, (256,)),
        (768, 1280, 0, (77,)),
    )
)
DIT = tuple(  # DiT-XL/2 at 32x32 latents
    Layer("dit-xl/2", *shape)
    for shape in (
        (1152, 1152, 0, (256,)),
        (1152, 4608, 0, (256,)),
        (4608, 1152, 0, (256,)),
        (1152, 6912, 0, (1,)),
    )
)
LORA = tuple(  # LoRA of rank 128 on the attention of Stable Diffusion 1.x
    Layer("lora128", *shape)
    for shape in (
        (320, 128, 0, (4096,)),
        (128, 320, 0, (4096,)),
        (1280, 128, 0, (256,)),
        (128, 1280, 0, (256,)),
    )
)
SMALL = tuple(  # the UNet of 4.4M parameters in bench/featurize/workload.py
    Layer("small", *shape)
    for shape in (
        (64, 64, 3, (32, 32)),
        (128, 128, 3, (16, 16)),
        (128, 128, 3, (8, 8)),
    )
)
