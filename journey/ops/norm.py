"""Weight and bias gradients of normalisation layers, per row."""

from __future__ import annotations

import torch
from torch import Tensor

from journey.ops.checks import check_dims, check_input, check_tensors


def norm_grads(
    x: Tensor,  # [num_rows, channels, positions] or, without groups, [num_rows, positions, channels]
    g: Tensor,  # the same
    *,
    groups: int = 0,
    centered: bool = True,
    eps: float,
) -> Tensor:
    """Return the weight and the bias gradient of a normalisation layer for each row.

    ``weight = sum over positions of (x - mean) / sqrt(variance + eps) * g``, ``bias = sum over positions of g``. Of a
    group norm, mean and variance are those of ``channels / groups`` channels of a row over all positions; without
    groups, of a layer norm, those of all channels of a position.

    Args:
        x: Input of the layer, float16, bfloat16 or float32; sums are in float32. [num_rows, channels, positions] or,
            without groups, [num_rows, positions, channels], where a row may stand for several.
        g: Gradient of the summed loss with respect to the layer's output, same dtype and shape.
        groups: Of channels that are normalised together; 0 for a layer norm.
        centered: Whether the mean is subtracted, which an RMS norm does not.
        eps: Added to the variance, or without a mean to the mean square.

    Returns:
        Weight and bias gradient, float32. [num_rows, 2, channels]

    Raises:
        ValueError: If the shapes disagree or ``groups`` does not divide the channels.
        TypeError: If a dtype is not one of those above.
        NotImplementedError: For CUDA tensors when the package was built without CUDA kernels.

    Note:
        On CUDA each tensor is read from memory once, by one launch or, of a layer norm with many positions, two, and a
        row's result depends on no other. On the CPU torch's operations do it.
    """
    check_tensors(x=x, g=g)
    check_dims("x", x, "[num_rows, channels, positions]" if groups else "[num_rows, positions, channels]", 3)
    check_input("x", x, x)
    check_input("g", g, x)
    if g.shape != x.shape or g.dtype != x.dtype:
        raise ValueError(f"g must be {list(x.shape)} and {x.dtype} like x, got {list(g.shape)} and {g.dtype}")
    channels = x.shape[1 if groups else 2]
    if groups < 0 or (groups and channels % groups):
        raise ValueError(f"groups must divide the {channels} channels, got {groups}")
    if x.numel() == 0:
        return x.new_zeros((x.shape[0], 2, channels), dtype=torch.float32)
    result: Tensor = torch.ops.journey.norm_grads(x, g, groups, centered, eps)
    return result
