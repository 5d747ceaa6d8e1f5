"""Curvature of a loss, parameter by parameter, and the projector that divides gradients by its root.

It is fitted elsewhere, as Kronecker factors alone (``journey.curvature.kfac``) or with eigenvalues of its own in their
eigenbasis (``journey.curvature.ekfac``); here it is applied, kept and named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from journey.curvature.blocks import Block, EigenBlock, KroneckerBlock
from journey.files.fingerprint import fingerprint_tensors
from journey.files.tensors import read_tensors, write_tensors
from journey.ops.geometry import ConvGeometry
from journey.projectors.base import ParameterSlot, Projector


class Curvature:
    """The curvature of a model, one block for each parameter.

    Args:
        blocks: The block of each parameter, by name.
    """

    def __init__(self, blocks: Mapping[str, Block]) -> None:
        self.blocks = dict(blocks)

    def block(self, slot: ParameterSlot) -> Block:
        """Return the block of a parameter.

        Raises:
            ValueError: If there is none, or one of another shape.
        """
        block = self.blocks.get(slot.name)
        if block is None or not block.fits(slot.rows, slot.cols):
            found = "none" if block is None else f"one of shape {block.shape}"
            raise ValueError(
                f"curvature must have a block for {slot.name!r} of shape {[slot.rows, slot.cols]}, got {found}; fit it "
                "to the model that is measured, with the same select"
            )
        return block

    def save(self, path: str | Path) -> None:
        """Write everything as one safetensors file, whole or not at all."""
        write_tensors(path, "curvature", self._tensors())

    @staticmethod
    def load(path: str | Path) -> Curvature:
        """Read what ``save`` wrote.

        Args:
            path: The file.

        Returns:
            The curvature, on the CPU.

        Raises:
            ValueError: If the file holds something else, or is damaged.
        """
        tensors = read_tensors(path, "curvature")
        parts: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            name, _, part = key.rpartition("/")
            parts.setdefault(name, {})[part] = tensor
        blocks: dict[str, Block] = {}
        for name, found in parts.items():
            kind = next((k for k in (EigenBlock, KroneckerBlock) if k.parts_fit(found.keys())), None)
            if kind is None:
                raise ValueError(f"{path} is damaged or of another version: {name} has the parts {', '.join(found)}")
            blocks[name] = kind.from_tensors(found)
        return Curvature(blocks)

    def fingerprint(self) -> str:
        """Return the hash of all tensors."""
        return fingerprint_tensors(self._tensors())

    def _tensors(self) -> dict[str, Tensor]:
        return {f"{name}/{part}": t for name, block in self.blocks.items() for part, t in block.tensors().items()}


@dataclass(frozen=True, eq=False)
class Whitened(Projector, name="whitened"):
    """Gradients times the inverse root of the damped curvature, then another projector.

    Inner products of the features estimate ``g (G + damping I)^-1 g'``, the influence function, if both sides go
    through this map: the inverse is split between them.

    Args:
        inner: What whitened gradients go to.
        curvature: The curvature, of all parameters that are measured, see ``journey.curvature.kfac.fit_kfac`` and
            ``journey.curvature.ekfac.fit_ekfac``.
        damping: Ridge, as a fraction of the mean eigenvalue: of each parameter, or with Kronecker factors of each
            factor.

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
        whitened, row_begin = self.curvature.block(slot).whiten(grads, row_begin, self.damping)
        self.inner.add_(features, slot, whitened, row_begin)

    def add_outer_(
        self, features: Tensor, slot: ParameterSlot, a: Tensor, g: Tensor, conv: ConvGeometry | None
    ) -> None:
        """Add the image of whitened weight gradients, which Kronecker factors never form, see ``Projector``."""
        block = self.curvature.block(slot)
        if isinstance(block, KroneckerBlock):
            self.inner.add_outer_(features, slot, *block.whiten_outer(a, g, conv, self.damping), conv)
        else:
            super().add_outer_(features, slot, a, g, conv)

    def fingerprint(self) -> dict[str, Any]:
        """Return what determines the map, as JSON values."""
        return {
            "class": self.fingerprint_name,
            "inner": self.inner.fingerprint(),
            "curvature": self.curvature.fingerprint(),
            "damping": self.damping,
        }

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> None:
        """Return None: a hash does not tell the curvature."""
