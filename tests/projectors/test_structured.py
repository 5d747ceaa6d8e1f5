"""Masks and factors: the map that they say they are, whichever way the gradient comes."""

from __future__ import annotations

import pytest
import torch
from cases import CONVS, layer_tensors, randn
from models import make_unet
from torch import Tensor, nn

from journey.gradients.check import check_gradients
from journey.gradients.engine import GradientEngine
from journey.ops.weight_grad import weight_grad_tiles
from journey.projectors.base import ParameterSlot, Projector
from journey.projectors.exact import Identity
from journey.projectors.random import CountSketch
from journey.projectors.structured import Factored, Masked

GROUPS = 2


def factored(slot: ParameterSlot, **options: object) -> Factored:
    return Factored(((slot.name, slot.rows, slot.cols),), in_dim=3, out_dim=4, **options)  # type: ignore[arg-type]


def matrix(projector: Projector, slot: ParameterSlot) -> Tensor:
    """What the projector does to each entry of the gradient. [rows * cols, proj_dim]."""
    numel = slot.rows * slot.cols
    features = torch.zeros(numel, projector.features_dim(numel))
    projector.add_(features, slot, torch.eye(numel).view(numel, slot.rows, slot.cols))
    return features


@pytest.mark.parametrize("name", ["3x3", "3x3, stride", "1x1", "groups", "1d", "every axis different"])
@pytest.mark.parametrize("kind", ["normal", "mask"])
def test_factors_of_a_convolution_are_the_projected_gradient(name: str, kind: str) -> None:
    conv = CONVS[name]
    a, g = layer_tensors(conv, 2 * GROUPS)
    grads = torch.zeros(GROUPS, conv.c_out, conv.c_in // conv.groups * conv.geometry.kernel_positions)
    for tile, group, row in weight_grad_tiles(a, g, GROUPS, conv.geometry):
        grads[group : group + len(tile), row : row + tile.shape[1]] += tile
    slot = ParameterSlot("w", *grads.shape[1:], 0)
    projector = factored(slot, kind=kind)
    expected = grads.flatten(1) @ matrix(projector, slot)
    found = torch.zeros_like(expected)
    projector.add_outer_(found, slot, a, g, conv.geometry)
    # The same float32 products in another order.
    assert (found - expected).norm() <= 1e-5 * expected.norm()
    assert expected.norm() > 0


def test_factors_of_a_linear_layer_are_the_projected_gradient() -> None:
    a, g = randn(2 * GROUPS, 5, 7), randn(2 * GROUPS, 5, 6, seed=1)
    grads = torch.einsum("gpo,gpi->goi", g.view(GROUPS, -1, 6), a.view(GROUPS, -1, 7))
    slot = ParameterSlot("w", 6, 7, 0)
    projector = factored(slot, sketch_dim=32)
    expected = grads.flatten(1) @ matrix(projector, slot)
    found = torch.zeros_like(expected)
    projector.add_outer_(found, slot, a, g, None)
    assert (found - expected).norm() <= 1e-5 * expected.norm()


def test_tiles_of_rows_add_up() -> None:
    slot, grads = ParameterSlot("w", 9, 4, 0), randn(GROUPS, 9, 4)
    for projector in (factored(slot), Masked(CountSketch(32), 0.5)):
        whole, parts = (torch.zeros(GROUPS, projector.features_dim(36)) for _ in range(2))
        projector.add_(whole, slot, grads)
        for row in range(0, 9, 2):
            projector.add_(parts, slot, grads[:, row : row + 2], row)
        assert torch.allclose(whole, parts, atol=1e-5)


@pytest.mark.parametrize("kind", ["normal", "mask"])
def test_inner_products_are_kept_on_average(kind: str) -> None:
    slot = ParameterSlot("w", 6, 7, 0)
    x, y = 1 + randn(42, seed=1), 1 + randn(42, seed=2)
    estimates = []
    for seed in range(400):
        projected = torch.stack([x, y]) @ matrix(factored(slot, kind=kind, seed=seed), slot)
        estimates.append(projected[0] @ projected[1])
    found = torch.stack(estimates)
    error = found.std() / 20
    assert abs(found.mean() - x @ y) < 5 * error, f"{found.mean():.2f} for {x @ y:.2f}, standard error {error:.2f}"


def test_a_mask_keeps_its_share_and_inner_products_on_average() -> None:
    slot = ParameterSlot("w", 100, 100, 0)
    kept = torch.zeros(1, 10_000)
    Masked(Identity(), 0.2).add_(kept, slot, torch.ones(1, 100, 100))
    # Binomial with 10,000 entries: standard deviation 40.
    assert abs((kept != 0).sum().item() - 2000) < 5 * 40
    assert kept[kept != 0].square() == pytest.approx(5, rel=1e-5)


def test_seeds_and_names_give_other_maps() -> None:
    slot, other = ParameterSlot("w", 6, 7, 0), ParameterSlot("v", 6, 7, 0)
    same = Factored((("w", 6, 7), ("v", 6, 7)), 3, 4)
    seeded = Factored(same.layers, 3, 4, seed=1)
    assert not torch.equal(matrix(same, slot)[:, :12], matrix(seeded, slot)[:, :12])
    assert not torch.equal(matrix(same, slot)[:, :12], matrix(same, other)[:, 12:])
    assert not torch.equal(matrix(Masked(Identity(), 0.5), slot), matrix(Masked(Identity(), 0.5, seed=1), slot))


def test_every_weight_of_a_unet_has_a_block_and_the_engine_checks_out() -> None:
    network = make_unet()
    projector = Factored.of(network, in_dim=2, out_dim=2)
    weights = [m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert len(projector.blocks) == len(weights)
    engine, x, times = GradientEngine(network), randn(2, 1, 8, 8), torch.tensor([3, 50])

    def values(rows: slice) -> Tensor:
        return network(x[rows], times[rows]).sample.square().flatten(1).mean(1)

    features = torch.zeros(2, projector.features_dim(0))
    engine.add_gradients_(features, values, num_rows=2, projector=projector)
    check_gradients(engine, features, values, num_rows=2, projector=projector)
    # All but key biases' kin: a block is zero only where the layer's whole gradient is.
    assert sum(bool(block.any()) for block in features.split(projector.blocks, 1)) > 0.9 * len(weights)


@pytest.mark.parametrize("keep", [0.0, 1.5])
def test_a_share_out_of_range_is_refused(keep: float) -> None:
    with pytest.raises(ValueError, match="keep"):
        Masked(Identity(), keep)
