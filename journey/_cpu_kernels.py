"""The ops on host memory: hand pointers to the compiled kernels.

Arguments were checked in ``journey.ops``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from journey import _native
from journey.keys import to_unsigned

DTYPE_CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


def philox_words(keys: Tensor, indices: Tensor, minors: Tensor, stream: int) -> Tensor:
    """Words of each draw. [num_draws, 4]"""
    keys, indices, minors = keys.contiguous(), indices.contiguous(), minors.to(torch.int32)
    words = torch.empty(keys.shape[0], 4, dtype=torch.int64)
    _native.cpu.philox_words(
        keys=keys.data_ptr(),
        indices=indices.data_ptr(),
        minors=minors.data_ptr(),
        stream=stream,
        n=keys.shape[0],
        out=words.data_ptr(),
    )
    return words


def philox_normal(keys: Tensor, minors: Tensor, numel: int) -> Tensor:
    """Rows of noise. [num_rows, numel]"""
    keys, minors = keys.contiguous(), minors.to(torch.int32)
    noise = torch.empty(keys.shape[0], numel)
    _native.cpu.philox_normal(
        keys=keys.data_ptr(),
        minors=minors.data_ptr(),
        n=keys.shape[0],
        numel=numel,
        out=noise.data_ptr(),
        num_threads=torch.get_num_threads(),
    )
    return noise


def sketch_(features: Tensor, grads: Tensor, key: int, row_begin: int, nnz: int) -> None:
    """Count sketch of one parameter's gradients."""
    if not grads[0:1].is_contiguous():
        grads = grads.contiguous()
    _native.cpu.sketch(
        grads=grads.data_ptr(),
        features=features.data_ptr(),
        dtype=DTYPE_CODES[grads.dtype],
        batch=grads.shape[0],
        rows=grads.shape[1],
        cols=grads.shape[2],
        grads_batch_stride=grads.stride(0),
        features_stride=features.stride(0),
        row_begin=row_begin,
        proj_dim=features.shape[1],
        key=to_unsigned(key),
        nnz=nnz,
        num_threads=torch.get_num_threads(),
    )


def sketch_many_(features: Tensor, grads: list[Tensor], keys: list[int], row_begins: list[int], nnz: int) -> None:
    """Count sketch of the gradients of many small parameters, one after the other."""
    for grad, key, row_begin in zip(grads, keys, row_begins, strict=True):
        sketch_(features, grad, key, row_begin, nnz)


def project_(features: Tensor, grads: Tensor, key: int, kind: int, row_begin: int) -> None:
    """Dense random projection."""
    if grads.shape[1] > 1 and grads.stride(1) != 1:
        grads = grads.contiguous()
    _native.cpu.project(
        grads=grads.data_ptr(),
        features=features.data_ptr(),
        dtype=DTYPE_CODES[grads.dtype],
        kind=kind,
        batch=grads.shape[0],
        grad_dim=grads.shape[1],
        proj_dim=features.shape[1],
        grads_stride=grads.stride(0),
        features_stride=features.stride(0),
        row_begin=row_begin,
        key=to_unsigned(key),
        num_threads=torch.get_num_threads(),
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
    """Weight gradients multiplied out in registers and sketched, never stored."""
    a, g = a.contiguous(), g.contiguous()
    if kernel_size:
        c_in, c_out, in_size, out_size = a.shape[1], g.shape[1], a.shape[2:], g.shape[2:]
    else:
        c_in, c_out, in_size, out_size = a.shape[2], g.shape[2], a.shape[1:2], g.shape[1:2]
    num_groups = features.shape[0]
    _native.cpu.sketch_outer(
        a=a.data_ptr(),
        g=g.data_ptr(),
        features=features.data_ptr(),
        dtype=DTYPE_CODES[a.dtype],
        channels_last=not kernel_size,
        num_groups=num_groups,
        rows_per_group=a.shape[0] // max(1, num_groups),
        c_in=c_in,
        c_out=c_out,
        conv_groups=groups,
        in_size=_three(in_size, 1),
        out_size=_three(out_size, 1),
        kernel=_three(kernel_size, 1),
        stride=_three(stride, 1),
        padding=_three(padding, 0),
        dilation=_three(dilation, 1),
        features_stride=features.stride(0),
        proj_dim=features.shape[1],
        key=to_unsigned(key),
        nnz=nnz,
        num_threads=torch.get_num_threads(),
    )


def _three(sizes: Sequence[int], fill: int) -> list[int]:
    """Sizes of the last dimensions, with leading ones where there are fewer than three."""
    return [fill] * (3 - len(sizes)) + list(sizes)


def accumulate_gram_(gram: Tensor, features: Tensor, block_size: int) -> None:
    """Gram matrix in float64, a block of samples at a time: each is converted as a whole."""
    if features.shape[1] > 1 and features.stride(1) != 1:
        features = features.contiguous()
    for block in features.split(block_size):
        _native.cpu.accumulate_gram(
            features=block.data_ptr(),
            gram=gram.data_ptr(),
            dtype=DTYPE_CODES[block.dtype],
            num_samples=block.shape[0],
            proj_dim=block.shape[1],
            features_stride=block.stride(0),
            gram_stride=gram.stride(0),
            num_threads=torch.get_num_threads(),
        )
