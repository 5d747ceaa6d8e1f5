"""Gradients of single rows of a batch, or of groups of them, parameter by parameter: whole, or their norms alone.

A weight's gradient is a sum over positions, ``G = sum_p g_p a_p^T``, so its squared norm is that of one matrix or the
inner product of two: ``|G|^2 = <A A^T, B B^T>`` with the inputs ``a_p`` as rows of ``A`` and the output gradients as
rows of ``B``. With few positions the second form costs far less, and nothing of the size of the weight exists.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from journey.gradients.rules import Contribution, Outer
from journey.ops.geometry import ConvGeometry
from journey.ops.weight_grad import Tile, as_positions, weight_grad_tiles
from journey.projectors.base import ParameterSlot


@torch.no_grad()
def row_gradients(slot: ParameterSlot, contributions: list[Contribution], num_rows: int) -> Tensor:
    """Return the gradient of every row with respect to one parameter.

    Args:
        slot: The parameter.
        contributions: What it is made of, see ``GradientEngine.for_each_parameter``.
        num_rows: Rows of the batch, or groups of rows, as the contributions are.

    Returns:
        The sum of the contributions, float32. [num_rows, rows, cols]
    """
    first = contributions[0]
    device = (first.g if isinstance(first, Outer) else first.grads).device
    total = torch.zeros(num_rows, slot.rows, slot.cols, device=device, dtype=torch.float32)
    for contribution in contributions:
        for tile, row, begin in _tiles(contribution, num_rows):
            total[row : row + tile.shape[0], begin : begin + tile.shape[1]] += tile
    return total


@torch.no_grad()
def gradient_tiles(slot: ParameterSlot, contributions: list[Contribution], num_groups: int) -> Iterator[Tile]:
    """Yield the gradient of every group of rows with respect to one parameter in pieces, each entry once.

    Args:
        slot: The parameter.
        contributions: What it is made of, see ``GradientEngine.for_each_parameter``.
        num_groups: Groups of rows.

    Yields:
        Tiles as of ``weight_grad_tiles``; where the layer is called several times, the whole sum.
    """
    if len(contributions) > 1:
        yield Tile(row_gradients(slot, contributions, num_groups), 0, 0)
    else:
        yield from _tiles(contributions[0], num_groups)


def _tiles(contribution: Contribution, num_groups: int) -> Iterator[Tile]:
    if isinstance(contribution, Outer):
        return weight_grad_tiles(contribution.a, contribution.g, num_groups, contribution.conv)
    return iter([Tile(contribution.grads, 0, contribution.row_begin)])


@torch.no_grad()
def squared_norms(slot: ParameterSlot, contributions: list[Contribution], num_rows: int) -> Tensor:
    """Return the squared norm of every row's gradient with respect to one parameter.

    Args:
        slot: The parameter.
        contributions: What it is made of, see ``GradientEngine.for_each_parameter``.
        num_rows: Rows of the batch.

    Returns:
        Squared norms, float32. [num_rows]
    """
    first = contributions[0]
    if len(contributions) > 1 or not isinstance(first, Outer):
        return row_gradients(slot, contributions, num_rows).square().sum((1, 2))
    pair = as_positions(first.a, first.g, first.conv) if _is_short(slot, first.g, first.conv) else None
    if pair is not None:
        inputs, outputs = (x.float() for x in pair)
        return ((inputs @ inputs.transpose(1, 2)) * (outputs @ outputs.transpose(1, 2))).sum((1, 2))
    total = torch.zeros(num_rows, device=first.g.device, dtype=torch.float32)
    for tile, row, _ in _tiles(first, num_rows):
        total[row : row + tile.shape[0]] += tile.square().sum((1, 2))
    return total


def _is_short(slot: ParameterSlot, g: Tensor, conv: ConvGeometry | None) -> bool:
    """Whether two products over pairs of positions cost less than the one that forms the gradient."""
    positions = g.shape[1] if conv is None else g[0, 0].numel()
    return positions * (slot.rows + slot.cols) < slot.rows * slot.cols
