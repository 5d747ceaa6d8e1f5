"""The ops on device memory: on the tensors' device and its current stream.

Launchers allocate nothing; their workspace comes from torch's allocator.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from journey.ops import _native
from journey.ops.geometry import LINEAR_NUMBERS, ConvGeometry
from journey.ops.kernels import FLOAT32, TF32, Kernels, with_contiguous_rows
from journey.ops.weight_grad import sum_outputs_, weight_grad_tiles

# Features that one block's shared memory holds on every device.
_MANY_MOST_DIM = 8192


class CudaKernels(Kernels):
    """The ops over the CUDA kernels."""

    layers_of_any_strides = True

    def run(self, op: str, memory: Tensor, args: dict[str, Any]) -> None:
        """Launch a kernel. It raises NotImplementedError in a build without CUDA kernels."""
        workspaces: list[Tensor] = []  # live until the launch

        def allocate(floats: int) -> tuple[int, int]:
            workspaces.append(torch.empty(floats, dtype=torch.float32, device=memory.device))
            return workspaces[-1].data_ptr(), floats

        getattr(_kernels(), op)(args, allocate, memory.get_device(), _stream(memory))

    def with_vectors(self, rows: Tensor) -> Tensor:
        """The tensor, or a copy if a row does not begin at a multiple of 16 bytes. [*rows.shape]"""
        rows = with_contiguous_rows(rows)
        offsets = (rows.data_ptr(), rows.stride(0) * rows.element_size() if len(rows) > 1 else 0)
        return rows.clone(memory_format=torch.contiguous_format) if any(x % 16 for x in offsets) else rows

    def precision(self, convolution: bool = False) -> int:
        """TF32 where torch's own products of the kind may use it: by its defaults those of convolutions."""
        cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
        if hasattr(cudnn, "conv"):  # torch 2.9 and later: the names below raise once the caller has used these
            return TF32 if (cudnn.conv if convolution else matmul).fp32_precision == "tf32" else FLOAT32
        return TF32 if (cudnn if convolution else matmul).allow_tf32 else FLOAT32

    def sketch_many_(
        self,
        features: Tensor,
        grads: Tensor,
        keys: list[int],
        rows: list[int],
        cols: list[int],
        row_begins: list[int],
        scales: list[float],
        nnz: int,
    ) -> None:
        """Count sketches of the gradients of many small parameters, in one launch for each 64 of them."""
        if features.shape[1] <= _MANY_MOST_DIM:
            return super().sketch_many_(features, grads, keys, rows, cols, row_begins, scales, nnz)
        pieces = grads.split([r * c for r, c in zip(rows, cols, strict=True)], dim=1)
        for piece, key, r, c, row_begin, scale in zip(pieces, keys, rows, cols, row_begins, scales, strict=True):
            self.sketch_(features, (piece * scale).view(-1, r, c), key, row_begin, nnz)
        return None

    def sketch_outer_(
        self,
        features: Tensor,
        a: Tensor,
        g: Tensor,
        key: int,
        nnz: int,
        kernel_size: list[int],
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        groups: int,
    ) -> None:
        """The fused kernel for Linear, Conv1d and Conv2d; torch's convolution and the sketch kernel for Conv3d."""
        if len(kernel_size) < 3:
            return super().sketch_outer_(features, a, g, key, nnz, kernel_size, stride, padding, dilation, groups)
        conv = ConvGeometry(tuple(kernel_size), tuple(stride), tuple(padding), tuple(dilation), groups)
        for grads, group, row in weight_grad_tiles(a, g, features.shape[0], conv):
            self.sketch_(features[group : group + grads.shape[0]], grads, key, row, nnz)
        return None

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
        """The fused kernel for all layers, or one after the other if there is a Conv3d among them."""
        count = len(LINEAR_NUMBERS)
        if 3 not in geometries[::count]:
            return super().sketch_outer_many_(features, a, g, keys, geometries, scales, nnz, sums, summed)
        sum_outputs_(sums, g, summed, geometries)
        for i, (x, y, key, scale) in enumerate(zip(a, g, keys, scales, strict=True)):
            dims, *walk, groups = geometries[i * count : (i + 1) * count]
            sizes = [walk[j : j + 3][3 - dims :] for j in range(0, 12, 3)]
            sketch = torch.zeros_like(features)
            self.sketch_outer_(sketch, x, y, key, nnz, sizes[0], sizes[1], sizes[2], sizes[3], groups)
            features.add_(sketch, alpha=scale)
        return None


def _kernels() -> Any:
    build = _native.build_info()
    if not build["cuda"]:
        raise NotImplementedError(
            f"got CUDA tensors, but this build of journey has no CUDA kernels: {build['cuda_off_reason']}. Install it "
            "again where nvcc is on the PATH, or move the model to the CPU"
        )
    return _native.cuda


def _stream(tensor: Tensor) -> int:
    return torch.cuda.current_stream(tensor.device).cuda_stream
