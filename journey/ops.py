"""The compiled operations as validated torch ops, on the device of their tensors.

Every op is registered with ``torch.library`` under ``journey::``, with a CPU and a CUDA kernel and a fake kernel. The
functions here check their arguments, say what is wrong in words, and call the registered op. Names that end in ``_``
add to memory of the caller and return None. The slow float64 twin of each is in ``journey.reference``.

Keys are 64-bit: any Python int in ``[0, 2**64)``, as ``journey.keys.derive_key`` gives.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from journey import _cpu_kernels, _cuda_kernels
from journey.geometry import ConvGeometry
from journey.keys import to_signed

ProjectionKind = Literal["rademacher", "normal"]

LANES = 32  # proj_dim of a sketch is a multiple of this (csrc/common/sketch_map.h)
MAX_NNZ = 64

_INPUT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_KINDS = ("rademacher", "normal")

_library = torch.library.Library("journey", "DEF")
for _schema in (
    "philox_words(Tensor keys, Tensor indices, Tensor minors, int stream) -> Tensor",
    "philox_normal(Tensor keys, Tensor minors, int numel) -> Tensor",
    "sketch_(Tensor(a!) features, Tensor grads, int key, int row_begin, int nnz) -> ()",
    "project_(Tensor(a!) features, Tensor grads, int key, int kind, int row_begin) -> ()",
    "sketch_outer_(Tensor(a!) features, Tensor a, Tensor g, int key, int nnz, int[] kernel_size, int[] stride, "
    "int[] padding, int[] dilation, int groups) -> ()",
    "accumulate_gram_(Tensor(a!) gram, Tensor features, int block_size) -> ()",
):
    _library.define(_schema)
    _name = _schema.split("(")[0]
    _library.impl(_name, getattr(_cpu_kernels, _name), "CPU")
    _library.impl(_name, getattr(_cuda_kernels, _name), "CUDA")


@torch.library.register_fake("journey::philox_words")
def _(keys: Tensor, indices: Tensor, minors: Tensor, stream: int) -> Tensor:
    return keys.new_empty((keys.shape[0], 4), dtype=torch.int64)


@torch.library.register_fake("journey::philox_normal")
def _(keys: Tensor, minors: Tensor, numel: int) -> Tensor:
    return keys.new_empty((keys.shape[0], numel), dtype=torch.float32)


@torch.library.register_fake("journey::sketch_")
def _(features: Tensor, grads: Tensor, key: int, row_begin: int, nnz: int) -> None:
    pass


@torch.library.register_fake("journey::project_")
def _(features: Tensor, grads: Tensor, key: int, kind: int, row_begin: int) -> None:
    pass


@torch.library.register_fake("journey::sketch_outer_")
def _(
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
    pass


@torch.library.register_fake("journey::accumulate_gram_")
def _(gram: Tensor, features: Tensor, block_size: int) -> None:
    pass


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
    for name, tensor in (("keys", keys), ("indices", indices), ("minors", minors)):
        _check_int64_vector(name, tensor, keys)
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
    for name, tensor in (("keys", keys), ("minors", minors)):
        _check_int64_vector(name, tensor, keys)
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
    _check_features(features, grads.shape[0] if grads.dim() else 0, "batch")
    _check_dims("grads", grads, "[batch, rows, cols]", 3)
    _check_input("grads", grads, features)
    if features.shape[1] % LANES:
        raise ValueError(f"proj_dim must be a multiple of {LANES}, got features {list(features.shape)}")
    _check_key(key)
    _check_nnz(nnz)
    if row_begin < 0:
        raise ValueError(f"row_begin must not be negative, got {row_begin}")
    torch.ops.journey.sketch_(features, grads, to_signed(key), row_begin, nnz)


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
    _check_features(features, grads.shape[0] if grads.dim() else 0, "batch")
    _check_dims("grads", grads, "[batch, grad_dim]", 2)
    _check_input("grads", grads, features)
    _check_key(key)
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
        positions, the padded input of 1,024 (of one output line or position, if that is more) and sums of the size of
        the features, at most four times; copies of ``a`` and ``g`` if they are not contiguous. On CUDA the blocks'
        sums, see ``sketch_``.
    """
    if conv is None:
        _check_dims("a", a, "[num_rows, positions, d_in]", 3)
        _check_dims("g", g, "[num_rows, positions, d_out]", 3)
        if a.shape[:2] != g.shape[:2]:
            raise ValueError(f"a and g must agree in [num_rows, positions], got {list(a.shape)} and {list(g.shape)}")
    else:
        _check_dims("a", a, "[num_rows, c_in, *spatial]", 2 + conv.spatial_dims)
        _check_conv(a, g, conv)
    num_groups = features.shape[0] if features.dim() else 0
    _check_features(features, num_groups, "num_groups")
    _check_input("a", a, features)
    _check_input("g", g, features)
    if a.dtype != g.dtype:
        raise TypeError(f"a and g must have the same dtype, got {a.dtype} and {g.dtype}")
    if (num_groups == 0 and a.shape[0]) or (num_groups and a.shape[0] % num_groups):
        raise ValueError(f"a must hold a whole number of rows per group, got {a.shape[0]} rows for {num_groups} groups")
    if features.shape[1] % LANES:
        raise ValueError(f"proj_dim must be a multiple of {LANES}, got features {list(features.shape)}")
    _check_key(key)
    _check_nnz(nnz)
    walk = ([], [], [], [], 1) if conv is None else _walk(conv)
    torch.ops.journey.sketch_outer_(features, a, g, to_signed(key), nnz, *walk)


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
            CUDA products are in float32 within 32 samples and sums in float64. [num_samples, proj_dim]
        block_size: Samples per block. Changes memory and speed, and the result only by rounding.

    Raises:
        ValueError: If the shapes disagree, ``gram`` is not square or ``block_size`` is not positive.
        TypeError: If a dtype is not one of those above.
        NotImplementedError: For CUDA tensors when the package was built without CUDA kernels.

    Reference:
        Park et al., "TRAK: Attributing Model Behavior at Scale", ICML 2023, section 3.2 (there written as X^T X).
    """
    if gram.dim() != 2 or gram.shape[0] != gram.shape[1]:
        raise ValueError(f"gram must be [proj_dim, proj_dim], got {list(gram.shape)}")
    if gram.shape[0] > 1 and gram.stride(1) != 1:
        raise ValueError(f"gram must have contiguous rows, got strides {gram.stride()}")
    _check_dims("features", features, "[num_samples, proj_dim]", 2)
    if features.shape[1] != gram.shape[0]:
        raise ValueError(f"features must be [num_samples, {gram.shape[0]}], got {list(features.shape)}")
    if gram.dtype != torch.float64:
        raise TypeError(f"gram must be float64, got {gram.dtype}")
    _check_input("features", features, gram)
    if block_size < 1:
        raise ValueError(f"block_size must be positive, got {block_size}")
    torch.ops.journey.accumulate_gram_(gram, features, block_size)


def _check_features(features: Tensor, rows: int, rows_name: str) -> None:
    if features.dim() != 2:
        raise ValueError(f"features must be [{rows_name}, proj_dim], got {list(features.shape)}")
    if features.shape[0] != rows:
        raise ValueError(f"features must have one row for each of the {rows} in {rows_name}, got {features.shape[0]}")
    if features.dtype != torch.float32:
        raise TypeError(f"features must be float32, got {features.dtype}")
    if features.shape[1] > 1 and features.stride(1) != 1:
        raise ValueError(f"features must have contiguous rows, got strides {features.stride()}")
    if features.shape[0] > 1 and features.stride(0) < features.shape[1]:
        raise ValueError(f"features must have rows that do not overlap, got strides {features.stride()}")


def _check_dims(name: str, tensor: Tensor, form: str, dims: int) -> None:
    if tensor.dim() != dims:
        raise ValueError(f"{name} must be {form}, got {list(tensor.shape)}")


def _check_input(name: str, tensor: Tensor, like: Tensor) -> None:
    if tensor.dtype not in _INPUT_DTYPES:
        raise TypeError(f"{name} must be float32, float16 or bfloat16, got {tensor.dtype}")
    if tensor.device != like.device:
        raise ValueError(f"{name} must be on {like.device} like the result, got {tensor.device}")


def _check_int64_vector(name: str, tensor: Tensor, like: Tensor) -> None:
    length = like.shape[0] if like.dim() else 0
    if tensor.device != like.device:
        raise ValueError(f"{name} must be on {like.device} like keys, got {tensor.device}")
    if tensor.dtype != torch.int64:
        raise TypeError(f"{name} must be int64, got {tensor.dtype}")
    if list(tensor.shape) != [length]:
        raise ValueError(f"{name} must be [{length}], got {list(tensor.shape)}")


def _check_key(key: int) -> None:
    if not 0 <= key < 2**64:
        raise ValueError(f"key must be in [0, 2**64), got {key}")


def _check_nnz(nnz: int) -> None:
    if not 1 <= nnz <= MAX_NNZ:
        raise ValueError(f"nnz must be between 1 and {MAX_NNZ}, got {nnz}")


def _walk(conv: ConvGeometry) -> tuple[list[int], list[int], list[int], list[int], int]:
    return list(conv.kernel_size), list(conv.stride), list(conv.padding), list(conv.dilation), conv.groups


def _check_conv(a: Tensor, g: Tensor, conv: ConvGeometry) -> None:
    walk = zip(a.shape[2:], conv.kernel_size, conv.stride, conv.padding, conv.dilation, strict=True)
    spatial = [(size + 2 * pad - dilation * (k - 1) - 1) // stride + 1 for size, k, stride, pad, dilation in walk]
    if g.dim() != a.dim() or g.shape[0] != a.shape[0] or list(g.shape[2:]) != spatial:
        raise ValueError(
            f"g must be [{a.shape[0]}, c_out, {', '.join(map(str, spatial))}] for a {list(a.shape)} and {conv}, "
            f"got {list(g.shape)}"
        )
    if a.shape[1] % conv.groups or g.shape[1] % conv.groups:
        raise ValueError(
            f"channels of a and g must be divisible by {conv.groups} groups, got {a.shape[1]}, {g.shape[1]}"
        )
