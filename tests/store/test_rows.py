"""Rows in every form are read as they were written, to the form's own rounding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cases import randn
from safetensors.torch import load_file
from store_runs import FIRST, make_manifest

from journey.store.rows import pack, row_tensors, unpack
from journey.store.store import FeatureStore

# Half a level of the largest entry; float16 has 11 bits.
LEVELS = {"int8": 0.5 / 127, "int4": 0.5 / 7, "float16": 2**-11, "float32": 0.0}


@pytest.mark.parametrize("row", LEVELS)
@pytest.mark.parametrize("proj_dim", [1, 31, 32, 33, 96])
def test_rows_are_unpacked_to_their_own_rounding(row: str, proj_dim: int) -> None:
    features = randn(4, 3, proj_dim)
    features[1, 2] = 0
    packed = pack(row, features)
    assert {name: (t.dtype, tuple(t.shape)) for name, t in packed.items()} == row_tensors(row, 4, 3, proj_dim)
    found = unpack(row, packed, proj_dim)
    assert found.shape == features.shape
    largest = features.abs().amax(-1, keepdim=True)
    if row != "int4":  # which may clip the largest
        assert ((found - features).abs() <= LEVELS[row] * largest * 1.0001).all()
    assert (found - features).norm() <= 2 * LEVELS[row] * features.norm() + 1e-9
    assert not found[1, 2].any()


@pytest.mark.parametrize("row", LEVELS)
def test_products_are_those_of_the_unpacked_rows(tmp_path: Path, row: str) -> None:
    store = FeatureStore.create_or_resume(tmp_path, make_manifest(proj_dim=40, row=row))
    features, queries = randn(5, 2, 40), randn(3, 40, seed=1)
    rest = {"norm": torch.ones(5), "noise": torch.ones(5), "values": torch.ones(5, 2), "content": torch.arange(5)}
    store.plan(range(5), 5)
    store.write_shard("first", FIRST, list(range(5)), features=features, **rest)
    shard = store.read_shard("first", FIRST)
    expected = torch.einsum("qk,nbk->qnb", queries.double(), shard.features.double())
    torch.testing.assert_close(shard.products(queries).double(), expected, rtol=1e-5, atol=1e-5)


def test_a_packed_row_is_its_scale_times_small_integers(tmp_path: Path) -> None:
    manifest = make_manifest(bins=1, proj_dim=64, row="int8")
    store = FeatureStore.create_or_resume(tmp_path, manifest)
    features = randn(2, 1, 64)
    rest = {"norm": torch.ones(2), "noise": torch.ones(2), "values": torch.ones(2, 1), "content": torch.arange(2)}
    store.plan([0, 1], 2)
    store.write_shard("first", FIRST, [0, 1], features=features, **rest)
    read = load_file(store.shard_path("first", FIRST))
    assert read["rows"].dtype == torch.int8
    by_hand = read["rows"].float() * read["scales"][..., None]
    assert (by_hand - features).abs().max() <= features.abs().max() / 254 * 1.0001


def test_what_float16_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match=r'features must be at most 65504 for row="float16", got 1e\+06'):
        pack("float16", torch.full((1, 1, 2), 1e6))


def test_a_form_that_there_is_none_of_is_refused() -> None:
    with pytest.raises(ValueError, match="row must be one of int8, int4, float16, float32, got 'int2'"):
        make_manifest(row="int2")
