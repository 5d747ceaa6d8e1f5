"""The ops on host memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from journey.ops import _native
from journey.ops.kernels import Kernels


class CpuKernels(Kernels):
    """The ops over the CPU kernels, with as many threads as torch uses."""

    layers_of_any_strides = False

    def run(self, op: str, memory: Tensor, args: dict[str, Any]) -> None:
        """Run a kernel on the calling thread and its pool."""
        getattr(_native.cpu, op)(args, torch.get_num_threads())

    def accumulate_gram_(self, gram: Tensor, features: Tensor, block_size: int) -> None:
        """Gram matrix in float64, a block of samples at a time: each is converted as a whole."""
        for block in features.split(block_size):
            super().accumulate_gram_(gram, block, block_size)
