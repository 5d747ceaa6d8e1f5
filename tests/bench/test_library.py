"""The options of the library as the comparisons use it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import bench.retraining.whole.truth
from bench.retraining.library import LIBRARY, Choices, features_of
from bench.retraining.tiers import TIERS
from bench.retraining.whole.truth import Setting
from journey.projectors.random import CountSketch

pytest.importorskip("sklearn.datasets")


def test_bytes_are_those_of_a_row_with_its_scale() -> None:
    assert LIBRARY.stored == 4100
    assert Choices(row="int4").stored == 2052
    assert Choices(row="float32").stored == 16384


def test_another_gram_matrix_shares_the_store(tmp_path: Path) -> None:
    tier = TIERS["laptop"]
    train, held_out = tier.images(None)
    setting = Setting(tier, train[:6], held_out, tmp_path)
    model = setting.training.build(0)
    setting.__dict__["model"] = bench.retraining.whole.truth.Denoiser(model, setting.training.scheduler)
    sketch = CountSketch(64)
    first, seconds = features_of(setting, Choices(projector=sketch))
    second, _ = features_of(setting, Choices(projector=sketch, own_share=0.0))
    assert seconds > 0
    assert first.store.path == second.store.path
    assert first.fit.path != second.fit.path
    assert not torch.equal(first.fit.gram().matrix, second.fit.gram().matrix)
    assert features_of(setting, Choices(projector=sketch))[1] == seconds
