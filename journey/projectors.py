"""Linear maps from gradients to features: the count sketch, dense projections, and the identity.

A projector is a configuration; none but ``ExplicitMatrix`` holds a matrix. It adds the image of one parameter's
gradients to the features, so the features of a model are the sum over its parameters, in any order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from journey import ops
from journey.files.fingerprint import fingerprint_tensors
from journey.ops.checks import LANES, MAX_NNZ
from journey.ops.geometry import ConvGeometry
from journey.ops.keys import derive_key
from journey.ops.weight_grad import weight_grad_tiles


@dataclass(frozen=True)
class ParameterSlot:
    """Where a parameter stands among those that are measured.

    Args:
        name: Name in ``model.named_parameters()``.
        rows: First dimension, or 1 for a vector.
        cols: Product of the other dimensions.
        offset: Entries of the parameters before it.
    """

    name: str
    rows: int
    cols: int
    offset: int


class Projector(ABC):
    """A linear map from the gradients of named parameters to ``proj_dim`` features."""

    @abstractmethod
    def features_dim(self, num_parameters: int) -> int:
        """Return the length of the features of a model with ``num_parameters`` measured parameters."""

    @abstractmethod
    def add_(self, features: Tensor, slot: ParameterSlot, grads: Tensor, row_begin: int = 0) -> None:
        """Add the image of gradients of one parameter.

        Args:
            features: Added to, float32. [num_groups, proj_dim]
            slot: The parameter.
            grads: Rows ``row_begin ...`` of its gradients. [num_groups, num_rows, cols]
            row_begin: First row of the parameter that ``grads`` holds.
        """

    def add_many_(self, features: Tensor, small: Sequence[tuple[ParameterSlot, Tensor, int]]) -> None:
        """Add the images of the gradients of many small parameters: slot, gradients and ``row_begin`` of each."""
        for slot, grads, row_begin in small:
            self.add_(features, slot, grads, row_begin)

    def add_outer_(
        self, features: Tensor, slot: ParameterSlot, a: Tensor, g: Tensor, conv: ConvGeometry | None
    ) -> None:
        """Add the image of weight gradients given as layer input and output gradient (``ops.sketch_outer_``)."""
        for grads, group, row in weight_grad_tiles(a, g, features.shape[0], conv):
            self.add_(features[group : group + grads.shape[0]], slot, grads, row)

    def fingerprint(self) -> dict[str, Any]:
        """Return what determines the map, as JSON values."""
        return {"kind": type(self).__name__, **asdict(self)}  # type: ignore[call-overload]


@dataclass(frozen=True)
class CountSketch(Projector):
    """Block-rotation count sketch: one signed bucket per gradient entry and repetition, nothing stored.

    Unbiased inner products with the accuracy of a dense projection, at the price of one pass over the gradient.

    Args:
        proj_dim: Features, a multiple of 32.
        nnz: Independent sketches that are summed, 1 to 64.
        seed: Names the map.

    Raises:
        ValueError: If ``proj_dim`` is not a positive multiple of 32 or ``nnz`` is out of range.
    """

    proj_dim: int = 4096
    nnz: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.proj_dim < LANES or self.proj_dim % LANES:
            below = max(LANES, self.proj_dim // LANES * LANES)
            raise ValueError(
                f"proj_dim must be a positive multiple of {LANES} (for example {below}), got {self.proj_dim}"
            )
        if not 1 <= self.nnz <= MAX_NNZ:
            raise ValueError(f"nnz must be between 1 and {MAX_NNZ}, got {self.nnz}")

    def features_dim(self, num_parameters: int) -> int:
        """Return ``proj_dim``."""
        return self.proj_dim

    def add_(self, features: Tensor, slot: ParameterSlot, grads: Tensor, row_begin: int = 0) -> None:
        """Add the sketch of gradients of one parameter, see ``Projector.add_``."""
        ops.sketch_(features, grads, key=self._key(slot), row_begin=row_begin, nnz=self.nnz)

    def add_many_(self, features: Tensor, small: Sequence[tuple[ParameterSlot, Tensor, int]]) -> None:
        """Add the sketches of many small gradients in few launches, see ``Projector.add_many_``."""
        ops.sketch_many_(
            features,
            [grads for _, grads, _ in small],
            keys=[self._key(slot) for slot, _, _ in small],
            row_begins=[row_begin for _, _, row_begin in small],
            nnz=self.nnz,
        )

    def add_outer_(
        self, features: Tensor, slot: ParameterSlot, a: Tensor, g: Tensor, conv: ConvGeometry | None
    ) -> None:
        """Add the sketch of weight gradients that are never formed, see ``Projector.add_outer_``."""
        ops.sketch_outer_(features, a, g, key=self._key(slot), nnz=self.nnz, conv=conv)

    def _key(self, slot: ParameterSlot) -> int:
        return derive_key(self.seed, "sketch", slot.name)


@dataclass(frozen=True)
class _Dense(Projector):
    """A dense random matrix, generated as it is used: 2 * proj_dim FLOPs per gradient entry.

    Args:
        proj_dim: Features.
        seed: Names the matrix.

    Raises:
        ValueError: If ``proj_dim`` is not positive.
    """

    proj_dim: int = 4096
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.proj_dim < 1:
            raise ValueError(f"proj_dim must be positive, got {self.proj_dim}")

    def features_dim(self, num_parameters: int) -> int:
        """Return ``proj_dim``."""
        return self.proj_dim

    def add_(self, features: Tensor, slot: ParameterSlot, grads: Tensor, row_begin: int = 0) -> None:
        """Add the projection of gradients of one parameter, see ``Projector.add_``."""
        kind = self._kind()
        ops.project_(
            features,
            grads.flatten(1),
            key=derive_key(self.seed, kind, slot.name),
            kind=kind,
            row_begin=row_begin * slot.cols,
        )

    @abstractmethod
    def _kind(self) -> ops.ProjectionKind: ...


@dataclass(frozen=True)
class Rademacher(_Dense):
    """Dense projection with entries +1 or -1, over sqrt(proj_dim): TRAK's default, the reference for the sketch.

    Args:
        proj_dim: Features.
        seed: Names the matrix.

    Raises:
        ValueError: If ``proj_dim`` is not positive.
    """

    def _kind(self) -> ops.ProjectionKind:
        return "rademacher"


@dataclass(frozen=True)
class Gaussian(_Dense):
    """Dense projection with standard normal entries, over sqrt(proj_dim).

    Args:
        proj_dim: Features.
        seed: Names the matrix.

    Raises:
        ValueError: If ``proj_dim`` is not positive.
    """

    def _kind(self) -> ops.ProjectionKind:
        return "normal"


@dataclass(frozen=True)
class Identity(Projector):
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
        features[:, begin : begin + grads[0].numel()] += grads.flatten(1)


class ExplicitMatrix(Projector):
    """The caller's own projection matrix, as when comparing with another implementation.

    ``features = grads @ matrix`` with gradients in the order of ``Identity``, in float32 and without a scale.

    Args:
        matrix: One row for each entry of the gradient, kept as float32. [grad_dim, proj_dim]

    Raises:
        ValueError: If it is no matrix, or is empty.
        TypeError: If it is not floating point.
    """

    def __init__(self, matrix: Tensor) -> None:
        matrix = torch.as_tensor(matrix)
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
        flat = grads.flatten(1).float()
        features += flat @ self._matrix[begin : begin + flat.shape[1]]

    def fingerprint(self) -> dict[str, Any]:
        """Return a hash of the matrix."""
        return {"kind": "ExplicitMatrix", "matrix": fingerprint_tensors({"matrix": self._matrix})}
