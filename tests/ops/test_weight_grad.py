"""Tiles of weight gradients: the right numbers, each exactly once, in pieces of bounded size."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases import CONVS, as_matrix, integers, layer_tensors, randn
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from journey.ops import weight_grad
from journey.ops.geometry import ConvGeometry
from journey.ops.weight_grad import weight_grad_tiles

# How weights are cut: not at all, into a few pieces, as finely as possible.
TILES = {"whole": 1 << 21, "some channels": 100, "one channel": 1}


def assemble(tiles: list[weight_grad.Tile], num_groups: int, rows: int, cols: int) -> Tensor:
    """Put tiles together, and insist that each entry comes exactly once. [num_groups, rows, cols]."""
    grads = torch.full((num_groups, rows, cols), float("nan"))
    times = torch.zeros(num_groups, rows, cols)
    for tile in tiles:
        groups = slice(tile.group_begin, tile.group_begin + tile.grads.shape[0])
        channels = slice(tile.row_begin, tile.row_begin + tile.grads.shape[1])
        grads[groups, channels] = tile.grads
        times[groups, channels] += 1
    assert (times == 1).all(), f"entries come {sorted(set(times.flatten().tolist()))} times"
    return grads


def conv_weight_grads(a: Tensor, g: Tensor, num_groups: int, conv: ConvGeometry) -> Tensor:
    """Weight gradients by autograd in float64, one group after the other. [num_groups, c_out, cols]."""
    convolve = (F.conv1d, F.conv2d, F.conv3d)[conv.spatial_dims - 1]
    rows = len(a) // num_groups
    grads = []
    for group in range(num_groups):
        x, y = (t[group * rows : (group + 1) * rows].double() for t in (a, g))
        weight = torch.zeros(g.shape[1], a.shape[1] // conv.groups, *conv.kernel_size, dtype=torch.float64)
        output = convolve(x, weight.requires_grad_(), None, conv.stride, conv.padding, conv.dilation, conv.groups)
        (grad,) = torch.autograd.grad((output * y).sum(), weight)
        grads.append(as_matrix(grad))
    return torch.stack(grads)


@pytest.mark.parametrize("tile_floats", TILES.values(), ids=TILES)
@pytest.mark.parametrize("unfold_positions", [0, 1 << 30], ids=["convolution", "unfolded"])
@pytest.mark.parametrize("name", CONVS)
def test_tiles_of_a_convolution_are_exact_and_come_once(
    monkeypatch: pytest.MonkeyPatch, name: str, unfold_positions: int, tile_floats: int
) -> None:
    monkeypatch.setattr(weight_grad, "TILE_FLOATS", tile_floats)
    monkeypatch.setattr(weight_grad, "SHARED_TILE_FLOATS", tile_floats)
    monkeypatch.setattr(weight_grad, "UNFOLD_POSITIONS", unfold_positions)
    conv, num_groups = CONVS[name], 3
    a, g = layer_tensors(conv, 2 * num_groups, make=integers)  # sums of integers are exact in any order
    tiles = list(weight_grad_tiles(a, g, num_groups, conv.geometry))
    expected = conv_weight_grads(a, g, num_groups, conv.geometry)
    rows, cols = expected.shape[1:]
    assert torch.equal(assemble(tiles, num_groups, rows, cols).double(), expected)
    smallest = cols * (rows // conv.groups)  # one block of channels of one group
    if conv.groups == 1:
        smallest = cols
    assert max(tile.grads.numel() for tile in tiles) <= max(tile_floats, smallest)


@pytest.mark.parametrize("tile_floats", TILES.values(), ids=TILES)
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (7, 30), (30, 7), (11, 101)])
def test_tiles_of_a_linear_layer_are_exact_and_come_once(
    monkeypatch: pytest.MonkeyPatch, rows: int, cols: int, tile_floats: int
) -> None:
    monkeypatch.setattr(weight_grad, "TILE_FLOATS", tile_floats)
    monkeypatch.setattr(weight_grad, "SHARED_TILE_FLOATS", tile_floats)
    num_groups = 5
    a, g = integers(2 * num_groups, 3, cols, seed=1), integers(2 * num_groups, 3, rows, seed=2)
    tiles = list(weight_grad_tiles(a, g, num_groups, None))
    by_group = [t.double().view(num_groups, 6, -1) for t in (a, g)]
    expected = torch.einsum("gpc,gpr->grc", *by_group)
    assert torch.equal(assemble(tiles, num_groups, rows, cols).double(), expected)
    assert max(tile.grads.numel() for tile in tiles) <= max(tile_floats, cols)


@given(
    num_groups=st.integers(1, 9),
    rows_per_group=st.integers(1, 3),
    rows=st.integers(1, 12),
    cols=st.integers(1, 12),
    tile_floats=st.integers(1, 200),
    shared=st.integers(1, 200),
)
def test_any_bounds_cut_a_linear_layer_completely(
    num_groups: int, rows_per_group: int, rows: int, cols: int, tile_floats: int, shared: int
) -> None:
    num_rows = num_groups * rows_per_group
    a, g = integers(num_rows, 2, cols, seed=1), integers(num_rows, 2, rows, seed=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weight_grad, "TILE_FLOATS", tile_floats)
        patch.setattr(weight_grad, "SHARED_TILE_FLOATS", shared)
        tiles = list(weight_grad_tiles(a, g, num_groups, None))
    expected = torch.einsum("gpc,gpr->grc", *(t.reshape(num_groups, 2 * rows_per_group, -1) for t in (a, g)))
    assert torch.equal(assemble(tiles, num_groups, rows, cols), expected)
    assert max(tile.grads.numel() for tile in tiles) <= max(tile_floats, shared, cols)


@pytest.mark.parametrize("name", ["3x3", "groups", "3x3, larger image", "1x1"])
def test_strided_views_give_what_their_copies_give(name: str) -> None:
    conv = CONVS[name]
    a, g = layer_tensors(conv, 4, make=integers)
    views = [t.flip(1).contiguous().flip(1).transpose(2, 3).contiguous().transpose(2, 3) for t in (a, g)]
    assert not views[0].is_contiguous()
    found, expected = (
        assemble(list(weight_grad_tiles(x, y, 2, conv.geometry)), 2, conv.c_out, _cols(name))
        for x, y in (views, (a, g))
    )
    assert torch.equal(found, expected)


def _cols(name: str) -> int:
    conv = CONVS[name]
    return conv.c_in // conv.groups * conv.geometry.kernel_positions


@pytest.mark.parametrize("conv", [None, CONVS["3x3"].geometry, CONVS["1x1"].geometry])
def test_an_empty_batch_has_no_tiles(conv: ConvGeometry | None) -> None:
    shape = (0, 4, 5) if conv is None else (0, 4, 5, 5)
    assert list(weight_grad_tiles(randn(*shape), randn(*shape), 0, conv)) == []


def test_groups_share_a_tile_when_they_are_small() -> None:
    a, g = randn(16, 2, 3, seed=1), randn(16, 2, 4, seed=2)
    assert len(list(weight_grad_tiles(a, g, 16, None))) == 1, "one call per sample costs more than its arithmetic"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("unfold_positions", [0, 1 << 30], ids=["convolution", "unfolded"])
@pytest.mark.parametrize("name", ["3x3", "groups", "1x1"])
def test_half_precision_is_widened_before_it_is_summed(
    monkeypatch: pytest.MonkeyPatch, name: str, unfold_positions: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(weight_grad, "UNFOLD_POSITIONS", unfold_positions)
    conv, num_groups = CONVS[name], 2
    a, g = layer_tensors(conv, 2 * num_groups, dtype)
    expected = conv_weight_grads(a, g, num_groups, conv.geometry)
    found = assemble(list(weight_grad_tiles(a, g, num_groups, conv.geometry)), *expected.shape)
    # Float32 sums of some hundred products; rounding to half precision would cost 4e-4 or more.
    assert (found - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tile_floats", [1 << 21, 8])
def test_half_precision_is_widened_in_a_linear_layer(
    monkeypatch: pytest.MonkeyPatch, tile_floats: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(weight_grad, "TILE_FLOATS", tile_floats)
    a, g = (randn(4, 50, cols, seed=cols).to(dtype) for cols in (7, 5))
    expected = torch.einsum("gpc,gpr->grc", *(t.double().view(2, 100, -1) for t in (a, g)))
    found = assemble(list(weight_grad_tiles(a, g, 2, None)), 2, 5, 7)
    assert (found - expected).norm() <= 1e-6 * expected.norm()
