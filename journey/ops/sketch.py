"""The count sketch: of gradients, and fused with the product that forms them."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

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
from journey.ops.geometry import LINEAR_NUMBERS, ConvGeometry
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
    grads: Tensor,  # [batch, sum of rows * cols]
    *,
    keys: Sequence[int],
    shapes: Sequence[tuple[int, int]],
    row_begins: Sequence[int] | None = None,
    scales: Sequence[float] | None = None,
    nnz: int = 1,
) -> None:
    """Add the count sketches of the gradients of many small parameters: ``sketch_`` of each, in few launches.

    Args:
        features: Running sketch, float32; ``proj_dim`` a multiple of 32. [batch, proj_dim]
        grads: Per-sample gradients of all parameters, one after the other in each row, float32.
            [batch, sum of rows * cols]
        keys: Names each parameter's map, in [0, 2**64).
        shapes: Rows and columns of each one's gradient.
        row_begins: Which row of its parameter each one's first row is; the first by default.
        scales: What each one's gradient is multiplied by; 1 by default.
        nnz: Independent sketches that are summed, 1 to 64.

    Raises:
        ValueError: If the shapes disagree, the lists differ in length or a number is out of range.
        TypeError: If a tensor is not float32.
        NotImplementedError: For CUDA tensors when the package was built without CUDA kernels.

    Note:
        Bitwise equal for any batch and number of threads.
    """
    check_tensors(features=features, grads=grads)
    check_dims("grads", grads, "[batch, entries]", 2)
    check_features(features, grads.shape[0], "batch")
    check_input("grads", grads, features)
    if grads.dtype != torch.float32:
        raise TypeError(f"grads must be float32, got {grads.dtype}")
    check_sketch_dim(features)
    check_nnz(nnz)
    row_begins = [0] * len(keys) if row_begins is None else row_begins
    scales = _check_many(len(keys), "keys", keys, scales, shapes=shapes, row_begins=row_begins)
    rows, cols = [shape[0] for shape in shapes], [shape[1] for shape in shapes]
    if min((*rows, *cols, *row_begins), default=0) < 0:
        raise ValueError(f"shapes and row_begins must not be negative, got {list(shapes)} and {list(row_begins)}")
    entries = sum(r * c for r, c in zip(rows, cols, strict=True))
    if grads.shape[1] != entries:
        raise ValueError(f"grads must have the {entries} entries of shapes, got {list(grads.shape)}")
    signed = [to_signed(key) for key in keys]
    torch.ops.journey.sketch_many_(features, grads, signed, rows, cols, list(row_begins), scales, nnz)


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
    check_sketch_dim(_check_groups(features))
    check_nnz(nnz)
    check_key(key)
    _check_layer(features, a, g, conv)
    if a.numel() == 0 or g.numel() == 0:
        return  # a sum of nothing
    sizes = ([], [], [], [], 1) if conv is None else conv_arguments(conv)
    torch.ops.journey.sketch_outer_(features, a, g, to_signed(key), nnz, *sizes)


def sketch_outer_many_(
    features: Tensor,  # [num_groups, proj_dim]
    a: Sequence[Tensor],  # each [num_rows, positions, d_in] or [num_rows, c_in, *spatial]
    g: Sequence[Tensor],  # each [num_rows, positions, d_out] or [num_rows, c_out, *output_spatial]
    *,
    keys: Sequence[int],
    convs: Sequence[ConvGeometry | None],
    scales: Sequence[float] | None = None,
    nnz: int = 1,
    sums: Sequence[Tensor | None] | None = None,  # each [num_groups, d_out or c_out]
) -> None:
    """Add the sketches of the weight gradients of several layers: ``sketch_outer_`` of each, by one call.

    ``features += scale * (sketch of the layer)``, layer after layer in their order.

    Args:
        features: Running sketch, float32. [num_groups, proj_dim]
        a: Input of each layer, as for ``sketch_outer_``.
        g: Gradient of the summed loss with respect to each one's output, likewise.
        keys: Names each one's map, in [0, 2**64).
        convs: Geometry of each convolution; None for a Linear layer.
        scales: What each one's gradient is multiplied by; 1 by default.
        nnz: Independent sketches that are summed, 1 to 64.
        sums: Overwritten with each layer's ``g``, summed over positions and the rows of a group, float32 with
            contiguous rows: the gradient of a bias. None for layers of which nobody asks; for all by default.

    Raises:
        ValueError: If the shapes disagree, the lists differ in length or an argument is out of range.
        TypeError: If a dtype is not one of those of ``sketch_outer_``, or sums are not float32.
        NotImplementedError: For CUDA tensors when the package was built without CUDA kernels.

    Note:
        As for ``sketch_outer_``, whose kernel on CUDA also sums what it reads of ``g``. Where a scale is not 1, on the
        CPU one more float for each of the features; on CUDA workspaces of several layers, up to 64 MiB or those of one.
    """
    check_tensors(features=features, **{f"a[{i}]": x for i, x in enumerate(a)})
    check_tensors(**{f"g[{i}]": x for i, x in enumerate(g)})
    check_sketch_dim(_check_groups(features))
    check_nnz(nnz)
    sums = [None] * len(a) if sums is None else sums
    scales = _check_many(len(a), "a", keys, scales, g=g, convs=convs, sums=sums)
    kept = []
    for i, (inputs, outputs, conv, into) in enumerate(zip(a, g, convs, sums, strict=True)):
        _check_layer(features, inputs, outputs, conv, f"[{i}]")
        if into is not None:
            _check_sums(into, features, outputs.shape[2 if conv is None else 1], f"sums[{i}]")
        if inputs.numel() and outputs.numel():  # else a sum of nothing
            kept.append(i)
        elif into is not None:
            into.zero_()
    geometries = [LINEAR_NUMBERS if conv is None else conv.numbers for conv in (convs[i] for i in kept)]
    numbers = [number for geometry in geometries for number in geometry]
    layers = [a[i] for i in kept], [g[i] for i in kept], [to_signed(keys[i]) for i in kept]
    summed = [(into, at) for at, i in enumerate(kept) if (into := sums[i]) is not None]
    torch.ops.journey.sketch_outer_many_(
        features, *layers, numbers, [scales[i] for i in kept], nnz, [x for x, _ in summed], [at for _, at in summed]
    )


def _check_groups(features: Tensor) -> Tensor:
    check_features(features, features.shape[0] if features.dim() else 0, "num_groups")
    return features


def _check_layer(features: Tensor, a: Tensor, g: Tensor, conv: ConvGeometry | None, at: str = "") -> None:
    """Refuse input and output gradient of a layer that do not belong together, or not to the features."""
    if conv is None:
        check_dims(f"a{at}", a, "[num_rows, positions, d_in]", 3)
        check_dims(f"g{at}", g, "[num_rows, positions, d_out]", 3)
        if a.shape[:2] != g.shape[:2]:
            shapes = f"{list(a.shape)} and {list(g.shape)}"
            raise ValueError(f"a{at} and g{at} must agree in [num_rows, positions], got {shapes}")
    else:
        check_dims(f"a{at}", a, "[num_rows, c_in, *spatial]", 2 + conv.spatial_dims)
        check_conv(a, g, conv)
    check_input(f"a{at}", a, features)
    check_input(f"g{at}", g, features)
    if a.dtype != g.dtype:
        raise TypeError(f"a{at} and g{at} must have the same dtype, got {a.dtype} and {g.dtype}")
    num_rows, num_groups = a.shape[0], features.shape[0]
    if (num_groups == 0 and num_rows) or (num_groups and num_rows % num_groups):
        raise ValueError(
            f"a{at} must hold a whole number of rows per group, got {num_rows} rows for {num_groups} groups"
        )


def _check_sums(sums: Tensor, features: Tensor, channels: int, name: str) -> None:
    """Refuse what a layer's output gradients cannot be summed into."""
    check_tensors(**{name: sums})
    if list(sums.shape) != [features.shape[0], channels]:
        raise ValueError(f"{name} must be {[features.shape[0], channels]}, got {list(sums.shape)}")
    if sums.dtype != torch.float32 or sums.device != features.device:
        raise TypeError(f"{name} must be float32 on {features.device}, got {sums.dtype} on {sums.device}")
    if (channels > 1 and sums.stride(1) != 1) or (len(sums) > 1 and sums.stride(0) < channels):
        raise ValueError(f"{name} must have contiguous rows that do not overlap, got strides {sums.stride()}")


def _check_many(
    count: int, counted: str, keys: Sequence[int], scales: Sequence[float] | None, **lists: Sequence[object]
) -> list[float]:
    """Refuse lists that do not have a number for each of ``count`` things; return the scales."""
    scales = [1.0] * count if scales is None else [float(scale) for scale in scales]
    for name, given in (("keys", keys), ("scales", scales), *lists.items()):
        if len(given) != count:
            raise ValueError(f"{name} must have one item for each of {count} in {counted}, got {len(given)}")
    if not all(map(isfinite, scales)):
        raise ValueError(f"scales must be finite, got {scales}")
    for key in keys:
        check_key(key)
    return scales
