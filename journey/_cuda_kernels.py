"""The ops on device memory: hand pointers to the CUDA kernels, on the tensors' device and its current stream.

Arguments were checked in ``journey.ops``. Launchers allocate nothing; their workspace comes from torch's allocator.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from journey import _native
from journey._cpu_kernels import DTYPE_CODES
from journey.geometry import ConvGeometry
from journey.keys import to_unsigned
from journey.weight_grad import weight_grad_tiles

# Products of float32 tensors to the rounding of float32, or of operands rounded to 11 bits (faster).
_FLOAT32, _TF32 = 0, 1
# Features that one block's shared memory holds on every device.
_MANY_MOST_DIM = 8192


def _precision() -> int:
    """TF32 where the caller allowed it to torch's own matmuls (``torch.set_float32_matmul_precision``)."""
    return _FLOAT32 if torch.get_float32_matmul_precision() == "highest" else _TF32


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


def _workspace(num_floats: int, like: Tensor) -> Tensor:
    return torch.empty(num_floats, dtype=torch.float32, device=like.device)


def philox_words(keys: Tensor, indices: Tensor, minors: Tensor, stream: int) -> Tensor:
    """Words of each draw. [num_draws, 4]"""
    kernels = _kernels()
    keys, indices, minors = keys.contiguous(), indices.contiguous(), minors.to(torch.int32)
    words = torch.empty(keys.shape[0], 4, dtype=torch.int64, device=keys.device)
    with torch.cuda.device(keys.device):
        kernels.philox_words(
            keys=keys.data_ptr(),
            indices=indices.data_ptr(),
            minors=minors.data_ptr(),
            stream=stream,
            n=keys.shape[0],
            out=words.data_ptr(),
            cuda_stream=_stream(keys),
        )
    return words


def philox_normal(keys: Tensor, minors: Tensor, numel: int) -> Tensor:
    """Rows of noise. [num_rows, numel]"""
    kernels = _kernels()
    keys, minors = keys.contiguous(), minors.to(torch.int32)
    noise = torch.empty(keys.shape[0], numel, device=keys.device)
    with torch.cuda.device(keys.device):
        kernels.philox_normal(
            keys=keys.data_ptr(),
            minors=minors.data_ptr(),
            n=keys.shape[0],
            numel=numel,
            out=noise.data_ptr(),
            cuda_stream=_stream(keys),
        )
    return noise


def sketch_(features: Tensor, grads: Tensor, key: int, row_begin: int, nnz: int) -> None:
    """Count sketch of one parameter's gradients."""
    kernels = _kernels()
    if not grads[0:1].is_contiguous():
        grads = grads.contiguous()
    shape = {"batch": grads.shape[0], "rows": grads.shape[1], "cols": grads.shape[2]}
    proj_dim = features.shape[1]
    floats = kernels.sketch_workspace_floats(**shape, row_begin=row_begin, proj_dim=proj_dim)
    workspace = _workspace(floats, features)
    with torch.cuda.device(features.device):
        kernels.sketch(
            grads=grads.data_ptr(),
            features=features.data_ptr(),
            workspace=workspace.data_ptr(),
            dtype=DTYPE_CODES[grads.dtype],
            **shape,
            grads_batch_stride=grads.stride(0),
            features_stride=features.stride(0),
            row_begin=row_begin,
            proj_dim=proj_dim,
            key=to_unsigned(key),
            nnz=nnz,
            cuda_stream=_stream(features),
        )


def sketch_many_(features: Tensor, grads: list[Tensor], keys: list[int], row_begins: list[int], nnz: int) -> None:
    """Count sketch of the gradients of many small parameters, in one launch for each 64 of them."""
    if features.shape[1] > _MANY_MOST_DIM:
        for grad, key, row_begin in zip(grads, keys, row_begins, strict=True):
            sketch_(features, grad, key, row_begin, nnz)
        return
    kernels = _kernels()
    grads = [x if x[0:1].is_contiguous() else x.contiguous() for x in grads]
    parameters = [
        (x.data_ptr(), DTYPE_CODES[x.dtype], x.shape[1], x.shape[2], x.stride(0), row_begin, to_unsigned(key))
        for x, key, row_begin in zip(grads, keys, row_begins, strict=True)
    ]
    batch, proj_dim = features.shape
    floats = kernels.sketch_many_workspace_floats(parameters=parameters, batch=batch, proj_dim=proj_dim)
    workspace = _workspace(floats, features)
    with torch.cuda.device(features.device):
        kernels.sketch_many(
            parameters=parameters,
            features=features.data_ptr(),
            workspace=workspace.data_ptr(),
            batch=batch,
            features_stride=features.stride(0),
            proj_dim=proj_dim,
            nnz=nnz,
            cuda_stream=_stream(features),
        )


def project_(features: Tensor, grads: Tensor, key: int, kind: int, row_begin: int) -> None:
    """Dense random projection."""
    kernels = _kernels()
    if grads.shape[1] > 1 and grads.stride(1) != 1:
        grads = grads.contiguous()
    shape = {"batch": grads.shape[0], "grad_dim": grads.shape[1], "proj_dim": features.shape[1]}
    workspace = _workspace(kernels.project_workspace_floats(**shape), features)
    with torch.cuda.device(features.device):
        kernels.project(
            grads=grads.data_ptr(),
            features=features.data_ptr(),
            workspace=workspace.data_ptr(),
            dtype=DTYPE_CODES[grads.dtype],
            kind=kind,
            **shape,
            grads_stride=grads.stride(0),
            features_stride=features.stride(0),
            row_begin=row_begin,
            key=to_unsigned(key),
            cuda_stream=_stream(features),
        )


def sketch_outer_(
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
    kernels = _kernels()
    if len(kernel_size) == 3:
        conv = ConvGeometry(tuple(kernel_size), tuple(stride), tuple(padding), tuple(dilation), groups)
        for grads, group, row in weight_grad_tiles(a, g, features.shape[0], conv):
            sketch_(features[group : group + grads.shape[0]], grads, key, row, nnz)
        return
    if a.shape[0] == 0:
        return
    if not kernel_size:  # Linear: channels last, positions along y
        a, g = a.transpose(1, 2).unsqueeze(3), g.transpose(1, 2).unsqueeze(3)
        kernel_size, stride, padding, dilation = [1, 1], [1, 1], [0, 0], [1, 1]
    elif len(kernel_size) == 1:  # Conv1d: one row
        a, g = a.unsqueeze(2), g.unsqueeze(2)
        kernel_size, stride, padding, dilation = [1, *kernel_size], [1, *stride], [0, *padding], [1, *dilation]
    num_groups, proj_dim = features.shape
    shape = {
        "num_groups": num_groups,
        "in_channels": a.shape[1],
        "out_channels": g.shape[1],
        "kernel_h": kernel_size[0],
        "kernel_w": kernel_size[1],
        "conv_groups": groups,
        "proj_dim": proj_dim,
    }
    workspace = _workspace(kernels.sketch_outer_workspace_floats(**shape), features)
    walk = {
        f"{name}_{axis}": values[i]
        for name, values in (("stride", stride), ("pad", padding), ("dilation", dilation))
        for i, axis in enumerate("hw")
    }
    strides = {
        f"{name}_{axis}_stride": tensor.stride(i)
        for name, tensor in (("a", a), ("g", g))
        for i, axis in enumerate(("row", "channel", "y", "x"))
    }
    with torch.cuda.device(features.device):
        kernels.sketch_outer(
            a=a.data_ptr(),
            g=g.data_ptr(),
            features=features.data_ptr(),
            workspace=workspace.data_ptr(),
            dtype=DTYPE_CODES[a.dtype],
            precision=_precision(),
            **shape,
            **walk,
            **strides,
            rows_per_group=a.shape[0] // num_groups,
            in_height=a.shape[2],
            in_width=a.shape[3],
            out_height=g.shape[2],
            out_width=g.shape[3],
            features_stride=features.stride(0),
            key=to_unsigned(key),
            nnz=nnz,
            cuda_stream=_stream(features),
        )


def accumulate_gram_(gram: Tensor, features: Tensor, block_size: int) -> None:
    """Upper triangle only, all samples at once: kernels choose their own blocks, and none shows in the sum."""
    kernels = _kernels()
    if features.shape[1] > 1 and features.stride(1) != 1:
        features = features.contiguous()
    shape = {"num_samples": features.shape[0], "proj_dim": features.shape[1]}
    workspace = _workspace(kernels.gram_workspace_floats(**shape), gram)
    with torch.cuda.device(gram.device):
        kernels.accumulate_gram(
            features=features.data_ptr(),
            gram=gram.data_ptr(),
            workspace=workspace.data_ptr(),
            workspace_floats=workspace.numel(),
            dtype=DTYPE_CODES[features.dtype],
            precision=_precision(),
            **shape,
            features_stride=features.stride(0),
            gram_stride=gram.stride(0),
            cuda_stream=_stream(gram),
        )
