"""Gradients times one scale per parameter, then another projector: the default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from journey.files.fingerprint import fingerprint_json
from journey.ops.geometry import ConvGeometry
from journey.projectors.base import LayerGradient, ParameterSlot, Piece, Projector
from journey.projectors.random import CountSketch

# Stands for the scales in a fingerprint where they are those of a fit, which is named beside it.
SCALES_OF_FIT = "of the fit"


@dataclass(frozen=True, eq=False)
class Scaled(Projector, name="scaled"):
    """Gradients times one number per parameter tensor, then another projector.

    With ``s_P = sqrt(|P| / E |d psi / d P|^2)`` (``journey.curvature.scales``) the entries of every tensor have the
    same mean square under the Gauss-Newton matrix of the training loss. No layer then drowns the others, and a
    sketch is nearly normal, so that it keeps its inner products in 8 bits or 4.

    Args:
        inner: What scaled gradients go to.
        scales: By parameter name. None lets ``journey.fit`` measure them; nothing else takes None.
        of_fit: They are those of a fit, which is named beside the projector.
    """

    inner: Projector = CountSketch()  # noqa: RUF009 - frozen
    scales: Mapping[str, float] | None = None
    of_fit: bool = False

    def features_dim(self, num_parameters: int) -> int:
        """Return that of the inner projector."""
        return self.inner.features_dim(num_parameters)

    def add_(self, features: Tensor, slot: ParameterSlot, grads: Tensor, row_begin: int = 0) -> None:
        """Add the image of scaled gradients, see ``Projector.add_``."""
        self.inner.add_(features, slot, grads.float() * self.scale(slot), row_begin)

    def add_many_(
        self, features: Tensor, pieces: Sequence[Piece], grads: Tensor, scales: Sequence[float] | None = None
    ) -> None:
        """Add the images of many small scaled gradients, see ``Projector.add_many_``."""
        if scales is not None:
            return super().add_many_(features, pieces, grads, scales)
        return self.inner.add_many_(features, pieces, grads, [self.scale(piece.slot) for piece in pieces])

    def add_outer_(
        self, features: Tensor, slot: ParameterSlot, a: Tensor, g: Tensor, conv: ConvGeometry | None
    ) -> None:
        """Add the image of scaled weight gradients that are never formed, see ``Projector.add_outer_``."""
        self.add_layers_(features, [LayerGradient(slot, a, g, conv)])

    def add_layers_(
        self, features: Tensor, layers: Sequence[LayerGradient], scales: Sequence[float] | None = None
    ) -> None:
        """Add the images of the scaled weight gradients of several layers, see ``Projector.add_layers_``."""
        if scales is not None:
            return super().add_layers_(features, layers, scales)
        return self.inner.add_layers_(features, layers, [self.scale(layer.slot) for layer in layers])

    def scale(self, slot: ParameterSlot) -> float:
        """Return the scale of a parameter.

        Raises:
            ValueError: If there are no scales, or none for this parameter.
        """
        if self.scales is None:
            raise ValueError("scales must be given, got None, which journey.fit alone replaces by what it measures")
        if slot.name not in self.scales:
            raise ValueError(
                f"scales must have a number for {slot.name!r}, got none; fit to the parameters that are measured, with "
                "the same select"
            )
        return self.scales[slot.name]

    def fingerprint(self) -> dict[str, Any]:
        """Return what determines the map, as JSON values."""
        scales = SCALES_OF_FIT if self.scales is None or self.of_fit else fingerprint_json(dict(self.scales))
        return {"class": self.fingerprint_name, "inner": self.inner.fingerprint(), "scales": scales}

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Scaled | None:
        """Return the projector whose scales are the fit's; None for scales of the caller's."""
        inner = Projector.from_fingerprint(fields["inner"])
        return cls(inner) if fields["scales"] == SCALES_OF_FIT else None
