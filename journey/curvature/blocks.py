"""The curvature of one parameter in two forms, and gradients divided by the root of either."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from journey.ops.geometry import ConvGeometry


class Block(ABC):
    """The curvature of a parameter ``[rows, cols]``, as tensors some of which may be None."""

    # What begins the names of its tensors in files, to tell those of other versions.
    _PREFIX: ClassVar[str] = ""

    @property
    @abstractmethod
    def shape(self) -> list[int]:
        """What is known of ``[rows, cols]``."""

    @abstractmethod
    def fits(self, rows: int, cols: int) -> bool:
        """Whether this can be the curvature of a parameter of that shape."""

    @abstractmethod
    def whiten(self, grads: Tensor, row_begin: int, damping: float) -> tuple[Tensor, int]:
        """Return gradients times the inverse root of the damped curvature, up to a fixed rotation.

        Inner products of whitened gradients are ``g (G + ridge)^-1 g'``. A parameter without any curvature gives zero:
        the model's output does not depend on it.

        Args:
            grads: Rows ``row_begin ...`` of gradients. [num_groups, num_rows, cols]
            row_begin: First row of the parameter that ``grads`` holds; other rows count as zero.
            damping: Ridge as a fraction of the mean eigenvalue.

        Returns:
            Rows of the whitened gradients, and which is the first of them.
        """

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that are not None, by their names in files."""
        pairs = ((name, getattr(self, name)) for name in self._parts())
        return {self._PREFIX + name: tensor for name, tensor in pairs if tensor is not None}

    @classmethod
    def parts_fit(cls, names: Iterable[str]) -> bool:
        """Whether tensors of these names make such a block."""
        required, *optional = (cls._PREFIX + name for name in cls._parts())
        return required in names and set(names) <= {required, *optional}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Return the block of tensors whose names fit."""
        return cls(**{name.removeprefix(cls._PREFIX): tensor for name, tensor in tensors.items()})

    @classmethod
    def _parts(cls) -> list[str]:
        return [f.name for f in fields(cls) if f.init]  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class EigenBlock(Block):
    """``G = (U ⊗ V) diag(eigenvalues) (U ⊗ V)^T`` with orthogonal U and V; a basis that is None is the parameter's own.

    Args:
        eigenvalues: Not negative, float32. [rows, cols]
        outputs: U, eigenvectors on the side of the layer's outputs, as columns. [rows, rows]
        inputs: V, eigenvectors on the side of its inputs, as columns. [cols, cols]
    """

    eigenvalues: Tensor
    outputs: Tensor | None = None
    inputs: Tensor | None = None

    _PREFIX: ClassVar[str] = "tap-major "  # columns of convolutions, unlike those of older files

    @property
    def shape(self) -> list[int]:
        """That of the eigenvalues."""
        return list(self.eigenvalues.shape)

    def fits(self, rows: int, cols: int) -> bool:
        """Whether the eigenvalues have that shape."""
        return self.shape == [rows, cols]

    def rotate(self, grads: Tensor, row_begin: int = 0) -> tuple[Tensor, int]:
        """Express rows of gradients in the eigenbasis: ``U^T grads V``.

        Args:
            grads: As for ``whiten``.
            row_begin: As for ``whiten``.

        Returns:
            Rows of the coefficients, float32, and which is the first of them.
        """
        grads = grads.float()
        if self.inputs is not None:
            grads = grads @ self.inputs.to(grads.device)
        if self.outputs is None:
            return grads, row_begin
        return self.outputs[row_begin : row_begin + grads.shape[1]].T.to(grads.device) @ grads, 0

    def whiten(self, grads: Tensor, row_begin: int, damping: float) -> tuple[Tensor, int]:
        """Return ``(U^T grads V)_jk / sqrt(eigenvalues_jk + damping * mean(eigenvalues))``, see ``Block.whiten``."""
        rotated, row_begin = self.rotate(grads, row_begin)
        eigenvalues = self.eigenvalues[row_begin : row_begin + rotated.shape[1]].to(rotated.device)
        ridge = damping * self.eigenvalues.mean().to(rotated.device)
        return rotated * torch.where(ridge > 0, torch.rsqrt(eigenvalues + ridge), 0.0), row_begin


@dataclass(frozen=True, eq=False)
class KroneckerBlock(Block):
    """``G = scale * (B ⊗ A)`` with factors of mean eigenvalue one; a factor that is missing is the identity.

    B belongs to the layer's outputs. A belongs to its input channels: the taps of a convolution's kernel are alike and
    independent of each other, which commutes with unfolding, so a layer's input can be whitened before it is unfolded.
    With ridges on the factors the damped curvature is ``scale / (1 + damping)^2 (B + damping I) ⊗ (A + damping I)``
    (a power of one for a single factor), of the same trace.

    Args:
        scale: Mean eigenvalue. [1]
        output_values: Eigenvalues of B, float32. [rows]
        output_vectors: Eigenvectors of B, as columns. [rows, rows]
        input_values: Eigenvalues of A, float32; ``channels`` divides ``cols``. [channels]
        input_vectors: Eigenvectors of A, as columns. [channels, channels]
    """

    scale: Tensor
    output_values: Tensor | None = None
    output_vectors: Tensor | None = None
    input_values: Tensor | None = None
    input_vectors: Tensor | None = None
    # Inverse roots by side, damping, dtype and device: they are needed for every batch.
    _roots: dict[tuple[str, float, torch.dtype, torch.device], Tensor] = field(
        default_factory=dict, init=False, repr=False
    )

    @property
    def shape(self) -> list[int]:
        """Output channels and input channels, 0 where nothing is known."""
        return [0 if values is None else len(values) for values in (self.output_values, self.input_values)]

    def fits(self, rows: int, cols: int) -> bool:
        """Whether the factors can be those of such a parameter."""
        outputs, inputs = self.shape
        return outputs in (0, rows) and (inputs == 0 or cols % inputs == 0)

    def whiten(self, grads: Tensor, row_begin: int, damping: float) -> tuple[Tensor, int]:
        """Return ``(G_damped)^-1/2 grads``, see ``Block.whiten``."""
        dtype = _matmul_dtype(grads)
        grads = grads.to(dtype)
        if self.input_values is not None:
            by_tap = grads.unflatten(2, (-1, len(self.input_values)))
            grads = (by_tap @ self._root("input", damping, grads)).flatten(2)
        if self.output_values is None:
            return grads * self._factor().to(grads), row_begin
        part = slice(row_begin, row_begin + grads.shape[1])
        return self._root("output", damping, grads)[:, part] @ grads, 0

    def whiten_outer(self, a: Tensor, g: Tensor, conv: ConvGeometry | None, damping: float) -> tuple[Tensor, Tensor]:
        """Whiten the layer input and output gradient whose product the weight gradient is.

        ``G^-1/2 sum_p g_p a_p^T = scale^-1/2 sum_p (B^-1/2 g_p) (A^-1/2 a_p)^T``

        Args:
            a: Layer input. Linear: [num_rows, positions, d_in]; convolution: [num_rows, c_in, *spatial].
            g: Gradient of the summed loss with respect to the layer output, likewise.
            conv: Geometry of the convolution, None for a Linear layer.
            damping: As for ``whiten``.

        Returns:
            Both, in their dtype; float16 as float32, since whitened values may be far from one.
        """
        channels = -1 if conv is None else 1
        a, g = a.to(_matmul_dtype(a)), g.to(_matmul_dtype(g))
        if self.input_values is not None:
            a = _mix(self._root("input", damping, a), a, channels)
        if self.output_values is None:
            return a, g * self._factor().to(g)
        return a, _mix(self._root("output", damping, g), g, channels)

    def _factor(self) -> Tensor:
        return torch.where(self.scale > 0, torch.rsqrt(self.scale), 0.0)

    def _root(self, side: str, damping: float, like: Tensor) -> Tensor:
        """``((F + damping I) / (1 + damping))^-1/2`` of a factor; symmetric, so the same for any choice of vectors."""
        key = (side, damping, like.dtype, like.device)
        if key not in self._roots:
            values, vectors = (
                getattr(self, f"{side}_{part}").to(like.device).double() for part in ("values", "vectors")
            )
            inverse = torch.rsqrt((values.clamp(min=0) + damping) / (1 + damping))
            if side == "output":  # the scale goes with it: one pass over the gradients fewer
                inverse = inverse * self._factor().to(inverse)
            self._roots[key] = ((vectors * inverse) @ vectors.T).to(like.dtype)
        return self._roots[key]


def _mix(root: Tensor, x: Tensor, channels: int) -> Tensor:
    """Multiply the channels, the last dimension or the second, by a symmetric matrix."""
    return x @ root if channels == -1 else (root @ x.flatten(2)).view_as(x)


def _matmul_dtype(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype == torch.float16 else x.dtype
