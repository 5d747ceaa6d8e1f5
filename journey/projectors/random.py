"""Random maps from gradients to features: the count sketch, and dense projections; none holds a matrix."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from journey import ops
from journey.ops.checks import LANES, MAX_NNZ
from journey.ops.geometry import ConvGeometry
from journey.ops.keys import derive_key
from journey.projectors.base import ByColumn, LayerGradient, ParameterSlot, Piece


@dataclass(frozen=True)
class CountSketch(ByColumn, name="count_sketch"):
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

    def add_many_(
        self, features: Tensor, pieces: Sequence[Piece], grads: Tensor, scales: Sequence[float] | None = None
    ) -> None:
        """Add the sketches of many small gradients in few launches, see ``Projector.add_many_``."""
        ops.sketch_many_(
            features,
            grads,
            keys=[self._key(piece.slot) for piece in pieces],
            shapes=[(piece.num_rows, piece.slot.cols) for piece in pieces],
            row_begins=[piece.row_begin for piece in pieces],
            scales=scales,
            nnz=self.nnz,
        )

    def add_outer_(
        self, features: Tensor, slot: ParameterSlot, a: Tensor, g: Tensor, conv: ConvGeometry | None
    ) -> None:
        """Add the sketch of weight gradients that are never formed, see ``Projector.add_outer_``."""
        ops.sketch_outer_(features, a, g, key=self._key(slot), nnz=self.nnz, conv=conv)

    def add_layers_(
        self, features: Tensor, layers: Sequence[LayerGradient], scales: Sequence[float] | None = None
    ) -> None:
        """Add the sketches of the weight gradients of several layers by one call, see ``Projector.add_layers_``."""
        ops.sketch_outer_many_(
            features,
            [layer.a for layer in layers],
            [layer.g for layer in layers],
            keys=[self._key(layer.slot) for layer in layers],
            convs=[layer.conv for layer in layers],
            scales=scales,
            nnz=self.nnz,
            sums=[layer.sums for layer in layers],
        )

    def _key(self, slot: ParameterSlot) -> int:
        return _sketch_key(self.seed, slot.name)


@lru_cache(maxsize=1 << 14)
def _sketch_key(seed: int, name: str) -> int:
    """The key of a parameter's map: every pass asks for those of all."""
    return derive_key(seed, "sketch", name)


@dataclass(frozen=True)
class _Dense(ByColumn):
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
class Rademacher(_Dense, name="rademacher"):
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
class Gaussian(_Dense, name="gaussian"):
    """Dense projection with standard normal entries, over sqrt(proj_dim).

    Args:
        proj_dim: Features.
        seed: Names the matrix.

    Raises:
        ValueError: If ``proj_dim`` is not positive.
    """

    def _kind(self) -> ops.ProjectionKind:
        return "normal"
