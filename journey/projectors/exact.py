"""Projectors of the caller: the gradients themselves, and a matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from journey.data.numbers import as_tensor
from journey.files.fingerprint import fingerprint_tensors
from journey.ops.geometry import channel_major
from journey.projectors.base import ParameterSlot, Projector


@dataclass(frozen=True)
class Identity(Projector, name="identity"):
    """The gradients themselves, parameter after parameter in the order of ``model.named_parameters()``.

    A row is ``torch.cat([p.grad.flatten() for p in model.parameters()])`` over the measured parameters. For tests and
    small models: it has as many entries as they have.
    """

    def features_dim(self, num_parameters: int) -> int:
        """Return ``num_parameters``."""
        return num_parameters

    def add_(self, features: Tensor, slot: ParameterSlot, grads: Tensor, row_begin: int = 0) -> None:
        """Add gradients at their place, see ``Projector.add_``."""
        begin = slot.offset + row_begin * slot.cols
        features[:, begin : begin + grads[0].numel()] += channel_major(grads, slot.taps).flatten(1)


class ExplicitMatrix(Projector, name="explicit_matrix"):
    """The caller's own projection matrix, as when comparing with another implementation.

    ``features = grads @ matrix`` with gradients in the order of ``Identity``, in float32 and without a scale.

    Args:
        matrix: One row for each entry of the gradient, kept as float32. [grad_dim, proj_dim]

    Raises:
        ValueError: If it is no matrix, or is empty.
        TypeError: If it is not floating point.
    """

    def __init__(self, matrix: Tensor) -> None:
        matrix = as_tensor(matrix)
        if not matrix.is_floating_point():
            raise TypeError(f"matrix must be floating point, got {matrix.dtype}")
        if matrix.dim() != 2 or matrix.numel() == 0:
            raise ValueError(f"matrix must be [grad_dim, proj_dim], got {list(matrix.shape)}")
        self._matrix = matrix.detach().float()

    def features_dim(self, num_parameters: int) -> int:
        """Return ``proj_dim``.

        Args:
            num_parameters: Entries of the gradient.

        Returns:
            The columns of the matrix.

        Raises:
            ValueError: If the matrix has another number of rows.
        """
        if len(self._matrix) != num_parameters:
            raise ValueError(
                f"matrix must have a row for each of the {num_parameters} measured parameters, "
                f"got {list(self._matrix.shape)}"
            )
        return self._matrix.shape[1]

    def add_(self, features: Tensor, slot: ParameterSlot, grads: Tensor, row_begin: int = 0) -> None:
        """Add the projection of gradients of one parameter, see ``Projector.add_``."""
        if self._matrix.device != grads.device:
            self._matrix = self._matrix.to(grads.device)
        begin = slot.offset + row_begin * slot.cols
        flat = channel_major(grads, slot.taps).flatten(1).float()
        features += flat @ self._matrix[begin : begin + flat.shape[1]]

    def fingerprint(self) -> dict[str, Any]:
        """Return a hash of the matrix."""
        return {"class": self.fingerprint_name, "matrix": fingerprint_tensors({"matrix": self._matrix})}

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> None:
        """Return None: a hash does not tell the matrix."""
