"""Curvature of a loss in its eigenbasis, parameter by parameter, and the projector that divides by its root.

The curvature of each parameter is ``G = (U ⊗ V) diag(eigenvalues) (U ⊗ V)^T`` with orthogonal ``U`` and ``V``, that of
the model has these as blocks. It is fitted elsewhere (``journey.ekfac``); here it is applied, kept and named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from journey.fingerprint import fingerprint_tensors
from journey.projectors import ParameterSlot, Projector
from journey.publish import publish


class Block(NamedTuple):
    """The curvature of one parameter; a basis that is None is the parameter's own.

    Attributes:
        eigenvalues: Not negative, float32. [rows, cols]
        outputs: Eigenvectors on the side of the layer's outputs, as columns. [rows, rows]
        inputs: Eigenvectors on the side of its inputs, as columns. [cols, cols]
    """

    eigenvalues: Tensor
    outputs: Tensor | None
    inputs: Tensor | None

    def rotate(self, grads: Tensor, row_begin: int = 0) -> tuple[Tensor, int]:
        """Express rows of gradients in the eigenbasis: ``outputs^T grads inputs``.

        Args:
            grads: Rows ``row_begin ...`` of gradients. [num_groups, num_rows, cols]
            row_begin: First row of the parameter that ``grads`` holds; other rows count as zero.

        Returns:
            Rows of the coefficients, float32, and which is the first of them.
        """
        grads = grads.float()
        if self.inputs is not None:
            grads = grads @ self.inputs.to(grads.device)
        if self.outputs is None:
            return grads, row_begin
        return self.outputs[row_begin : row_begin + grads.shape[1]].T.to(grads.device) @ grads, 0


class Curvature:
    """The curvature of a model, one block for each parameter.

    Args:
        blocks: The block of each parameter, by name.
    """

    def __init__(self, blocks: Mapping[str, Block]) -> None:
        self.blocks = dict(blocks)

    def whiten(self, slot: ParameterSlot, grads: Tensor, row_begin: int, damping: float) -> tuple[Tensor, int]:
        """Return gradients in the eigenbasis, divided by the root of the damped eigenvalues.

        ``(U^T grads V)_jk / sqrt(eigenvalues_jk + damping * mean(eigenvalues))``

        Inner products of whitened gradients are ``g (G + ridge I)^-1 g'``, with no need to rotate back. A parameter
        without any curvature gives zero: the model's output does not depend on it.

        Args:
            slot: The parameter.
            grads: As for ``Block.rotate``.
            row_begin: As for ``Block.rotate``.
            damping: Ridge as a fraction of the mean eigenvalue of this parameter.

        Returns:
            As ``Block.rotate``.

        Raises:
            ValueError: If the parameter has no block, or one of another shape.
        """
        block = self.blocks.get(slot.name)
        if block is None or block.eigenvalues.shape != (slot.rows, slot.cols):
            found = "none" if block is None else f"one of shape {list(block.eigenvalues.shape)}"
            raise ValueError(
                f"curvature must have a block for {slot.name!r} of shape {[slot.rows, slot.cols]}, got {found}; fit it "
                "to the model that is measured, with the same select"
            )
        rotated, row_begin = block.rotate(grads, row_begin)
        eigenvalues = block.eigenvalues[row_begin : row_begin + rotated.shape[1]].to(rotated.device)
        ridge = damping * block.eigenvalues.mean().to(rotated.device)
        return rotated * torch.where(ridge > 0, torch.rsqrt(eigenvalues + ridge), 0.0), row_begin

    def save(self, path: str | Path) -> None:
        """Write everything as one safetensors file, whole or not at all."""
        publish(Path(path), [save({name: tensor.cpu().contiguous() for name, tensor in self._tensors().items()})])

    @staticmethod
    def load(path: str | Path) -> Curvature:
        """Read what ``save`` wrote.

        Args:
            path: The file.

        Returns:
            The curvature, on the CPU.

        Raises:
            ValueError: If the file holds something else.
        """
        parts: dict[str, dict[str, Tensor]] = {}
        for key, tensor in load_file(path).items():
            name, _, part = key.rpartition("/")
            parts.setdefault(name, {})[part] = tensor
        if any("eigenvalues" not in found or not found.keys() <= set(Block._fields) for found in parts.values()):
            raise ValueError(f"path must be a file that Curvature.save wrote, got {path}")
        blocks = {
            name: Block(found["eigenvalues"], found.get("outputs"), found.get("inputs"))
            for name, found in parts.items()
        }
        return Curvature(blocks)

    def fingerprint(self) -> str:
        """Return the hash of all tensors."""
        return fingerprint_tensors(self._tensors())

    def _tensors(self) -> dict[str, Tensor]:
        pairs = (
            (name, part, tensor) for name, block in self.blocks.items() for part, tensor in block._asdict().items()
        )
        return {f"{name}/{part}": tensor for name, part, tensor in pairs if tensor is not None}


@dataclass(frozen=True, eq=False)
class Whitened(Projector):
    """Gradients times the inverse root of the damped curvature, then another projector.

    Inner products of the features estimate ``g (G + damping I)^-1 g'``, the influence function, if both sides go
    through this map: the inverse is split between them.

    Args:
        inner: What whitened gradients go to.
        curvature: The curvature, of all parameters that are measured.
        damping: Ridge, as a fraction of the mean eigenvalue of each parameter.

    Raises:
        ValueError: If ``damping`` is not positive.
    """

    inner: Projector
    curvature: Curvature
    damping: float = 0.1

    def __post_init__(self) -> None:
        """Check the number."""
        if not self.damping > 0:
            raise ValueError(f"damping must be positive, got {self.damping}")

    def features_dim(self, num_parameters: int) -> int:
        """Return that of the inner projector."""
        return self.inner.features_dim(num_parameters)

    def add_(self, features: Tensor, slot: ParameterSlot, grads: Tensor, row_begin: int = 0) -> None:
        """Add the image of whitened gradients, see ``Projector.add_``."""
        whitened, row_begin = self.curvature.whiten(slot, grads, row_begin, self.damping)
        self.inner.add_(features, slot, whitened, row_begin)

    def fingerprint(self) -> dict[str, Any]:
        """Return what determines the map, as JSON values."""
        return {
            "kind": "Whitened",
            "inner": self.inner.fingerprint(),
            "curvature": self.curvature.fingerprint(),
            "damping": self.damping,
        }
