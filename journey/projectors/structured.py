"""Projectors that look at the structure of the gradient: masks, and factors of each layer's outer product."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from journey import ops
from journey.ops.geometry import ConvGeometry, channel_major
from journey.ops.keys import derive_key, to_signed
from journey.projectors.base import ByColumn, ParameterSlot, Projector

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@dataclass(frozen=True)
class Masked(ByColumn, name="masked"):
    """A random subset of the gradient's entries, then another projector (GraSS).

    Args:
        inner: What the kept entries go to.
        keep: Share of the entries that is kept.
        seed: Names the mask.

    Raises:
        ValueError: If ``keep`` is not in (0, 1].

    Reference:
        Hu et al., "GraSS: Scalable Influence Function with Sparse Gradient Compression", NeurIPS 2025.
    """

    inner: Projector
    keep: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the number."""
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep must be in (0, 1], got {self.keep}")

    def features_dim(self, num_parameters: int) -> int:
        """Return that of the inner projector."""
        return self.inner.features_dim(num_parameters)

    def add_(self, features: Tensor, slot: ParameterSlot, grads: Tensor, row_begin: int = 0) -> None:
        """Add the image of the kept entries, see ``Projector.add_``."""
        mask = _mask(self.seed, slot.name, slot.rows, slot.cols, self.keep)
        rows = mask[row_begin : row_begin + grads.shape[1]].to(grads.device)
        self.inner.add_(features, slot, grads * rows, row_begin)

    def fingerprint(self) -> dict[str, Any]:
        """Return what determines the map, as JSON values."""
        return {**super().fingerprint(), "inner": self.inner.fingerprint()}

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Self | None:
        """Return the projector with these fields of a fingerprint."""
        return super().from_fields({**fields, "inner": Projector.from_fingerprint(fields["inner"])})


@lru_cache(maxsize=1024)
def _mask(seed: int, name: str, rows: int, cols: int, keep: float) -> Tensor:
    """Entries that are kept, scaled so that inner products keep their expectation. [rows, cols]"""
    generator = torch.Generator("cpu").manual_seed(derive_key(seed, "mask", name) >> 1)
    kept: Tensor = torch.rand(rows, cols, generator=generator, dtype=torch.float32, device="cpu") < keep
    return kept.float() / math.sqrt(keep)


@dataclass(frozen=True)
class Factored(ByColumn, name="factored"):
    """Project layer inputs and output gradients, then multiply: each weight has a block of features of its own.

    The weight gradient of a layer is ``sum over positions of g a^T``; with small matrices ``P`` (inputs) and ``Q``
    (output gradients) its block is ``Q (sum g a^T) P^T = sum (Q g) (P a)^T``, and neither the gradient nor a projection
    of its size is ever formed. Parameters that are not weights of layers (biases, norms) are left out, as published.

    Args:
        layers: Weights that are measured with rows and columns of their gradients, see ``of``.
        in_dim: Length of projected inputs, at most the columns of the weight.
        out_dim: Length of projected output gradients, at most the rows of the weight.
        kind: ``"normal"``: dense matrices (LoGra); ``"mask"``: random coordinates (FactGraSS).
        sketch_dim: Sketch each block to this length, a multiple of 32 (FactGraSS); None keeps it.
        seed: Names the matrices.

    Reference:
        Choe et al., "What is Your Data Worth to GPT? LLM-Scale Data Valuation with Influence Functions", 2024;
        Hu et al., "GraSS", NeurIPS 2025, for masks and the sketch.
    """

    layers: tuple[tuple[str, int, int], ...]
    in_dim: int = 16
    out_dim: int = 16
    kind: Literal["normal", "mask"] = "normal"
    sketch_dim: int | None = None
    seed: int = 0

    @staticmethod
    def of(network: nn.Module, **options: Any) -> Factored:
        """Return the projector for all Linear and Conv weights of a network.

        Args:
            network: The network.
            **options: Fields of the class.

        Returns:
            The projector.
        """
        kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
        layers = [
            (f"{name}.weight", module.weight.shape[0], module.weight[0].numel())
            for name, module in network.named_modules()
            if isinstance(module, kinds)
        ]
        return Factored(tuple(layers), **options)

    @property
    def blocks(self) -> list[int]:
        """Length of the features of each layer, in order."""
        return [
            self.sketch_dim or self._dims(rows, cols)[0] * self._dims(rows, cols)[1] for _, rows, cols in self.layers
        ]

    def features_dim(self, num_parameters: int) -> int:
        """Return the sum of the blocks."""
        return sum(self.blocks)

    def add_(self, features: Tensor, slot: ParameterSlot, grads: Tensor, row_begin: int = 0) -> None:
        """Add the image of gradients of one weight, see ``Projector.add_``."""
        block = self._block(features, slot)
        if block is not None:
            p, q = self._matrices(slot, grads.device)
            rows = q[:, row_begin : row_begin + grads.shape[1]]
            self._add_small_(block, slot, rows @ grads.float() @ p.T)

    def add_outer_(
        self, features: Tensor, slot: ParameterSlot, a: Tensor, g: Tensor, conv: ConvGeometry | None
    ) -> None:
        """Add the product of projected factors, see ``Projector.add_outer_``."""
        block = self._block(features, slot)
        if block is None:
            return
        if conv is not None and conv.groups > 1:  # each group of channels has inputs of its own
            super().add_outer_(features, slot, a, g, conv)
            return
        p, q = self._matrices(slot, a.device)
        a, g = a.float(), g.float()
        num_groups = features.shape[0]
        if conv is None:
            a, g = a @ p.T, g @ q.T
        else:
            kernel = channel_major(p, conv.kernel_positions).view(-1, a.shape[1], *conv.kernel_size)
            convolve = _CONVOLUTIONS[conv.spatial_dims]
            # Projecting the unfolded input is a convolution with the rows of P as filters.
            a = convolve(a, kernel, None, conv.stride, conv.padding, conv.dilation).flatten(2).transpose(1, 2)
            g = g.flatten(2).transpose(1, 2) @ q.T
        a, g = (x.reshape(num_groups, -1, x.shape[-1]) for x in (a, g))
        self._add_small_(block, slot, g.transpose(1, 2) @ a)

    def _add_small_(self, block: Tensor, slot: ParameterSlot, small: Tensor) -> None:
        if self.sketch_dim is None:
            block += small.flatten(1)
        else:
            ops.sketch_(block, small.contiguous(), key=derive_key(self.seed, "sketch", slot.name), row_begin=0, nnz=1)

    def _block(self, features: Tensor, slot: ParameterSlot) -> Tensor | None:
        names = [name for name, _, _ in self.layers]
        if slot.name not in names:
            return None
        index = names.index(slot.name)
        begin = [0, *accumulate(self.blocks)][index]
        return features[:, begin : begin + self.blocks[index]]

    def _dims(self, rows: int, cols: int) -> tuple[int, int]:
        return min(self.in_dim, cols), min(self.out_dim, rows)

    def _matrices(self, slot: ParameterSlot, device: torch.device) -> tuple[Tensor, Tensor]:
        """P and Q of a weight. [in_dim, cols], [out_dim, rows]"""
        in_dim, out_dim = self._dims(slot.rows, slot.cols)
        p = _factor(self.seed, f"{slot.name} inputs", in_dim, slot.cols, self.kind)
        q = _factor(self.seed, f"{slot.name} outputs", out_dim, slot.rows, self.kind)
        return p.to(device), q.to(device)


@lru_cache(maxsize=4096)
def _factor(seed: int, name: str, rows: int, cols: int, kind: str) -> Tensor:
    """A random matrix with ``E[M^T M] = I``. [rows, cols]"""
    key = derive_key(seed, kind, name)
    if kind == "normal":
        noise = ops.philox_normal(
            torch.tensor([to_signed(key)], dtype=torch.int64, device="cpu"),
            torch.zeros(1, dtype=torch.int64, device="cpu"),
            rows * cols,
        )
        return noise.view(rows, cols) / math.sqrt(rows)
    chosen = torch.randperm(
        cols, generator=torch.Generator("cpu").manual_seed(key >> 1), dtype=torch.int64, device="cpu"
    )[:rows]
    one_hot: Tensor = F.one_hot(chosen, cols)
    return one_hot.float() * math.sqrt(cols / rows)
