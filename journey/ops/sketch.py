"""The count sketch: of gradients, and fused with the product that forms them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from journey.ops.checks import (
    check_conv,
    check_dims,
    check_features,
    check_input,
    check_key,
    check_nnz,
    check_sketch_dim,
    check_tensors,
    conv_arguments,
)
from journey.ops.geometry import ConvGeometry
from journey.ops.keys import to_signed


def sketch_(
    features: Tensor,  # [batch, proj_dim]
    grads: Tensor,  # [batch, rows, cols]
    *,
    key: int,
    row_begin: int = 0,
    nnz: int = 1,
) -> None:
    """Add the block-rotation count sketch of the gradients of one parameter.

    ``features[b, bucket(row_begin + r, c)] += sign(row_begin + r, c) * grads[b, r, c] / sqrt(nnz)``, summed over
    ``nnz`` independent maps (csrc/common/sketch_map.h). Inner products are unbiased: two entries collide with
    probability at most 1 / proj_dim.

    Args:
        features: Running sketch, float32; ``proj_dim`` a multiple of 32. [batch, proj_dim]
        grads: Per-sample gradients, float16, bfloat16 or float32, summed in float32. A parameter is its first dimension
            by the rest, of a convolution in the order of ``tap_major``; a vector is one row. [batch, rows, cols]
        key: Names the map, in [0, 2**64); one key per seed and parameter.
        row_begin: Which row of the parameter ``grads[:, 0]`` is, so that a parameter may come in pieces.
        nnz: Independent sketches that are summed, 1 to 64.

    Raises:
        ValueError: If the shapes disagree, ``proj_dim`` is not a multiple of 32 or a number is out of range.
        TypeError: If a dtype is not one of those above.
        NotImplementedError: For CUDA tensors when the package was built without CUDA kernels.

    Note:
        Bitwise equal for any batch and number of threads; the same buckets and signs on every device. Beyond the
        inputs it needs ``proj_dim`` floats per thread (CPU) or per block (CUDA).
    """
    check_tensors(features=features, grads=grads)
    check_features(features, grads.shape[0] if grads.dim() else 0, "batch")
    check_dims("grads", grads, "[batch, rows, cols]", 3)
    check_input("grads", grads, features)
    check_sketch_dim(features)
    check_key(key)
    check_nnz(nnz)
    if row_begin < 0:
        raise ValueError(f"row_begin must not be negative, got {row_begin}")
    torch.ops.journey.sketch_(features, grads, to_signed(key), row_begin, nnz)


def sketch_many_(
    features: Tensor,  # [batch, proj_dim]
    grads: Sequence[Tensor],  # each [batch, rows, cols]
    *,
    keys: Sequence[int],
    row_begins: Sequence[int] | None = None,
    nnz: int = 1,
) -> None:
    """Add the count sketches of the gradients of many small parameters: ``sketch_`` of each, in few launches.

    Args:
        features: Running sketch, float32; ``proj_dim`` a multiple of 32. [batch, proj_dim]
        grads: Per-sample gradients of some parameters, as for ``sketch_``. Each [batch, rows, cols]
        keys: Names each parameter's map, in [0, 2**64).
        row_begins: Which row of its parameter each one's first row is; the first by default.
        nnz: Independent sketches that are summed, 1 to 64.

    Raises:
        ValueError: If the shapes disagree, the lists differ in length or a number is out of range.
        TypeError: If a dtype is not one of those of ``sketch_``.
        NotImplementedError: For CUDA tensors when the package was built without CUDA kernels.

    Note:
        Bitwise equal for any batch and number of threads.
    """
    row_begins = [0] * len(grads) if row_begins is None else row_begins
    check_tensors(features=features, **{f"grads[{i}]": grad for i, grad in enumerate(grads)})
    for name, numbers in (("keys", keys), ("row_begins", row_begins)):
        if len(numbers) != len(grads):
            raise ValueError(f"{name} must have one number for each of {len(grads)} grads, got {len(numbers)}")
    check_features(features, features.shape[0] if features.dim() else 0, "batch")
    for i, grad in enumerate(grads):
        check_dims(f"grads[{i}]", grad, "[batch, rows, cols]", 3)
        check_input(f"grads[{i}]", grad, features)
        if grad.shape[0] != features.shape[0]:
            raise ValueError(f"grads[{i}] must be of the {features.shape[0]} rows of features, got {grad.shape[0]}")
        check_key(keys[i])
        if row_begins[i] < 0:
            raise ValueError(f"row_begins must not be negative, got {row_begins[i]}")
    check_sketch_dim(features)
    check_nnz(nnz)
    signed = [to_signed(key) for key in keys]
    torch.ops.journey.sketch_many_(features, list(grads), signed, list(row_begins), nnz)


def sketch_outer_(
    features: Tensor,  # [num_groups, proj_dim]
    a: Tensor,  # [num_rows, positions, d_in] or [num_rows, c_in, *spatial]
    g: Tensor,  # [num_rows, positions, d_out] or [num_rows, c_out, *output_spatial]
    *,
    key: int,
    nnz: int = 1,
    conv: ConvGeometry | None = None,
) -> None:
    """Add the sketch of per-sample weight gradients, straight from a layer's input and output gradient.

    ``features[i] += sketch(sum of the weight gradients of the rows of group i)``; the gradients are formed in registers
    and never stored, so positions and draws are contracted inside one matmul.

    Args:
        features: Running sketch, float32. [num_groups, proj_dim]
        a: Input of the layer, float16, bfloat16 or float32. Rows of a group are consecutive.
            Linear: [num_groups * rows_per_group, positions, d_in]; convolution: [..., c_in, *spatial].
        g: Gradient of the summed loss with respect to the layer's output, same dtype.
        key: Names the map, in [0, 2**64).
        nnz: Independent sketches that are summed, 1 to 64.
        conv: Geometry of the convolution; None for a Linear layer. A transposed convolution is a convolution with
            ``a`` and ``g`` exchanged.

    Raises:
        ValueError: If the shapes disagree or an argument is out of range.
        TypeError: If a dtype is not one of those above.
        NotImplementedError: For CUDA tensors when the package was built without CUDA kernels.

    Note:
        Bitwise reproducible on one device, and on the CPU for any batch and number of threads. Extra memory does not
        grow with the number of parameters. On the CPU: 1 MiB of signs, and per thread the output gradients of 128
        positions (of 512 in bfloat16 by the matrix unit), the padded input of 1,024 (of one output line or position, if
        that is more) and sums of the size of the features, at most eight times; copies of ``a`` and ``g`` if they are
        not contiguous. On CUDA the blocks' sums, see ``sketch_``.
    """
    check_tensors(features=features, a=a, g=g)
    if conv is None:
        check_dims("a", a, "[num_rows, positions, d_in]", 3)
        check_dims("g", g, "[num_rows, positions, d_out]", 3)
        if a.shape[:2] != g.shape[:2]:
            raise ValueError(f"a and g must agree in [num_rows, positions], got {list(a.shape)} and {list(g.shape)}")
    else:
        check_dims("a", a, "[num_rows, c_in, *spatial]", 2 + conv.spatial_dims)
        check_conv(a, g, conv)
    num_groups = features.shape[0] if features.dim() else 0
    check_features(features, num_groups, "num_groups")
    check_input("a", a, features)
    check_input("g", g, features)
    if a.dtype != g.dtype:
        raise TypeError(f"a and g must have the same dtype, got {a.dtype} and {g.dtype}")
    if (num_groups == 0 and a.shape[0]) or (num_groups and a.shape[0] % num_groups):
        raise ValueError(f"a must hold a whole number of rows per group, got {a.shape[0]} rows for {num_groups} groups")
    check_sketch_dim(features)
    check_key(key)
    check_nnz(nnz)
    if a.numel() == 0 or g.numel() == 0:
        return  # a sum of nothing
    sizes = ([], [], [], [], 1) if conv is None else conv_arguments(conv)
    torch.ops.journey.sketch_outer_(features, a, g, to_signed(key), nnz, *sizes)
