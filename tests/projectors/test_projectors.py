"""Projectors are linear maps of named parameters, the same in pieces as at once."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from cases import CONVS, layer_tensors, randn
from torch import Tensor

from journey.ops import reference
from journey.ops.keys import derive_key
from journey.projectors.base import ParameterSlot, Projector
from journey.projectors.exact import ExplicitMatrix, Identity
from journey.projectors.random import CountSketch, Gaussian, Rademacher

NUM_GROUPS = 3
SLOT = ParameterSlot("layer.weight", rows=10, cols=7, offset=5)
NUM_PARAMETERS = 80
PROJECTORS = [CountSketch(64), CountSketch(64, nnz=3), Rademacher(33), Gaussian(33), Identity()]
NAMES = ["sketch", "sketch of three", "rademacher", "normal", "identity"]
each_projector = pytest.mark.parametrize("projector", PROJECTORS, ids=NAMES)


def project(projector: Projector, slot: ParameterSlot, grads: Tensor, row_begin: int = 0) -> Tensor:
    """Features of gradients alone. [num_groups, proj_dim]."""
    features = torch.zeros(len(grads), projector.features_dim(NUM_PARAMETERS))
    projector.add_(features, slot, grads, row_begin)
    return features


@each_projector
def test_rows_that_come_in_pieces_give_what_they_give_at_once(projector: Projector) -> None:
    grads = randn(NUM_GROUPS, SLOT.rows, SLOT.cols)
    whole = project(projector, SLOT, grads)
    pieces = sum(project(projector, SLOT, grads[:, a:b], a) for a, b in ((0, 1), (1, 4), (4, 10)))
    torch.testing.assert_close(pieces, whole, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(project(projector, SLOT, grads[:, 4:]), project(projector, SLOT, grads[:, 4:], 4))


@each_projector
def test_features_are_added_to_what_is_there(projector: Projector) -> None:
    grads = randn(NUM_GROUPS, SLOT.rows, SLOT.cols)
    features = torch.ones(NUM_GROUPS, projector.features_dim(NUM_PARAMETERS))
    projector.add_(features, SLOT, grads)
    torch.testing.assert_close(features - 1, project(projector, SLOT, grads), rtol=1e-4, atol=1e-5)


@each_projector
def test_the_map_of_a_parameter_depends_on_its_name_and_not_on_its_place(projector: Projector) -> None:
    grads = randn(NUM_GROUPS, SLOT.rows, SLOT.cols)
    moved, renamed = replace(SLOT, offset=0), replace(SLOT, name="other.weight")
    same_place = torch.equal(project(projector, moved, grads), project(projector, SLOT, grads))
    same_name = torch.equal(project(projector, renamed, grads), project(projector, SLOT, grads))
    assert (same_place, same_name) == ((False, True) if isinstance(projector, Identity) else (True, False))


@each_projector
@pytest.mark.parametrize("name", ["3x3", "groups", "1x1", "conv of many positions"])
def test_a_pair_gives_what_its_outer_product_gives(projector: Projector, name: str) -> None:
    conv = CONVS["3x3, larger image" if name == "conv of many positions" else name]
    a, g = layer_tensors(conv, 2 * NUM_GROUPS)
    cols = conv.c_in // conv.groups * conv.geometry.kernel_positions
    slot = ParameterSlot("conv.weight", conv.c_out, cols, 0)
    size = projector.features_dim(conv.c_out * cols)
    features, exact = torch.zeros(NUM_GROUPS, size), torch.zeros(NUM_GROUPS, conv.c_out * cols)
    Identity().add_outer_(exact, slot, a, g, conv.geometry)
    projector.add_outer_(features, slot, a, g, conv.geometry)
    expected = torch.zeros(NUM_GROUPS, size)
    projector.add_(expected, slot, exact.view(NUM_GROUPS, conv.c_out, cols))
    # Both sum some hundred float32 products per entry.
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


def test_the_identity_keeps_gradients_at_their_place() -> None:
    grads = randn(NUM_GROUPS, SLOT.rows, SLOT.cols)
    features = project(Identity(), SLOT, grads)
    assert torch.equal(features[:, 5:75], grads.flatten(1))
    assert not features[:, :5].any()
    assert not features[:, 75:].any()


def test_an_explicit_matrix_multiplies_gradients_in_the_order_of_the_identity() -> None:
    matrix, grads = randn(NUM_PARAMETERS, 6, seed=3), randn(NUM_GROUPS, SLOT.rows, SLOT.cols)
    expected = project(Identity(), SLOT, grads) @ matrix
    torch.testing.assert_close(project(ExplicitMatrix(matrix.double()), SLOT, grads), expected, rtol=1e-5, atol=1e-5)
    pieces = sum(project(ExplicitMatrix(matrix), SLOT, grads[:, a:b], a) for a, b in ((0, 1), (1, 4), (4, 10)))
    torch.testing.assert_close(pieces, expected, rtol=1e-5, atol=1e-5)


def test_an_explicit_matrix_that_does_not_fit_is_refused_and_known_by_its_entries() -> None:
    matrix = randn(NUM_PARAMETERS, 6)
    with pytest.raises(ValueError, match=r"a row for each of the 81 measured parameters, got \[80, 6\]"):
        ExplicitMatrix(matrix).features_dim(81)
    with pytest.raises(ValueError, match=r"matrix must be \[grad_dim, proj_dim\], got \[80\]"):
        ExplicitMatrix(matrix[:, 0])
    with pytest.raises(TypeError, match=r"matrix must be floating point, got torch\.int64"):
        ExplicitMatrix(matrix.long())
    assert ExplicitMatrix(matrix).fingerprint() == ExplicitMatrix(matrix.clone()).fingerprint()
    assert ExplicitMatrix(matrix).fingerprint() != ExplicitMatrix(-matrix).fingerprint()


def test_the_sketch_is_that_of_the_reference() -> None:
    grads = randn(NUM_GROUPS, SLOT.rows, SLOT.cols)
    expected = reference.sketch(grads, 64, derive_key(4, "sketch", SLOT.name), 2)
    found = project(CountSketch(64, nnz=2, seed=4), SLOT, grads)
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", [CountSketch, Rademacher, Gaussian])
def test_inner_products_are_kept_on_average(make: type[CountSketch]) -> None:
    x, y = randn(1, 10, 7, seed=1), randn(1, 10, 7, seed=2)
    y = y + x
    estimates = torch.stack(
        [project(p, SLOT, x)[0] @ project(p, SLOT, y)[0] for p in (make(64, seed=seed) for seed in range(300))]
    ).double()
    truth = (x * y).sum().item()
    # Of any of the three maps, the variance is at most (|x|^2 |y|^2 + <x, y>^2) / proj_dim.
    spread = math.sqrt((x.square().sum() * y.square().sum() + truth**2).item() / 64 / 300)
    assert abs(estimates.mean().item() - truth) < 5 * spread


@pytest.mark.parametrize("proj_dim", [0, -32, 31, 33, 4095])
def test_a_sketch_that_is_not_whole_lanes_is_refused(proj_dim: int) -> None:
    with pytest.raises(ValueError, match=rf"proj_dim must be a positive multiple of 32 .*got {proj_dim}"):
        CountSketch(proj_dim)


def test_other_numbers_out_of_range_are_refused() -> None:
    for nnz in (0, 65):
        with pytest.raises(ValueError, match=f"nnz must be between 1 and 64, got {nnz}"):
            CountSketch(nnz=nnz)
    for make in (Rademacher, Gaussian):
        with pytest.raises(ValueError, match="proj_dim must be positive, got 0"):
            make(0)


def test_fingerprints_differ_when_the_maps_do() -> None:
    projectors = [*PROJECTORS, CountSketch(64, seed=1), Rademacher(33, seed=1), Rademacher(34), CountSketch(96)]
    assert len({repr(p.fingerprint()) for p in projectors}) == len(projectors)
    assert CountSketch(64).fingerprint() == CountSketch(64).fingerprint()
