"""Where a parameter stands, and what maps its gradients to features."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from typing_extensions import Self

from journey.files.named import Named
from journey.ops.geometry import ConvGeometry
from journey.ops.weight_grad import sum_rows_, weight_grad_tiles


@dataclass(frozen=True)
class ParameterSlot:
    """Where a parameter stands among those that are measured.

    Args:
        name: Name in ``model.named_parameters()``.
        rows: First dimension, or 1 for a vector.
        cols: Product of the other dimensions.
        offset: Entries of the parameters before it.
        taps: Product of the dimensions after the second, the kernel positions of a convolution; columns are (tap,
            second dimension), see ``tap_major``.
    """

    name: str
    rows: int
    cols: int
    offset: int
    taps: int = 1


class Piece(NamedTuple):
    """Rows ``row_begin ...`` of a parameter."""

    slot: ParameterSlot
    row_begin: int
    num_rows: int


class LayerGradient(NamedTuple):
    """A weight's gradients as layer input and output gradient, see ``ops.sketch_outer_``.

    ``sums`` [num_groups, rows] are to be overwritten with those of the layer's bias, see ``ops.sketch_outer_many_``.
    """

    slot: ParameterSlot
    a: Tensor
    g: Tensor
    conv: ConvGeometry | None
    sums: Tensor | None = None


class Projector(Named):
    """A linear map from the gradients of named parameters to ``proj_dim`` features.

    It takes a parameter as the matrix of its slot. One whose map goes by the columns of the matrix names their order in
    its fingerprint (``ByColumn``); one whose map is the caller's takes them back to the order of the parameter itself.
    """

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

    def add_many_(
        self, features: Tensor, pieces: Sequence[Piece], grads: Tensor, scales: Sequence[float] | None = None
    ) -> None:
        """Add the images of the gradients of many small parameters, each times its scale.

        Args:
            features: Added to, float32. [num_groups, proj_dim]
            pieces: Rows of parameters.
            grads: Their gradients, piece after piece, float32. [num_groups, entries]
            scales: One for each piece; 1 by default.
        """
        parts = grads.split([piece.num_rows * piece.slot.cols for piece in pieces], dim=1)
        for i, (piece, part) in enumerate(zip(pieces, parts, strict=True)):
            scaled = part if scales is None else part * scales[i]
            self.add_(features, piece.slot, scaled.unflatten(1, (piece.num_rows, -1)), piece.row_begin)

    def add_outer_(
        self, features: Tensor, slot: ParameterSlot, a: Tensor, g: Tensor, conv: ConvGeometry | None
    ) -> None:
        """Add the image of weight gradients given as layer input and output gradient (``ops.sketch_outer_``)."""
        for grads, group, row in weight_grad_tiles(a, g, features.shape[0], conv):
            self.add_(features[group : group + grads.shape[0]], slot, grads, row)

    def add_layers_(
        self, features: Tensor, layers: Sequence[LayerGradient], scales: Sequence[float] | None = None
    ) -> None:
        """Add the images of the weight gradients of several layers, each times its scale, which is 1 by default.

        Sums of output gradients that a layer asks for are written beside.
        """
        for i, layer in enumerate(layers):
            # The features are shorter than the layer's inputs and output gradients: they are scaled, not these.
            added = features if scales is None else torch.zeros_like(features)
            self.add_outer_(added, layer.slot, layer.a, layer.g, layer.conv)
            if layer.sums is not None:
                sum_rows_(layer.sums, layer.g, channels_last=layer.conv is None)
            if scales is not None:
                features.add_(added, alpha=scales[i])


class ByColumn(Projector):
    """A projector whose map goes by the columns of a parameter's matrix: other orders of them are other maps."""

    def fingerprint(self) -> dict[str, Any]:
        """Return what determines the map, as JSON values, with the order of a convolution's columns."""
        return {**super().fingerprint(), "columns": "tap-major"}

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Self | None:
        """Return the projector with these fields of a fingerprint, whose columns run as they do now."""
        return super().from_fields({name: value for name, value in fields.items() if name != "columns"})
