"""The order of a convolution's columns: what goes by it says so, what is the caller's has the parameter's own order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cases import as_matrix, randn
from models import Images, SmallDenoiser, make_images, make_scheduler

import journey
from journey.errors import StoreMismatchError
from journey.methods.selective_mask import Selected
from journey.projectors.base import ByColumn, ParameterSlot, Projector
from journey.projectors.exact import ExplicitMatrix, Identity
from journey.projectors.random import CountSketch, Gaussian, Rademacher
from journey.projectors.structured import Factored, Masked

SLOT = ParameterSlot("conv.weight", rows=4, cols=18, offset=5, taps=6)
GRADS = randn(2, 4, 3, 2, 3)
MATRICES = torch.stack([as_matrix(grad) for grad in GRADS])
BY_COLUMN = [
    CountSketch(64),
    Rademacher(33),
    Gaussian(33),
    Masked(CountSketch(64)),
    Masked(Identity(), 0.5),
    Factored((("conv.weight", 4, 18),)),
]


def test_what_is_the_callers_own_has_the_order_of_the_parameter() -> None:
    matrix, kept = randn(80, 7, seed=1), randn(80, seed=2) > 0
    whole, projected, some = torch.zeros(2, 80), torch.zeros(2, 7), torch.zeros(2, 80)
    for row in range(0, 4, 3):
        part = MATRICES[:, row : row + 3]
        Identity().add_(whole, SLOT, part, row)
        ExplicitMatrix(matrix).add_(projected, SLOT, part, row)
        Selected(Identity(), kept).add_(some, SLOT, part, row)
    expected = torch.zeros(2, 80)
    expected[:, 5:77] = GRADS.flatten(1)
    assert torch.equal(whole, expected)
    assert torch.equal(some, expected * kept)
    torch.testing.assert_close(projected, expected @ matrix)


@pytest.mark.parametrize("projector", BY_COLUMN, ids=lambda p: p.fingerprint_name)
def test_a_map_that_goes_by_columns_names_their_order(projector: Projector) -> None:
    found = projector.fingerprint()
    assert found["columns"] == "tap-major"
    again = Projector.from_fingerprint(found)
    assert again.fingerprint() == found
    # One of an older version names no order, and is not the same.
    older = {name: value for name, value in found.items() if name != "columns"}
    assert Projector.from_fingerprint(older).fingerprint() != older


def test_features_of_another_order_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"projector": CountSketch(64), "progress": False}
    model, images = (SmallDenoiser(), make_scheduler()), Images(make_images(3))
    with monkeypatch.context() as patch:
        patch.setattr(ByColumn, "fingerprint", Projector.fingerprint)
        journey.featurize(model, images, tmp_path / "f", **options)
    with pytest.raises(StoreMismatchError, match=r"projector.*columns"):
        journey.featurize(model, images, tmp_path / "f", **options)
