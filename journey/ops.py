"""The compiled operations as validated torch ops, on the device of their tensors.

Every op is registered with ``torch.library`` under ``journey::``, with a CPU and a CUDA kernel and a fake kernel. The
functions here check their arguments, say what is wrong in words, and call the registered op. Names that end in ``_``
add to memory of the caller and return None. The slow float64 twin of each is in ``journey.reference``.

Keys are 64-bit: any Python int in ``[0, 2**64)``, as ``journey.keys.derive_key`` gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from journey._cpu_kernels import CpuKernels
from journey._cuda_kernels import CudaKernels
from journey._op_checks import (
    check_conv,
    check_dims,
    check_features,
    check_input,
    check_int64_vector,
    check_key,
    check_nnz,
    check_sketch_dim,
    check_tensors,
    walk,
)
from journey.geometry import ConvGeometry
from journey.keys import to_signed

ProjectionKind = Literal["rademacher", "normal"]

_KINDS = ("rademacher", "normal")

_library = torch.library.Library("journey", "DEF")
for _schema in (
    "philox_words(Tensor keys, Tensor indices, Tensor minors, int stream) -> Tensor",
    "philox_normal(Tensor keys, Tensor minors, int numel) -> Tensor",
    "sketch_(Tensor(a!) features, Tensor grads, int key, int row_begin, int nnz) -> ()",
    "sketch_many_(Tensor(a!) features, Tensor[] grads, int[] keys, int[] row_begins, int nnz) -> ()",
    "project_(Tensor(a!) features, Tensor grads, int key, int kind, int row_begin) -> ()",
    "sketch_outer_(Tensor(a!) features, Tensor a, Tensor g, int key, int nnz, int[] kernel_size, int[] stride, "
    "int[] padding, int[] dilation, int groups) -> ()",
    "accumulate_gram_(Tensor(a!) gram, Tensor features, int block_size) -> ()",
):
    _library.define(_schema)
    _name = _schema.split("(")[0]
    _library.impl(_name, getattr(CpuKernels(), _name), "CPU")
    _library.impl(_name, getattr(CudaKernels(), _name), "CUDA")
    if _name.endswith("_"):  # changes its first argument and returns nothing: neither has a shape to tell
        torch.library.register_fake(f"journey::{_name}", lambda *_: None)


@torch.library.register_fake("journey::philox_words")
def _(keys: Tensor, indices: Tensor, minors: Tensor, stream: int) -> Tensor:
    return keys.new_empty((keys.shape[0], 4), dtype=torch.int64)


@torch.library.register_fake("journey::philox_normal")
def _(keys: Tensor, minors: Tensor, numel: int) -> Tensor:
    return keys.new_empty((keys.shape[0], numel), dtype=torch.float32)


def philox_words(
    keys: Tensor,  # [num_draws]
    indices: Tensor,  # [num_draws]
    minors: Tensor,  # [num_draws]
    *,
    stream: int,
) -> Tensor:
    """Return the four 32-bit words of each draw of the counter-based generator Philox4x32-10.

    ``words[i] = philox(keys[i], counter=(indices[i] low, indices[i] high, minors[i], stream))``

    Args:
        keys: Keys, int64 with the bits of the unsigned key. [num_draws]
        indices: First 64 bits of the counters, int64. [num_draws]
        minors: Next 32 bits of the counters, int64 in [0, 2**32). [num_draws]
        stream: Last 32 bits of the counters: one number for each use, see csrc/common/philox.h.

    Returns:
        Words, int64 in [0, 2**32), bitwise equal on every device. [num_draws, 4]

    Raises:
        ValueError: If the shapes differ or ``stream`` is no 32-bit number.
        TypeError: If a tensor is not int64.

    Reference:
        Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
    """
    check_tensors(keys=keys, indices=indices, minors=minors)
    for name, tensor in (("keys", keys), ("indices", indices), ("minors", minors)):
        check_int64_vector(name, tensor, keys)
    if not 0 <= stream < 2**32:
        raise ValueError(f"stream must be in [0, 2**32), got {stream}")
    result: Tensor = torch.ops.journey.philox_words(keys, indices, minors, stream)
    return result


def philox_normal(
    keys: Tensor,  # [num_rows]
    minors: Tensor,  # [num_rows]
    numel: int,
) -> Tensor:
    """Return rows of standard normal noise, each a pure function of its key and minor.

    Args:
        keys: One key per row, int64 with the bits of the unsigned key. [num_rows]
        minors: One number per row that separates rows of the same key, int64 in [0, 2**32). [num_rows]
        numel: Normals per row.

    Returns:
        Noise, float32, bitwise equal on every device. [num_rows, numel]

    Raises:
        ValueError: If the shapes differ or ``numel`` is negative.
        TypeError: If a tensor is not int64.

    Reference:
        Box and Muller, "A Note on the Generation of Random Normal Deviates", 1958.
    """
    check_tensors(keys=keys, minors=minors)
    for name, tensor in (("keys", keys), ("minors", minors)):
        check_int64_vector(name, tensor, keys)
    if numel < 0:
        raise ValueError(f"numel must not be negative, got {numel}")
    result: Tensor = torch.ops.journey.philox_normal(keys, minors, numel)
    return result


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
            by the rest; a vector is one row. [batch, rows, cols]
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


def project_(
    features: Tensor,  # [batch, proj_dim]
    grads: Tensor,  # [batch, grad_dim]
    *,
    key: int,
    kind: ProjectionKind = "rademacher",
    row_begin: int = 0,
) -> None:
    """Add a dense random projection of gradients; the matrix is generated as it is used.

    ``features += grads @ P[row_begin : row_begin + grad_dim] / sqrt(proj_dim)``, with independent entries +1 or -1
    (``"rademacher"``) or standard normal (``"normal"``).

    Args:
        features: Running projection, float32. [batch, proj_dim]
        grads: Per-sample gradients, float16, bfloat16 or float32; products in float32, summed in blocks of 128.
            [batch, grad_dim]
        key: Names the matrix, in [0, 2**64).
        kind: Distribution of the entries.
        row_begin: Which row of ``P`` meets ``grads[:, 0]``.

    Raises:
        ValueError: If the shapes disagree or an argument is out of range.
        TypeError: If a dtype is not one of those above.
        NotImplementedError: For CUDA tensors when the package was built without CUDA kernels.

    Note:
        Bitwise equal for any batch and number of threads; the same matrix on every device.

    Reference:
        Park et al., "TRAK: Attributing Model Behavior at Scale", ICML 2023, section 3.2.
    """
    check_tensors(features=features, grads=grads)
    check_features(features, grads.shape[0] if grads.dim() else 0, "batch")
    check_dims("grads", grads, "[batch, grad_dim]", 2)
    check_input("grads", grads, features)
    check_key(key)
    if kind not in _KINDS:
        raise ValueError(f"kind must be one of {', '.join(map(repr, _KINDS))}, got {kind!r}")
    if row_begin < 0:
        raise ValueError(f"row_begin must not be negative, got {row_begin}")
    torch.ops.journey.project_(features, grads, to_signed(key), _KINDS.index(kind), row_begin)


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
    sizes = ([], [], [], [], 1) if conv is None else walk(conv)
    torch.ops.journey.sketch_outer_(features, a, g, to_signed(key), nnz, *sizes)


def accumulate_gram_(
    gram: Tensor,  # [proj_dim, proj_dim]
    features: Tensor,  # [num_samples, proj_dim]
    *,
    block_size: int = 4096,
) -> None:
    """Add the Gram matrix of the columns of a batch of features, in place, in the upper triangle only.

    ``gram += triu(features.T @ features)``

    Args:
        gram: Running sum, float64; entries below the diagonal are neither read nor written. [proj_dim, proj_dim]
        features: Projected gradients, float16, bfloat16 or float32. On the CPU products and sums are in float64; on
            CUDA products are in float32 within 512 samples and sums in float64. [num_samples, proj_dim]
        block_size: Samples per block on the CPU; on CUDA the kernels choose. Changes memory and speed, and the result
            only by rounding.

    Raises:
        ValueError: If the shapes disagree, ``gram`` is not square or ``block_size`` is not positive.
        TypeError: If a dtype is not one of those above.
        NotImplementedError: For CUDA tensors when the package was built without CUDA kernels.

    Reference:
        Park et al., "TRAK: Attributing Model Behavior at Scale", ICML 2023, section 3.2 (there written as X^T X).
    """
    check_tensors(gram=gram, features=features)
    if gram.dim() != 2 or gram.shape[0] != gram.shape[1]:
        raise ValueError(f"gram must be [proj_dim, proj_dim], got {list(gram.shape)}")
    if gram.shape[0] > 1 and gram.stride(1) != 1:
        raise ValueError(f"gram must have contiguous rows, got strides {gram.stride()}")
    check_dims("features", features, "[num_samples, proj_dim]", 2)
    if features.shape[1] != gram.shape[0]:
        raise ValueError(f"features must be [num_samples, {gram.shape[0]}], got {list(features.shape)}")
    if gram.dtype != torch.float64:
        raise TypeError(f"gram must be float64, got {gram.dtype}")
    check_input("features", features, gram)
    if block_size < 1:
        raise ValueError(f"block_size must be positive, got {block_size}")
    torch.ops.journey.accumulate_gram_(gram, features, block_size)
