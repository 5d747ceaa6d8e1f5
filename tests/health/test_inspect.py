"""Inspecting finds what was planted in the features, and the noise of scores is that of repeated draws."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import randn
from score_runs import featurize, make_trajectory, score
from torch import Tensor

import journey
from journey.health.inspect import BinHealth, CheckpointHealth, _faults, _inspect_bins, _warnings
from journey.health.score_noise import ScoreNoise
from journey.measure.draws import StratifiedDraws
from journey.projectors.random import CountSketch
from journey.store.manifest import Manifest
from journey.store.store import FeatureStore


def store_features(path: Path, features: Tensor, values: Tensor | None = None) -> Path:
    """Write features of a user's own as a store. [num_samples, bins, proj_dim]."""
    num_samples, bins, proj_dim = features.shape
    manifest = Manifest(
        bins=bins,
        proj_dim=proj_dim,
        row="float32",
        checkpoints=["0"],
        library_version="0",
        fingerprints={},
    )
    store = FeatureStore.create_or_resume(path, manifest)
    values = randn(num_samples, bins, seed=9) if values is None else values
    store.plan(range(num_samples), 4)
    for shard in store.missing("0"):
        ids = list(range(num_samples))[4 * shard.number : 4 * shard.number + 4]
        norm = features[ids].sum(1).norm(dim=-1)
        rest = {"norm": norm, "noise": norm, "values": values[ids], "content": torch.tensor(ids)}
        store.write_shard("0", shard, ids, features=features[ids], **rest)
    return path


def test_rows_with_faults_are_counted_once_each() -> None:
    rows = torch.ones(5, 1, 3)
    rows[0, 0] = torch.tensor([float("nan"), float("inf"), 1])
    rows[1, 0, 1] = float("-inf")
    rows[2] = 0
    rows[3] = 1e-40
    faults = _faults(rows)
    assert faults[:, 0].nonzero().tolist() == [[0, 0], [1, 1], [2, 2], [3, 3]]
    (found,) = _inspect_bins(rows.double().norm(dim=-1), faults, torch.ones(1, dtype=torch.float64))
    assert (found.nan_rows, found.inf_rows, found.zero_rows, found.subnormal_rows) == (1, 1, 1, 1)
    assert found.norms == pytest.approx([3**0.5] * 5), "norms are those of the sound row alone"


def test_norms_and_shares_of_every_bin_are_the_formulas(tmp_path: Path) -> None:
    features = randn(9, 3, 4, seed=1) * torch.tensor([1.0, 2.0, 10.0])[:, None]
    health = journey.inspect(store_features(tmp_path / "f", features))
    norms = features.double().norm(dim=-1)
    (checkpoint,) = health.checkpoints
    squares = norms.square().sum(0)
    for b, part in enumerate(checkpoint.bins):
        assert (part.first, part.end) == pytest.approx((b / 3, (b + 1) / 3))
        sorted_norms = norms[:, b].sort().values
        assert part.norms is not None
        assert (part.norms[0], part.norms[2], part.norms[4]) == pytest.approx(
            (sorted_norms[0].item(), sorted_norms[4].item(), sorted_norms[8].item())
        )
        assert part.share == pytest.approx((squares[b] / squares.sum()).item())
    assert any("66.7%" in text or "67%" in text for text in health.warnings), "the loudest bin is not named"


@pytest.mark.parametrize("damping", [0.01, 1.0])
def test_rank_and_condition_numbers_are_those_of_the_gram_matrix(tmp_path: Path, damping: float) -> None:
    features = featurize(tmp_path / "f", projector=CountSketch(32))
    (found,) = journey.inspect(features, damping=damping).checkpoints
    eigenvalues = torch.linalg.eigvalsh(features.fit.gram().matrix.double())
    assert found.damping == damping
    assert found.effective_rank == pytest.approx((eigenvalues / (eigenvalues + damping)).sum().item(), rel=1e-5)
    assert found.rank_bound == 32
    assert found.damped_condition == pytest.approx(((eigenvalues[-1] + damping) / (eigenvalues[0] + damping)).item())
    assert found.largest_share == pytest.approx((eigenvalues[-1] / eigenvalues.sum()).item())
    assert journey.inspect(tmp_path / "f", damping=damping).checkpoints == [found]


def test_what_the_spectrum_shows_is_warned_of(tmp_path: Path) -> None:
    bins = [BinHealth(0.0, 1.0, 0, 0, 0, 0, [1.0] * 5, 1.0)]
    sound = CheckpointHealth("0", bins, None, 1.0, 20.0, 64, 1e3, 10.0, 0.1)
    assert _warnings(sound, 64) == []
    for changes, text in (
        ({"largest_share": 0.95}, "one direction holds 95% of all gradients"),
        ({"effective_rank": 40.0}, "is more than half of proj_dim 64"),
        ({"effective_rank": 0.5}, "only 0.5 of 64 directions are in use"),
    ):
        assert any(text in found for found in _warnings(replace(sound, **changes), 64))


def planted(kind: str) -> Tensor:
    """Features of 20 images in 2 bins with one fault."""
    features = randn(20, 2, 128, seed=3)
    if kind == "zero":
        features[[3, 4], 1] = 0
    elif kind == "subnormal":
        features[5, 0] *= 1e-40
    elif kind == "outlier":
        features[6, 1] *= 1e4
    return features


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("zero", "timesteps 50% - 100%: the features of 2 images are zero"),
        ("subnormal", "timesteps 0% - 50%: the features of 1 images are too small for float32"),
        ("outlier", "times the median; such images rank high"),
    ],
)
def test_a_planted_fault_is_named_in_plain_words(tmp_path: Path, kind: str, message: str) -> None:
    health = journey.inspect(store_features(tmp_path / "f", planted(kind)), damping=1e-3)
    assert [text for text in health.warnings if message in text], health.warnings
    assert f"warning: {next(text for text in health.warnings if message in text)}" in str(health)


def test_sound_features_are_not_warned_of(tmp_path: Path) -> None:
    health = journey.inspect(store_features(tmp_path / "f", planted("none")), damping=1e-3)
    assert health.warnings == []
    assert "nothing to warn of" in str(health)
    assert json.loads(health.to_json())["checkpoints"][0]["bins"][1]["zero_rows"] == 0


def test_features_that_are_all_zero_are_reported_not_decomposed(tmp_path: Path) -> None:
    health = journey.inspect(store_features(tmp_path / "f", torch.zeros(4, 1, 8)))
    assert health.checkpoints[0].bins[0].zero_rows == 4
    assert health.checkpoints[0].damping is None
    assert "the features of 4 images are zero" in str(health)


def noise_of(features: journey.Features, **options: Any) -> ScoreNoise:
    found = journey.inspect(features, make_trajectory(), damping=0.1, progress=False, **options).scores
    assert found is not None
    return found


def test_noise_that_drowns_the_scores_is_warned_of() -> None:
    noise = ScoreNoise([80, 40], [1.0, 1.0], [0.9, 0.1], [0.23, 99.0])
    (text,) = noise.warnings()
    assert text.startswith("steps 80: more than half")
    assert replace(noise, snr=[9.0, 9.0]).warnings() == []


def test_the_noise_is_that_of_the_scores_standard_errors(tmp_path: Path) -> None:
    features = featurize(tmp_path / "f", draws=StratifiedDraws(num_draws=8))
    found = noise_of(features, num_draws=8, seed=5, steps=[40, 10])
    scores = score(features, noise=None, num_draws=8, seed=5, steps=[40, 10])
    spread = (scores.values - scores.values.mean(-1, keepdim=True)).square().mean((0, 2)).sqrt()
    torch.testing.assert_close(torch.tensor(found.spread), spread, rtol=1e-5, atol=0)
    errors = scores.standard_errors().square().mean((0, 2)).sqrt()
    torch.testing.assert_close(torch.tensor(found.error), errors, rtol=1e-5, atol=0)
    assert found.snr[0] == pytest.approx(max(0.0, (spread[0] / errors[0]).square().item() - 1), rel=1e-4)
    assert f"{found.error[0]:.3g}" in "\n".join(found.lines())


def test_noise_that_is_not_known_is_told(tmp_path: Path) -> None:
    found = noise_of(featurize(tmp_path / "f", draws=StratifiedDraws(1)), num_draws=8)
    assert (found.error, found.snr, found.warnings()) == (None, None, [])
    assert found.lines()[2].split()[-2:] == ["-", "-"]


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    featurize(tmp_path / "f")
    with pytest.raises(ValueError, match=r"trajectory needs the model: give journey\.open_features"):
        journey.inspect(tmp_path / "f", make_trajectory())
    with pytest.raises(ValueError, match="damping must be"):
        journey.inspect(tmp_path / "f", damping=-1)
