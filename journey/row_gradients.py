"""Gradients of single rows of a batch, parameter by parameter: whole, or their norms alone.

A weight's gradient is a sum over positions, ``G = sum_p g_p a_p^T``, so its squared norm is that of one matrix or the
inner product of two: ``|G|^2 = <A A^T, B B^T>`` with the inputs ``a_p`` as rows of ``A`` and the output gradients as
rows of ``B``. With few positions the second form costs far less, and nothing of the size of the weight exists.
"""

from __future__ import annotations

import torch
from torch import Tensor

from journey.geometry import ConvGeometry
from journey.layer_rules import Contribution, Outer
from journey.projectors import ParameterSlot
from journey.weight_grad import as_positions, weight_grad_tiles


@torch.no_grad()
def row_gradients(slot: ParameterSlot, contributions: list[Contribution], num_rows: int) -> Tensor:
    """Return the gradient of every row with respect to one parameter.

    Args:
        slot: The parameter.
        contributions: What it is made of, see ``GradientEngine.collect``.
        num_rows: Rows of the batch.

    Returns:
        The sum of the contributions, float32. [num_rows, rows, cols]
    """
    device = _device(contributions[0])
    total = torch.zeros(num_rows, slot.rows, slot.cols, device=device)
    for contribution in contributions:
        if isinstance(contribution, Outer):
            for tile, row, begin in weight_grad_tiles(contribution.a, contribution.g, num_rows, contribution.conv):
                total[row : row + tile.shape[0], begin : begin + tile.shape[1]] += tile
        else:
            begin = contribution.row_begin
            total[:, begin : begin + contribution.grads.shape[1]] += contribution.grads
    return total


@torch.no_grad()
def squared_norms(slot: ParameterSlot, contributions: list[Contribution], num_rows: int) -> Tensor:
    """Return the squared norm of every row's gradient with respect to one parameter.

    Args:
        slot: The parameter.
        contributions: What it is made of, see ``GradientEngine.collect``.
        num_rows: Rows of the batch.

    Returns:
        Squared norms, float32. [num_rows]
    """
    first = contributions[0]
    if len(contributions) == 1 and isinstance(first, Outer) and _is_short(slot, first.g, first.conv):
        pair = as_positions(first.a, first.g, first.conv)
        if pair is not None:
            inputs, outputs = (x.float() for x in pair)
            return ((inputs @ inputs.transpose(1, 2)) * (outputs @ outputs.transpose(1, 2))).sum((1, 2))
    return row_gradients(slot, contributions, num_rows).square().sum((1, 2))


def _device(contribution: Contribution) -> torch.device:
    return (contribution.g if isinstance(contribution, Outer) else contribution.grads).device


def _is_short(slot: ParameterSlot, g: Tensor, conv: ConvGeometry | None) -> bool:
    """Whether two products over pairs of positions cost less than the one that forms the gradient."""
    positions = g.shape[1] if conv is None else g[0, 0].numel()
    return positions * (slot.rows + slot.cols) < slot.rows * slot.cols
