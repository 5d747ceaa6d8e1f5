"""Second moments of vectors, as Gram matrices in float64, and their eigendecompositions."""

from __future__ import annotations

import torch
from torch import Tensor

from journey import ops
from journey.errors import NonFiniteGradientError


def accumulate_(grams: dict[str, Tensor], name: str, vectors: Tensor) -> None:
    """Add the second moment of vectors to the matrix of that name.

    Args:
        grams: Matrices, float64, of which the upper triangle counts; a missing one begins at zero.
        name: Which.
        vectors: [..., dim]
    """
    size = vectors.shape[-1]
    if name not in grams:
        grams[name] = torch.zeros(size, size, dtype=torch.float64, device=vectors.device)
    ops.accumulate_gram_(grams[name], vectors.reshape(-1, size).contiguous())


def eigen(name: str, gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues, lowest first, and the eigenvectors, as columns, of an upper triangle, float64.

    Raises:
        NonFiniteGradientError: If the matrix holds NaN or infinity; names the parameter.
    """
    check_finite(name, gram)
    return tuple(torch.linalg.eigh(gram, UPLO="U"))


def check_finite(name: str, tensor: Tensor) -> None:
    """Refuse what was summed for the curvature of a parameter when it is not finite.

    Raises:
        NonFiniteGradientError: Names the parameter.
    """
    if not torch.isfinite(tensor).all():
        raise NonFiniteGradientError(
            f"the curvature of {name!r} is NaN or infinite. Check the model's weights and the images; a float16 model "
            "may need bfloat16 or float32"
        )
