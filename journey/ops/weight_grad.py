"""Per-sample weight gradients of Linear and Conv layers as a stream of bounded tiles, for any linear projection.

The count sketch does not go this way: its kernel forms gradients in registers (``journey.ops.sketch_outer_``).

The gradient of one sample, averaged over its draws, *is* the weight gradient of the mini-batch of its draws. So torch's
own matmul and convolution compute it, one group of rows at a time, and each tile is handed on while it is in cache:
nothing of size ``[batch, grad_dim]`` exists.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from journey.ops.geometry import LINEAR_NUMBERS, ConvGeometry, tap_major

# A tile holds at most this many floats (8 MiB in fp32) or, if that is more, one output channel of one group (one whole
# group of channels for a grouped convolution).
TILE_FLOATS = 1 << 21
# Small gradients of several groups share a tile up to this size (4 MiB in fp32): fewer calls against less locality, and
# between 1 and 8 MiB hardly a difference was measured.
SHARED_TILE_FLOATS = 1 << 20
# Up to this many output positions per group, one matmul over the unfolded input beats one convolution call per group.
UNFOLD_POSITIONS = 64


class Tile(NamedTuple):
    """Rows ``row_begin ...`` of the weight gradients of groups ``group_begin ...``."""

    grads: Tensor  # [num_groups, num_rows, cols]
    group_begin: int
    row_begin: int


def weight_grad_tiles(a: Tensor, g: Tensor, num_groups: int, conv: ConvGeometry | None) -> Iterator[Tile]:
    """Yield the weight gradients of every group of consecutive rows, tile by tile.

    Args:
        a: Layer input. Linear: [num_rows, positions, d_in]; convolution: [num_rows, c_in, *spatial].
        g: Gradient of the summed loss with respect to the layer output. Linear: [num_rows, positions, d_out];
            convolution: [num_rows, c_out, *output_spatial].
        num_groups: Groups of ``num_rows / num_groups`` consecutive rows that are contracted.
        conv: Geometry of the convolution, None for a Linear layer.

    Yields:
        Tiles that together cover [num_groups, d_out, kernel_positions * d_in / groups] exactly once, columns as of
        ``tap_major``, in float32 for half precision inputs and else in the dtype of the inputs.
    """
    if a.shape[0] == 0:
        return
    if conv is None:
        yield from _matmul_tiles(_contract_last(g, num_groups), _contract_last(a, num_groups))
    elif conv.is_pointwise:
        yield from _matmul_tiles(_contract_first(g, num_groups), _contract_first(a, num_groups))
    elif _unfolds(g, num_groups, conv):
        yield from _unfolded_tiles(a, g, num_groups, conv)
    else:
        yield from _convolution_tiles(a, g, num_groups, conv)


def as_positions(a: Tensor, g: Tensor, conv: ConvGeometry | None) -> tuple[Tensor, Tensor] | None:
    """Return a layer's input and output gradient position by position, as a Linear layer has them.

    The weight gradient of a row is then ``g^T a`` for every layer.

    Args:
        a: Layer input, as for ``weight_grad_tiles``.
        g: Gradient with respect to the layer output, likewise.
        conv: Geometry of the convolution, None for a Linear layer.

    Returns:
        Inputs [num_rows, positions, kernel_positions * d_in] and output gradients [num_rows, positions, d_out]; None
        for a convolution in groups, whose output channels see different inputs, or over three dimensions.
    """
    if conv is None:
        return a, g
    if conv.groups > 1 or conv.spatial_dims > 2:
        return None
    if conv.is_pointwise:
        return a.flatten(2).transpose(1, 2), g.flatten(2).transpose(1, 2)
    walk = [conv.kernel_size, conv.dilation, conv.padding, conv.stride]
    if conv.spatial_dims == 1:  # a picture of one row
        a, walk = a.unsqueeze(2), [(neutral, *own) for neutral, own in zip((1, 1, 0, 1), walk, strict=True)]
    inputs = torch.nn.functional.unfold(a, *walk).transpose(1, 2)
    return tap_major(inputs, conv.kernel_positions), g.flatten(2).transpose(1, 2)


def _contract_last(x: Tensor, num_groups: int) -> Tensor:
    """[num_rows, positions, channels] to [num_groups, channels, rows * positions], a view."""
    return x.reshape(num_groups, -1, x.shape[-1]).transpose(1, 2)


def _contract_first(x: Tensor, num_groups: int) -> Tensor:
    """[num_rows, channels, *spatial] to [num_groups, channels, rows * positions], a view when a group is one row."""
    grouped = x.reshape(num_groups, x.shape[0] // num_groups, x.shape[1], -1)
    return grouped.transpose(1, 2).reshape(num_groups, x.shape[1], -1)


def _matmul_tiles(g: Tensor, a: Tensor) -> Iterator[Tile]:
    """Tiles of ``g @ a^T`` for ``g`` [num_groups, rows, positions] and ``a`` [num_groups, cols, positions]."""
    num_groups, rows, cols = g.shape[0], g.shape[1], a.shape[1]
    if rows * cols > TILE_FLOATS:
        step = max(1, TILE_FLOATS // cols)
        for group in range(num_groups):
            for row in range(0, rows, step):
                yield Tile(torch.mm(_wide(g[group, row : row + step]), _wide(a[group]).T)[None], group, row)
        return
    step = max(1, SHARED_TILE_FLOATS // (rows * cols))
    for group in range(0, num_groups, step):
        some = slice(group, group + step)
        yield Tile(torch.bmm(_wide(g[some]), _wide(a[some]).transpose(1, 2)), group, 0)


def sum_positions(g: Tensor, channels_last: bool) -> Tensor:
    """Return a layer's output gradient summed over its positions: what each row gives to a bias.

    Args:
        g: Output gradient, of a Linear layer with channels last. [num_rows, positions, d_out] or
            [num_rows, c_out, *output_spatial]
        channels_last: Whether it is the first form.

    Returns:
        The sums, float32. [num_rows, d_out]
    """
    g = g.transpose(1, 2) if channels_last else g
    return (g if g.dim() == 3 else g.flatten(2)).sum(-1, dtype=torch.float32)


def sum_rows_(sums: Tensor, g: Tensor, channels_last: bool) -> None:
    """Write a layer's output gradient, summed over its positions and the rows of each group, to [num_groups, d_out]."""
    sums.copy_(sum_positions(g, channels_last).unflatten(0, (sums.shape[0], -1)).sum(1))


def sum_outputs_(sums: list[Tensor], g: list[Tensor], layers: list[int], geometries: list[int]) -> None:
    """Write such sums of some of many layers, see ``ops.sketch_outer_many_``."""
    for into, i in zip(sums, layers, strict=True):
        sum_rows_(into, g[i], channels_last=geometries[i * len(LINEAR_NUMBERS)] == 0)


def _wide(x: Tensor) -> Tensor:
    """Half precision as float32: a product of halves would be rounded to half again."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _unfolds(g: Tensor, num_groups: int, conv: ConvGeometry) -> bool:
    positions = g[0, 0].numel() * (g.shape[0] // num_groups)
    return conv.spatial_dims == 2 and conv.groups == 1 and positions <= UNFOLD_POSITIONS


def _unfolded_tiles(a: Tensor, g: Tensor, num_groups: int, conv: ConvGeometry) -> Iterator[Tile]:
    rows_per_group = a.shape[0] // num_groups
    unfolded_floats = a.shape[1] * conv.kernel_positions * g[0, 0].numel() * rows_per_group
    step = max(1, TILE_FLOATS // unfolded_floats)
    for group in range(0, num_groups, step):
        count = min(step, num_groups - group)
        rows = slice(group * rows_per_group, (group + count) * rows_per_group)
        unfolded = torch.nn.functional.unfold(a[rows], conv.kernel_size, conv.dilation, conv.padding, conv.stride)
        columns = tap_major(unfolded.transpose(1, 2), conv.kernel_positions).transpose(1, 2)
        for tile in _matmul_tiles(_contract_first(g[rows], count), _contract_first(columns, count)):
            yield tile._replace(group_begin=group + tile.group_begin)


def _convolution_tiles(a: Tensor, g: Tensor, num_groups: int, conv: ConvGeometry) -> Iterator[Tile]:
    rows_per_group = a.shape[0] // num_groups
    c_in, c_out = a.shape[1] // conv.groups, g.shape[1] // conv.groups  # of one block of channels
    cols = c_in * conv.kernel_positions
    blocks = max(1, min(conv.groups, TILE_FLOATS // (c_out * cols)))  # whole blocks of channels per tile
    channels = max(1, TILE_FLOATS // cols) if conv.groups == 1 else c_out
    for group in range(num_groups):
        rows = slice(group * rows_per_group, (group + 1) * rows_per_group)
        for block in range(0, conv.groups, blocks):
            count = min(blocks, conv.groups - block)
            a_block = a[rows, block * c_in : (block + count) * c_in]
            g_block = g[rows, block * c_out : (block + count) * c_out]
            for row in range(0, c_out, channels):
                g_tile = g_block[:, row : row + channels] if channels < c_out else g_block
                grads = _convolution_weight_grad(_wide(a_block), _wide(g_tile), conv, count)
                matrix = tap_major(grads.reshape(1, g_tile.shape[1], cols), conv.kernel_positions)
                yield Tile(matrix, group, block * c_out + row)


def _convolution_weight_grad(a: Tensor, g: Tensor, conv: ConvGeometry, groups: int) -> Tensor:
    """Weight gradient of one group of rows. [c_out, c_in / groups, *kernel_size]"""
    shape = (g.shape[1], a.shape[1] // groups, *conv.kernel_size)
    # Only the shape of the weight is read.
    weight = torch.empty(1, dtype=a.dtype, device=a.device).expand(shape)
    zeros = [0] * conv.spatial_dims
    grads: Tensor = torch.ops.aten.convolution_backward(
        g, a, weight, None, conv.stride, conv.padding, conv.dilation, False, zeros, groups, [False, True, False]
    )[1]
    return grads
