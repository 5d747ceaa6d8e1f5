"""A removal set is predicted as retraining without it does, and is the one that does most."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cases import randn
from models import Images, SmallDenoiser, make_images
from score_runs import NUM_TRAIN, SCHEDULER, STEPS, featurize, score
from torch import Tensor, nn

import journey
from journey.errors import StoreMismatchError
from journey.generation.trajectory import Trajectory
from journey.gradients.engine import RowValues
from journey.measure.draws import ExplicitDraws, StratifiedDraws
from journey.measure.measurements import Measurement, Prediction
from journey.projectors.exact import Identity
from journey.projectors.random import CountSketch
from journey.scores import removal
from journey.scores.scores import Scores

NUM_IMAGES, DIM, TIMESTEP = 10, 5, 60
DAMPING = 0.05


class Linear(nn.Module):
    """One number, linear in the channels of a single pixel."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.config = SimpleNamespace(in_channels=DIM, sample_size=1)
        self.mix = nn.Conv2d(DIM, 1, 1, bias=False)
        with torch.no_grad():
            self.mix.weight.copy_(weights.view(1, DIM, 1, 1))
        self.eval()

    def forward(self, x_t: Tensor, timesteps: Tensor) -> Tensor:
        return self.mix(x_t)


class Loss(Measurement, name="loss of one number"):
    """Its squared difference from the first channel of the noise."""

    def __call__(self, p: Prediction) -> Tensor:
        return (p.target[:, 0].flatten() - p.prediction.flatten()).square()

    def fingerprint(self) -> str:
        return "loss of one number"


class Regression:
    """Ridge regression, whose images and draws are chosen so that x_t are the rows of X; query rows come last."""

    def __init__(self, twins: bool = False) -> None:
        self.x = randn(NUM_IMAGES + 1, DIM, seed=1).double()
        self.y = self.x @ randn(DIM, seed=2).double() + 0.5 * randn(NUM_IMAGES + 1, seed=3).double()
        if twins:  # two images that teach the query the same, and a third one that teaches it a little less
            self.x[1], self.y[1] = self.x[0], self.y[0]
            self.x[NUM_IMAGES] = 0.8 * self.x[0]
        self.noise = randn(NUM_IMAGES + 1, DIM, 1, 1, seed=9).double()
        self.noise[:, 0, 0, 0] = self.y
        abar = SCHEDULER.alphas_cumprod[TIMESTEP].double()
        self.images = ((self.x.view(-1, DIM, 1, 1) - (1 - abar).sqrt() * self.noise) / abar.sqrt()).float()

    @property
    def ridge(self) -> float:
        """In mean diagonals of ``2 X^T X / n``, over n as the sums of ``fit`` are."""
        return DAMPING * 2 * self.x[:NUM_IMAGES].square().sum().item() / DIM

    def fit(self, without: tuple[int, ...] = ()) -> Tensor:
        kept = [i for i in range(NUM_IMAGES) if i not in without]
        x, y = self.x[kept], self.y[kept]
        return torch.linalg.solve(2 * x.T @ x + self.ridge * torch.eye(DIM, dtype=x.dtype), 2 * x.T @ y)

    def rise(self, without: tuple[int, ...]) -> float:
        """Slope of the query's loss times what leaving images out does to its output."""
        slope = 2 * (self.x[-1] @ self.fit() - self.y[-1])
        return (slope * (self.x[-1] @ (self.fit(without) - self.fit()))).item()

    def exact_gradients(self, featurizer: Any, samples: Any, ids: list[int], *_: Any) -> Any:
        """All pseudo-gradients there are, at the draws of the training, in place of a few at others."""
        denoiser, rows = featurizer.denoiser, self.x[ids].float().view(-1, DIM, 1, 1)

        def pseudo_losses(chosen: Tensor) -> Iterator[RowValues]:
            x_t = rows[chosen]
            times = torch.full((len(x_t),), TIMESTEP)
            yield lambda part: 2**0.5 * denoiser.predict(x_t[part], times[part], None).flatten()

        return SimpleNamespace(num_rows=len(rows), shape=(DIM, 1, 1), pseudo_losses=pseudo_losses)

    def score(self, folder: Path, patch: pytest.MonkeyPatch) -> tuple[Scores, Images]:
        patch.setattr("journey.features.gram_rows.gradients_of", self.exact_gradients)
        patch.setattr("journey.features.gram_blocks.gradients_of", self.exact_gradients)
        model = (Linear(self.fit().float()), SCHEDULER)
        dataset = Images(self.images[:NUM_IMAGES])
        draws = ExplicitDraws(torch.full((NUM_IMAGES, 1), TIMESTEP), self.noise[:NUM_IMAGES, None].float())
        chosen: dict[str, Any] = {"measurement": Loss(), "projector": Identity(), "progress": False}
        fit = journey.fit(model, dataset, folder / "fit", pseudo_gradients=NUM_IMAGES, own_share=0.0, **chosen)
        features = journey.featurize(model, dataset, folder / "rows", fit=fit, draws=draws, row="float32", **chosen)
        image = self.images[NUM_IMAGES:]
        queried = Trajectory(torch.tensor([TIMESTEP]), image[None], image[None], image)
        noise = self.noise[NUM_IMAGES:, None, None].float()
        return journey.score(features, queried, noise=noise, damping=DAMPING, progress=False), dataset

    def in_losses(self, totals: Tensor) -> Tensor:
        """Scores and totals, in the unit of the loss: the mean diagonal is that of ``2 X^T X / n``."""
        return totals / (2 * self.x[:NUM_IMAGES].square().sum() / DIM)


def test_every_prefix_of_the_set_is_predicted_as_retraining_without_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    regression = Regression()
    scores, dataset = regression.score(tmp_path, monkeypatch)
    found = scores.removal_set(4, dataset, progress=False)
    expected = torch.tensor([regression.rise(tuple(found.ids[: i + 1])) for i in range(4)], dtype=torch.float64)
    torch.testing.assert_close(regression.in_losses(found.totals), expected, rtol=1e-4, atol=1e-6)
    assert (found.totals.diff() > 0).all()
    assert (found.totals.dtype, len(set(found.ids))) == (torch.float64, 4)
    torch.testing.assert_close(found.sums, scores.values[0, 0, found.ids].double().cumsum(0))
    assert (regression.in_losses(found.sums) - expected).abs().max() > 0.05 * expected.max(), "a sum is no prediction"
    assert (regression.in_losses(-found.totals) - expected).abs().max() > expected.max(), "nor the other sign"


def test_each_image_is_the_one_with_which_the_set_does_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    regression = Regression()
    scores, dataset = regression.score(tmp_path, monkeypatch)
    chosen: list[int] = []
    for _ in range(4):
        rises = {i: regression.rise((*chosen, i)) for i in range(NUM_IMAGES) if i not in chosen}
        chosen.append(max(rises, key=lambda i: rises[i]))
    assert scores.removal_set(4, dataset, progress=False).ids == chosen
    strongest = scores.top(4).proponents.ids[0, 0].tolist()
    assert scores.removal_set(4, dataset, candidates=4, progress=False).ids != chosen or set(strongest) == set(chosen)
    few = scores.removal_set(2, dataset, candidates=2, progress=False)
    assert set(few.ids) == set(strongest[:2])
    rises = torch.tensor([regression.rise(tuple(few.ids[:count])) for count in (1, 2)]).double()
    torch.testing.assert_close(regression.in_losses(few.totals), rises, rtol=1e-4, atol=1e-6)


def test_two_copies_are_found_where_each_alone_does_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    regression = Regression(twins=True)
    scores, dataset = regression.score(tmp_path, monkeypatch)
    pairs = {pair: regression.rise(pair) for pair in combinations(range(NUM_IMAGES), 2)}
    best = max(pairs, key=lambda pair: pairs[pair])
    found = scores.removal_set(2, dataset, progress=False)
    assert tuple(sorted(found.ids)) == best
    assert regression.in_losses(found.totals)[1].item() == pytest.approx(pairs[best], rel=1e-4)
    assert pairs[best] > 1.2 * sum(regression.rise((i,)) for i in best)


# The library's own draws.


def library_scores(folder: Path, **options: Any) -> tuple[Scores, Images]:
    dataset = Images(make_images(NUM_TRAIN))
    chosen = {"measurement": journey.LeftOutLoss(), "draws": StratifiedDraws(4), "dataset": dataset}
    return score(featurize(folder, **{**chosen, **options}), damping=1.0), dataset


def test_of_a_left_out_loss_the_first_total_is_the_score(tmp_path: Path) -> None:
    scores, dataset = library_scores(tmp_path / "f")
    for query, step in ((0, 80), (1, 40)):
        values = scores.values[query, STEPS.index(step)]
        found = scores.removal_set(2, dataset, query=query, step=step, progress=False)
        assert found.ids[0] == int(values.argmax())
        assert found.totals[0].item() == pytest.approx(values.max().item(), rel=1e-3)


def test_a_set_is_the_same_again_and_candidates_are_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores, dataset = library_scores(tmp_path / "f")
    first = scores.removal_set(2, dataset, step=80, progress=False)
    scores.removals._kept.clear()  # type: ignore[union-attr]
    again = scores.removal_set(2, dataset, step=80, progress=False)
    assert again.ids == first.ids
    assert torch.equal(first.totals, again.totals)
    monkeypatch.setattr(removal, "measure_blocks", None)
    scores.removal_set(2, dataset, query=1, step=10, progress=False)


def test_of_several_checkpoints_the_mean_counts(tmp_path: Path) -> None:
    weights = [SmallDenoiser(seed) for seed in (1, 2)]
    scores, dataset = library_scores(tmp_path / "f", checkpoints=weights)
    found = scores.removal_set(NUM_TRAIN, dataset, step=40, progress=False)
    assert found.totals[0].item() == pytest.approx(scores.values[0, STEPS.index(40)].max().item(), rel=1e-3)
    assert sorted(found.ids) == list(range(NUM_TRAIN))


def test_images_are_known_by_their_ids(tmp_path: Path) -> None:
    images = [{"image": image, "id": name} for image, name in zip(make_images(NUM_TRAIN), "abcde", strict=True)]
    scores, _ = library_scores(tmp_path / "f", dataset=images)
    dataset = Images(make_images(NUM_TRAIN))
    named = scores.removal_set(3, images, step=40, progress=False).ids
    assert named[0] == scores.train_ids[int(scores.values[0, STEPS.index(40)].argmax())]
    assert set(named) <= set("abcde")
    with pytest.raises(ValueError, match=r"dataset must hold the images that were featurized, but lacks \['"):
        scores.removal_set(1, dataset, step=40)


def test_what_is_no_question_is_refused(tmp_path: Path) -> None:
    scores, dataset = library_scores(tmp_path / "f")
    scores.save(tmp_path / "scores.safetensors")
    for without in (Scores.load(tmp_path / "scores.safetensors"), scores.strengths()):
        with pytest.raises(ValueError, match=r"removal_set needs scores as journey\.score returned them"):
            without.removal_set(1, dataset, step=40)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"k": 0}, "k must be between 1 and the 5 training images, got 0"),
        ({"k": 6}, "k must be between 1 and the 5 training images, got 6"),
        ({"query": 2}, "query must be between 0 and 1, got 2"),
        ({"query": -1}, "query must be between 0 and 1, got -1"),
        ({"step": None}, "step must be one of the timesteps"),
        ({"step": 41}, "step must be one of the timesteps"),
        ({"k": 3, "candidates": 2}, "candidates must be at least k = 3, got 2"),
        ({"dataset": Images(make_images(4))}, "dataset must hold the images that were featurized, but lacks"),
    ]
    for change, message in wrong:
        with pytest.raises(ValueError, match=message):
            scores.removal_set(**{"dataset": dataset, "k": 1, "step": 40, "progress": False, **change})
    with pytest.raises(TypeError, match="dataset must be one with len"):
        scores.removal_set(1, iter(make_images(NUM_TRAIN)), step=40)
    with pytest.raises(StoreMismatchError, match=r"dataset must hold the images that .* has measured"):
        scores.removal_set(1, Images(make_images(NUM_TRAIN, seed=8)), step=40)


def test_a_damping_that_leaves_no_curvature_is_refused(tmp_path: Path) -> None:
    dataset = Images(make_images(NUM_TRAIN))
    features = featurize(tmp_path / "f", dataset=dataset, projector=CountSketch(32))
    scores = score(features, damping=1e-12)
    with pytest.raises(ValueError, match=r"damping must be larger for a set of 5, got 1e-12: after \d images"):
        scores.removal_set(NUM_TRAIN, dataset, step=40, progress=False)


def test_a_model_that_changed_is_refused(tmp_path: Path) -> None:
    network = SmallDenoiser()
    dataset = Images(make_images(NUM_TRAIN))
    scores = score(featurize(tmp_path / "f", network, dataset=dataset))
    network.outward.bias.data += 1e-6
    with pytest.raises(StoreMismatchError, match=r"fingerprints\.weights"):
        scores.removal_set(1, dataset, step=40, progress=False)
