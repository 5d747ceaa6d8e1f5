"""Gradients of normalisation layers in slow float64 torch, by autograd, one row at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def norm_grads(x: Tensor, g: Tensor, *, groups: int = 0, centered: bool = True, eps: float) -> Tensor:
    """Gradients of the weight and the bias of a normalisation layer.

    Args:
        x: Input, any floating dtype. [num_rows, channels, positions], without groups [num_rows, positions, channels]
        g: Gradient with respect to the layer's output, likewise.
        groups: Of channels that are normalised together over all positions; 0: all channels of each position.
        centered: Whether the mean is subtracted.
        eps: Added to the variance, or to the mean square.

    Returns:
        Weight and bias gradient, float64. [num_rows, 2, channels]
    """
    channels = x.shape[1 if groups else 2]
    per_row = [torch.zeros(0, 2, channels, dtype=torch.float64, device="cpu")]
    for row, grad in zip(x.double().split(1), g.double().split(1), strict=True):
        weight, bias = (torch.ones(channels, dtype=torch.float64, device="cpu", requires_grad=True) for _ in range(2))
        with torch.enable_grad():
            if groups:
                output = F.group_norm(row, groups, weight, bias, eps)
            elif centered:
                output = F.layer_norm(row, (channels,), weight, bias, eps)
            else:
                output = row / (row.square().mean(2, keepdim=True) + eps).sqrt() * weight + bias
            per_row.append(torch.stack(torch.autograd.grad(output, (weight, bias), grad_outputs=grad))[None])
    return torch.cat(per_row)
