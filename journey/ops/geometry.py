"""How a convolution walks over its input, and how its weight is a matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

from torch import Tensor


@dataclass(frozen=True)
class ConvGeometry:
    """Kernel and walk of a convolution over 1, 2 or 3 spatial dimensions, zero-padded.

    Args:
        kernel_size: Kernel positions per spatial dimension.
        stride: Input positions between two output positions.
        padding: Zeros added on both sides.
        dilation: Input positions between two kernel positions.
        groups: Blocks of channels that do not see each other.

    Raises:
        ValueError: If there are not as many numbers for each spatial dimension, or one is too small.
    """

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name, least in (("kernel_size", 1), ("stride", 1), ("padding", 0), ("dilation", 1)):
            given = getattr(self, name)
            if len(given) != len(self.kernel_size) or min(given, default=0) < least:
                raise ValueError(
                    f"{name} must be {len(self.kernel_size) or '1, 2 or 3'} numbers of at least {least}, one for each "
                    f"spatial dimension, got {given!r}"
                )
        if self.groups < 1:
            raise ValueError(f"groups must be positive, got {self.groups}")

    @property
    def spatial_dims(self) -> int:
        """Number of spatial dimensions: 1, 2 or 3."""
        return len(self.kernel_size)

    @property
    def kernel_positions(self) -> int:
        """Number of kernel positions, the product of ``kernel_size``."""
        return prod(self.kernel_size)

    @cached_property
    def numbers(self) -> tuple[int, ...]:
        """All of it as the 14 numbers that the registered op takes for each of many layers."""
        walk = ((self.kernel_size, 1), (self.stride, 1), (self.padding, 0), (self.dilation, 1))
        return self.spatial_dims, *(size for sizes, fill in walk for size in three(sizes, fill)), self.groups

    @property
    def is_pointwise(self) -> bool:
        """Whether every output position sees exactly the same input position and all channels."""
        ones = (1,) * self.spatial_dims
        return self.kernel_size == ones == self.stride and not any(self.padding) and self.groups == 1


LINEAR_NUMBERS = (0, *[1] * 6, *[0] * 3, *[1] * 4)
"""Those of a Linear layer: a kernel of one, in no dimension."""


def three(sizes: Sequence[int], fill: int) -> tuple[int, ...]:
    """Return sizes of the last dimensions, with leading ``fill`` where there are fewer than three."""
    return (fill,) * (3 - len(sizes)) + tuple(sizes)


def tap_major(weights: Tensor, taps: int) -> Tensor:
    """Reorder the columns of a convolution's weight, or of what belongs to them, as its matrix has them.

    The one place that says how a weight ``[c_out, channels, *kernel_size]`` is a matrix: column
    ``tap * channels + channel``, neighbouring columns are neighbouring channels, as in images that have channels last.
    Every parameter of more than two dimensions counts as such a weight, the others have one tap.

    Args:
        weights: Columns in the order of the weight itself, ``channel * taps + tap``. [..., channels * taps]
        taps: Kernel positions.

    Returns:
        The same in the order of the matrix; a view where there is one tap. [..., taps * channels]
    """
    return weights if taps == 1 else weights.unflatten(-1, (-1, taps)).transpose(-1, -2).flatten(-2)


def channel_major(matrices: Tensor, taps: int) -> Tensor:
    """Undo ``tap_major``: columns in the order of the weight itself.

    Args:
        matrices: Columns in the order of the matrix. [..., taps * channels]
        taps: Kernel positions.

    Returns:
        The same in the order of the weight. [..., channels * taps]
    """
    return matrices if taps == 1 else matrices.unflatten(-1, (taps, -1)).transpose(-1, -2).flatten(-2)
