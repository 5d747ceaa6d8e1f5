"""The ops on host memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from journey.ops import _native
from journey.ops.kernels import Kernels
from journey.ops.weight_grad import sum_outputs_


class CpuKernels(Kernels):
    """The ops over the CPU kernels, with as many threads as torch uses."""

    layers_of_any_strides = False

    def run(self, op: str, memory: Tensor, args: dict[str, Any]) -> None:
        """Run a kernel on the calling thread and its pool."""
        getattr(_native.cpu, op)(args, torch.get_num_threads())

    def sketch_outer_many_(
        self,
        features: Tensor,
        a: list[Tensor],
        g: list[Tensor],
        keys: list[int],
        geometries: list[int],
        scales: list[float],
        nnz: int,
        sums: list[Tensor],
        summed: list[int],
    ) -> None:
        """The fused kernel, beside torch's sums of output gradients."""
        sum_outputs_(sums, g, summed, geometries)
        super().sketch_outer_many_(features, a, g, keys, geometries, scales, nnz, [], [])

    def norm_grads(self, x: Tensor, g: Tensor, groups: int, centered: bool, eps: float) -> Tensor:
        """By torch's operations, in float32."""
        x, g = x.float(), g.float()
        if groups:
            x = torch.nn.functional.group_norm(x, groups, eps=eps)
        elif centered:
            x = torch.nn.functional.layer_norm(x, x.shape[2:], eps=eps)
        else:
            x = x * torch.rsqrt(x.square().mean(2, keepdim=True) + eps)
        positions = 2 if groups else 1
        return torch.stack([(x * g).sum(positions), g.sum(positions)], dim=1)

    def accumulate_gram_(self, gram: Tensor, features: Tensor, block_size: int) -> None:
        """Gram matrix in float64, a block of samples at a time: each is converted as a whole."""
        for block in features.split(block_size):
            super().accumulate_gram_(gram, block, block_size)
