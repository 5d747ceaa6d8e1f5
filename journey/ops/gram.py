"""The Gram matrix of features."""

from __future__ import annotations

import torch
from torch import Tensor

from journey.ops.checks import check_dims, check_input, check_tensors


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
