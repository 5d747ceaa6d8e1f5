"""Inspecting finds what was planted in the features, and the noise of scores is that of repeated draws."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import randn
from models import LinearDenoiser
from score_runs import featurize, make_trajectory, score
from torch import Tensor

import journey
from journey.health.inspect import _faults, _inspect_bins
from journey.health.score_noise import ScoreNoise
from journey.measure.draws import StratifiedDraws
from journey.store.manifest import Manifest
from journey.store.store import FeatureStore


def store_features(path: Path, features: Tensor, values: Tensor | None = None) -> Path:
    """Write features of a user's own as a store. [num_samples, bins, proj_dim]."""
    num_samples, bins, proj_dim = features.shape
    manifest = Manifest(
        num_samples=num_samples,
        shard_size=4,
        bins=bins,
        proj_dim=proj_dim,
        checkpoints=["0"],
        library_version="0",
        fingerprints={},
    )
    store = FeatureStore.create_or_resume(path, manifest)
    values = randn(num_samples, bins, seed=9) if values is None else values
    for index in store.missing("0"):
        begin, end = store.shard_range(index)
        rows = slice(begin, end)
        store.write_shard("0", index, features=features[rows], values=values[rows], ids=torch.arange(begin, end))
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


@pytest.mark.parametrize("num_samples", [12, 3])  # more and fewer than proj_dim
def test_rank_and_condition_numbers_are_those_of_the_gram_matrix(tmp_path: Path, num_samples: int) -> None:
    features = randn(num_samples, 2, 8, seed=2)
    (found,) = journey.inspect(store_features(tmp_path / "f", features), damping=0.5).checkpoints
    phi = features.double().flatten(0, 1) / 2**0.5
    gram = phi.T @ phi if len(phi) > 8 else phi @ phi.T
    eigenvalues = torch.linalg.eigvalsh(gram)
    ridge = 0.5 * eigenvalues.mean()
    assert found.effective_rank == pytest.approx((eigenvalues / (eigenvalues + ridge)).sum().item(), rel=1e-5)
    assert found.rank_bound == min(2 * num_samples, 8)
    # The smallest eigenvalue of float32 features is known to about 1e-7 of the largest.
    assert found.condition == pytest.approx((eigenvalues[-1] / eigenvalues[0]).item(), rel=1e-3)
    assert found.damped_condition == pytest.approx(((eigenvalues[-1] + ridge) / (eigenvalues[0] + ridge)).item())
    assert found.largest_share == pytest.approx((eigenvalues[-1] / eigenvalues.sum()).item())


def test_the_damping_is_the_one_that_scores_are_made_with(tmp_path: Path) -> None:
    features = featurize(tmp_path / "f", draws=StratifiedDraws(num_draws=2, bins=3))
    for damping in ("auto", 0.2):
        (found,) = journey.inspect(features, damping=damping).checkpoints
        assert found.damping == score(features, damping=damping).damping


def planted(kind: str) -> Tensor:
    """Features of 20 images in 2 bins with one fault."""
    features = randn(20, 2, 128, seed=3)
    if kind == "zero":
        features[[3, 4], 1] = 0
    elif kind == "subnormal":
        features[5, 0] *= 1e-40
    elif kind == "outlier":
        features[6, 1] *= 1e4
    elif kind == "direction":
        features = torch.ones(128) + 0.01 * features
    elif kind == "crowded":
        features = randn(200, 2, 8, seed=3)
    return features


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("zero", "timesteps 50% - 100%: the features of 2 images are zero"),
        ("subnormal", "timesteps 0% - 50%: the features of 1 images are too small for float32"),
        ("outlier", "times the median; such images rank high"),
        ("direction", "one direction holds 100% of all gradients"),
        ("crowded", "is more than half of proj_dim 8"),
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


def test_the_standard_error_of_scores_is_their_spread_over_seeds(tmp_path: Path) -> None:
    """Thirty estimates of the variance, each from two halves, against the variance of the scores over thirty seeds.

    Scores of one seed share the query's noise, so an estimate has little more than one degree of freedom per query:
    two queries and thirty seeds give about sixty on either side, and a ratio of variances beyond a factor of 3 has a
    chance below 1e-4 (F distribution).
    """
    features = featurize(tmp_path / "f", LinearDenoiser(), draws=StratifiedDraws(num_draws=8))
    found, scores = [], []
    for seed in range(30):
        found.append(torch.tensor(noise_of(features, num_draws=4, seed=seed).query_error))
        scores.append(score(features, noise=None, num_draws=4, seed=seed).values)
    estimated = torch.stack(found).square().mean(0)
    actual = torch.stack(scores).var(0).mean((0, 2))
    ratio = estimated / actual
    assert bool(((ratio > 1 / 3) & (ratio < 3)).all()), f"estimated variance over the actual one: {ratio.tolist()}"


def test_the_bound_on_the_error_by_training_draws_covers_their_spread_over_seeds(tmp_path: Path) -> None:
    """Training images are measured anew under other seeds; the Gram matrix is that of the first."""
    runs = [
        featurize(tmp_path / f"{seed}", LinearDenoiser(), draws=StratifiedDraws(num_draws=2, bins=8, seed=seed))
        for seed in range(12)
    ]
    options = {"damping": 1e3, "num_draws": 4, "noise": None}  # the inverse is the identity over the ridge
    warnings.filterwarnings("ignore", "the damped features use only")
    sizes = torch.stack([run.matrix().double().square().sum() for run in runs])
    scores = torch.stack([score(run, **options).values for run in runs]) * (sizes / sizes[0])[:, None, None, None]
    bound = journey.inspect(runs[0], make_trajectory(), damping=1e3, num_draws=4, progress=False).scores
    assert bound is not None
    assert bound.train_error is not None
    actual = scores.var(0).mean((0, 2)).sqrt()
    # A bound on average; a factor of 2 for what 12 seeds and one estimate are off by.
    assert bool((2 * torch.tensor(bound.train_error) > actual).all()), (bound.train_error, actual)


def test_noise_that_drowns_the_scores_is_warned_of() -> None:
    noise = ScoreNoise([80, 40], [1.0, 1.0], [0.9, 0.1], [0.5, 2.0], [0.23, 99.0])
    first, second = noise.warnings()
    assert first.startswith("steps 80: more than half")
    assert second.startswith("steps 40: even and odd bins")
    assert replace(noise, snr=[9.0, 9.0], train_error=None).warnings() == []


def test_halves_of_draws_are_those_that_scores_average(tmp_path: Path) -> None:
    features = featurize(tmp_path / "f", draws=StratifiedDraws(num_draws=2, bins=4))
    spread = noise_of(features, num_draws=8, seed=5, steps=[40, 10]).spread
    values = score(features, noise=None, num_draws=8, seed=5, steps=[40, 10]).values
    expected = (values - values.mean(-1, keepdim=True)).square().mean((0, 2)).sqrt()
    torch.testing.assert_close(torch.tensor(spread), expected.float(), rtol=1e-5, atol=0)


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    features = featurize(tmp_path / "f")
    with pytest.raises(ValueError, match="num_draws must be a multiple of 4, two halves of antithetic pairs, got 6"):
        noise_of(features, num_draws=6)
    with pytest.raises(ValueError, match=r"trajectory needs the model: give journey\.open_features"):
        journey.inspect(tmp_path / "f", make_trajectory())
    with pytest.raises(ValueError, match="damping must be"):
        journey.inspect(tmp_path / "f", damping=-1)
    assert noise_of(features, num_draws=4).train_error is None
