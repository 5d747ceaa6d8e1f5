"""The ops on device memory: on the tensors' device and its current stream.

Launchers allocate nothing; their workspace comes from torch's allocator.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from journey.ops import _native
from journey.ops.geometry import ConvGeometry
from journey.ops.kernels import FLOAT32, TF32, Kernels, sketch_args, with_contiguous_rows
from journey.ops.weight_grad import weight_grad_tiles

# Features that one block's shared memory holds on every device.
_MANY_MOST_DIM = 8192


class CudaKernels(Kernels):
    """The ops over the CUDA kernels."""

    layers_of_any_strides = True

    def run(self, op: str, memory: Tensor, args: dict[str, Any]) -> None:
        """Launch a kernel. It raises NotImplementedError in a build without CUDA kernels."""
        kernels = _kernels()
        floats = getattr(kernels, f"{op}_workspace_floats")(args)
        workspace = torch.empty(floats, dtype=torch.float32, device=memory.device)
        with torch.cuda.device(memory.device):
            getattr(kernels, op)(args, workspace.data_ptr(), floats, _stream(memory))

    def with_vectors(self, rows: Tensor) -> Tensor:
        """The tensor, or a copy if a row does not begin at a multiple of 16 bytes. [*rows.shape]"""
        rows = with_contiguous_rows(rows)
        offsets = (rows.data_ptr(), rows.stride(0) * rows.element_size() if len(rows) > 1 else 0)
        return rows.clone(memory_format=torch.contiguous_format) if any(x % 16 for x in offsets) else rows

    def precision(self) -> int:
        """TF32 where the caller allowed it to torch's own matmuls (``torch.set_float32_matmul_precision``)."""
        return FLOAT32 if torch.get_float32_matmul_precision() == "highest" else TF32

    def sketch_many_(
        self, features: Tensor, grads: list[Tensor], keys: list[int], row_begins: list[int], nnz: int
    ) -> None:
        """Count sketch of the gradients of many small parameters, in one launch for each 64 of them."""
        if features.shape[1] > _MANY_MOST_DIM:
            return super().sketch_many_(features, grads, keys, row_begins, nnz)
        grads = [with_contiguous_rows(x) for x in grads]
        numbers = zip(grads, keys, row_begins, strict=True)
        parameters = [sketch_args(features, x, key, row_begin, nnz) for x, key, row_begin in numbers]
        return self.run("sketch_many", features, {"parameters": parameters})

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
