"""Collects the gradients of a backward pass and hands them to the projector in few calls.

A call and a launch for each parameter cost a GPU's host more than the small ones' work costs the GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from journey.errors import InPlaceError
from journey.gradients.names import name_some
from journey.gradients.rules import Contribution, Outer, Summed, sum_groups
from journey.projectors.base import LayerGradient, ParameterSlot, Piece, Projector

# Gradients of up to so many entries, biases and norms, are kept until the end of the backward pass and projected
# together.
_SMALL_ENTRIES = 1 << 16
# Inputs and output gradients of layers that are kept to be projected together: what is freed later than it would be.
_KEPT_BYTES = {"cpu": 4 << 20, "cuda": 128 << 20}

# Where gradients of rows are summed over their groups parameter by parameter, not all at once. On the CPU the order of
# torch's sum depends on what lies beside, and on threads where that is much.
_SUMS_ALONE = ["cpu"]


class Collected:
    """What a backward pass has given so far and is not in the features yet.

    Args:
        features: Added to, float32. [num_groups, proj_dim]
        projector: Maps gradients to features.
    """

    def __init__(self, features: Tensor, projector: Projector) -> None:
        self._features = features
        self._num_groups = features.shape[0]
        self._projector = projector
        self._layers: list[LayerGradient] = []
        self._versions: list[int] = []  # of their tensors
        self._bytes = 0
        self._most = _KEPT_BYTES.get(features.device.type, 0)
        self._sums_alone = features.device.type in _SUMS_ALONE
        self._pieces: list[Piece] = []
        self._small: list[Tensor] = []  # their gradients. Each [num_groups or num_rows, entries]

    def add(self, slot: ParameterSlot, contribution: Contribution | Summed) -> None:
        """Take what a layer's call gives to a parameter: now, or with what follows."""
        if isinstance(contribution, Summed):
            if self._is_summed(slot, contribution.g):
                return
            contribution = contribution.direct()
        if isinstance(contribution, Outer):
            _, a, g, conv = contribution
            self._layers.append(LayerGradient(slot, a, g, conv))
            self._versions += (a._version, g._version)
            self._bytes += a.nbytes + g.nbytes
            return
        grads, num_groups = contribution.grads, self._num_groups
        if grads.numel() // max(1, grads.shape[0]) * num_groups > _SMALL_ENTRIES:
            self._add_layers()
            self._projector.add_(self._features, slot, sum_groups(grads, num_groups), contribution.row_begin)
            return
        if self._sums_alone:
            grads = sum_groups(grads, num_groups)
        self._pieces.append(Piece(slot, contribution.row_begin, grads.shape[1]))
        self._small.append(grads.flatten(1))

    def hand_on(self) -> None:
        """Hand the layers that are kept on if they are too large, after a call of a layer."""
        if self._bytes > self._most:
            self._add_layers()

    def _is_summed(self, slot: ParameterSlot, g: Tensor) -> bool:
        """Leave the sum of an output gradient to the kernel that reads it, if one does."""
        if self._sums_alone or not self._layers or self._layers[-1].g is not g:
            return False
        sums = torch.empty(self._num_groups, slot.cols, dtype=torch.float32, device=g.device)
        self._layers[-1] = self._layers[-1]._replace(sums=sums)
        self._pieces.append(Piece(slot, 0, 1))
        self._small.append(sums)
        return True

    def finish(self) -> None:
        """Add to the features what is not in them yet."""
        self._add_layers()
        if self._pieces:
            self._projector.add_many_(self._features, self._pieces, self._side_by_side())
        self._pieces, self._small = [], []

    def _side_by_side(self) -> Tensor:
        """The small gradients of all groups, in their order, float32. [num_groups, entries]"""
        num_groups = self._num_groups
        of_rows = [grads for grads in self._small if grads.shape[0] != num_groups]
        if not of_rows:
            return torch.cat(self._small, dim=1).float()
        summed = sum_groups(torch.cat(of_rows, dim=1), num_groups)
        if len(of_rows) == len(self._small):
            return summed.float()
        parts = iter(summed.split([grads.shape[1] for grads in of_rows], dim=1))
        return torch.cat([x if x.shape[0] == num_groups else next(parts) for x in self._small], dim=1).float()

    def _add_layers(self) -> None:
        layers, versions = self._layers, self._versions
        self._layers, self._versions, self._bytes = [], [], 0
        if [x._version for layer in layers for x in (layer.a, layer.g)] != versions:
            raise InPlaceError(
                f"the input or the output gradient of a layer was modified in place during the backward pass, among "
                f"those of {name_some([layer.slot.name for layer in layers])}; its gradient would be wrong. Use the "
                "out-of-place form of what does so, such as a backward hook or an autograd function"
            )
        if layers:
            self._projector.add_layers_(self._features, layers)
