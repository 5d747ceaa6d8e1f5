"""Features that were stored can be scored with by another process that has the model and the folder alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import assert_same_but_for_rounding, randn
from models import IMAGE, Images, SmallDenoiser, make_images, make_scheduler
from torch import Tensor

import journey
from journey.errors import StoreMismatchError
from journey.features.open import open_features
from journey.measure.draws import ExplicitDraws, GridDraws, UniformDraws
from journey.measure.measurements import Measurement, Prediction, SquaredNorm
from journey.projectors.base import Projector
from journey.projectors.exact import Identity
from journey.projectors.random import CountSketch, Gaussian, Rademacher

CHOICES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "sketch": {"projector": CountSketch(64, nnz=2, seed=3)},
    "rademacher": {"projector": Rademacher(32, seed=1)},
    "normal": {"projector": Gaussian(32)},
    "identity and squared norm": {"projector": Identity(), "measurement": SquaredNorm()},
    "grid": {"draws": GridDraws(num_draws=2, bins=3, antithetic=False, seed=5)},
    "uniform": {"draws": UniformDraws(num_draws=2)},
}


def make_model(seed: int = 0) -> tuple[SmallDenoiser, Any]:
    """A model as another process would load it: equal, and not the same object."""
    return SmallDenoiser(seed), make_scheduler()


def store(path: Path, **options: Any) -> journey.Features:
    """Featurize five images quietly."""
    return journey.featurize(make_model(), Images(make_images(5)), path, progress=False, **options)


def score(features: journey.Features) -> Tensor:
    """Scores of one query at two steps."""
    x_t, x0_hat = randn(1, 2, *IMAGE, seed=1), torch.tanh(randn(1, 2, *IMAGE, seed=2))
    trajectory = journey.Trajectory(torch.tensor([60, 20]), x_t, x0_hat, x0_hat[:, 1])
    return journey.score(features, trajectory, num_draws=2, progress=False).values


def assert_same_scores(opened: journey.Features, made: journey.Features) -> None:
    """Another object of the same model rounds otherwise; the inverse of the Gram matrix multiplies that."""
    assert_same_but_for_rounding(score(opened), score(made), 1e-4)


@pytest.mark.parametrize("choice", CHOICES)
def test_opened_features_give_the_scores_of_those_that_were_made(tmp_path: Path, choice: str) -> None:
    made = store(tmp_path / "f", **CHOICES[choice])
    opened = open_features(tmp_path / "f", make_model())
    assert torch.equal(opened.store.features("0"), made.store.features("0"))
    assert_same_scores(opened, made)


def test_checkpoints_and_selection_are_given_again(tmp_path: Path) -> None:
    options = {"checkpoints": [SmallDenoiser(1), SmallDenoiser(2)], "select": lambda name: name != "time.bias"}
    made = store(tmp_path / "f", **options)
    assert_same_scores(open_features(tmp_path / "f", make_model(), **options), made)
    with pytest.raises(StoreMismatchError, match=r"fingerprints\.weights"):
        open_features(tmp_path / "f", make_model(), select=options["select"])
    with pytest.raises(StoreMismatchError, match=r"fingerprints\.parameters\.count"):
        open_features(tmp_path / "f", make_model(), checkpoints=options["checkpoints"])


def test_another_model_is_refused(tmp_path: Path) -> None:
    store(tmp_path / "f")
    with pytest.raises(StoreMismatchError, match=r"the model is not the one .*fingerprints\.weights\[0\]"):
        open_features(tmp_path / "f", make_model(1))
    with pytest.raises(
        StoreMismatchError, match=r"fingerprints\.prediction_type: \"epsilon\" in the store, \"sample\" now"
    ):
        open_features(tmp_path / "f", (SmallDenoiser(), make_scheduler("sample")))


@dataclass(frozen=True)
class Doubled(Measurement):
    """A measurement that the library cannot know."""

    factor: float = 2.0

    def __call__(self, p: Prediction) -> Tensor:
        return self.factor * p.prediction.square().flatten(1).mean(1)


@dataclass(frozen=True)
class Halves(Identity):
    """A projector that the library cannot know."""

    def add_(self, features: Tensor, slot: Any, grads: Tensor, row_begin: int = 0) -> None:
        super().add_(features, slot, grads / 2, row_begin)


OWN: dict[str, Measurement | Projector | ExplicitDraws] = {
    "measurement": Doubled(),
    "projector": Halves(),
    "draws": ExplicitDraws(torch.tensor([3, 70]), randn(2, *IMAGE)),
}


@pytest.mark.parametrize("name", OWN)
def test_what_is_the_callers_own_has_to_be_given_again(tmp_path: Path, name: str) -> None:
    made = store(tmp_path / "f", **{name: OWN[name]})
    with pytest.raises(ValueError, match=name):
        open_features(tmp_path / "f", make_model())
    opened = open_features(tmp_path / "f", make_model(), **{name: OWN[name]})
    assert_same_scores(opened, made)


def test_an_argument_that_is_not_that_of_the_features_is_refused(tmp_path: Path) -> None:
    store(tmp_path / "f", projector=CountSketch(64))
    with pytest.raises(StoreMismatchError, match=r"fingerprints\.projector\.seed: 0 in the store, 1 now"):
        open_features(tmp_path / "f", make_model(), projector=CountSketch(64, seed=1))


def test_a_folder_without_features_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not a feature store"):
        open_features(tmp_path, make_model())
