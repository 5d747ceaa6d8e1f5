"""The dense random projection."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from journey.ops.checks import check_dims, check_features, check_input, check_key, check_tensors
from journey.ops.keys import to_signed

ProjectionKind = Literal["rademacher", "normal"]


_KINDS = ("rademacher", "normal")


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
