"""Scores of parts - of the generation, of training, of the image - are the explicit formula and add up to the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import randn
from models import IMAGE, SmallDenoiser, make_scheduler
from score_runs import (
    NUM_DRAWS,
    NUM_QUERIES,
    STEPS,
    assert_near,
    featurize,
    inverse,
    make_noise,
    make_trajectory,
    mean_gradient,
    score,
)
from torch import Tensor

import journey
from journey.measure.draws import StratifiedDraws
from journey.measure.measurements import Measurement, Prediction
from journey.models.schedules import Interval
from journey.scores.influence import InfluenceMatrix

BINS = StratifiedDraws(num_draws=2, bins=3)  # of 33, 33 and 34 timesteps


def query_gradients(mask: Tensor | None = None) -> np.ndarray:
    """Gradients of the (masked) loss of every query at every step, by autograd. [num_queries, num_steps, grad_dim]."""
    trajectory, noise, network = make_trajectory(), make_noise(), SmallDenoiser()
    rows = []
    for q in range(NUM_QUERIES):
        for s, t in enumerate(STEPS):
            times = torch.full((NUM_DRAWS,), t)
            image = trajectory.x0_hat[q, s]
            if mask is None:
                rows.append(mean_gradient(network, image, times, noise[q, s]))
                continue
            x_t = make_scheduler().add_noise(image.expand(NUM_DRAWS, *IMAGE), noise[q, s], times)
            loss = (mask * (network(x_t, times) - noise[q, s]).square()).mean()
            rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(network.parameters()))]))
    return torch.stack(rows).view(NUM_QUERIES, len(STEPS), -1).double().numpy()


def explicit_parts(features: journey.Features, bins: list[float], query: np.ndarray) -> np.ndarray:
    """``query (M + 0.1 I)^-1 (sum of bins)^T``, written out."""
    stored = features.store.features("0").double().numpy()
    return query @ inverse(features, 0.1) @ np.einsum("nbk,b->nk", stored, bins).T


@pytest.mark.parametrize(
    ("interval", "bins"),
    [((0, 33), [0.33, 0, 0]), ((66, 100), [0, 0, 0.34]), ((20, 50), [0.13, 0.17, 0]), ((0, 100), [0.33, 0.33, 0.34])],
)
def test_a_train_interval_counts_its_share_of_every_bin(tmp_path: Path, interval: Interval, bins: list[float]) -> None:
    features = featurize(tmp_path / "f", draws=BINS)
    found = score(features, train_interval=interval)
    assert found.train_interval == interval
    assert_near(found.values, explicit_parts(features, bins, query_gradients()))


def test_train_intervals_add_up_to_the_whole_score(tmp_path: Path) -> None:
    features = featurize(tmp_path / "f", draws=BINS)
    parts = [score(features, train_interval=interval).values for interval in ((0, 7), (7, 60), (60, 100))]
    assert_near(parts[0] + parts[1] + parts[2], score(features).values.numpy(), 1e-5)


def test_an_interval_is_the_average_of_the_steps_in_it(tmp_path: Path) -> None:
    features = featurize(tmp_path / "f")
    steps = score(features).values
    whole = score(features, interval=(0, 100))
    assert_near(whole.values, steps.mean(1, keepdim=True).numpy(), 1e-5)
    assert (whole.timesteps.tolist(), whole.interval) == ([40], (0, 100))
    late = score(features, interval=(10, 80), noise=make_noise()[:, 1:])  # the end is not in it
    assert_near(late.values, steps[:, 1:].mean(1, keepdim=True).numpy(), 1e-5)


def test_an_interval_of_the_generation_and_one_of_training_can_be_combined(tmp_path: Path) -> None:
    features = featurize(tmp_path / "f", draws=BINS)
    found = score(features, interval=(40, 100), train_interval=(0, 66), noise=make_noise()[:, :2])
    query = query_gradients()[:, :2].mean(1, keepdims=True)
    assert_near(found.values, explicit_parts(features, [0.33, 0.33, 0], query))


def test_a_region_is_the_masked_loss_over_all_pixels(tmp_path: Path) -> None:
    features = featurize(tmp_path / "f", draws=BINS)
    mask = torch.rand(8, 8, generator=torch.Generator().manual_seed(0))
    found = score(features, region=mask)
    assert_near(found.values, explicit_parts(features, [0.33, 0.33, 0.34], query_gradients(mask)))
    assert torch.equal(found.region, mask.expand(NUM_QUERIES, 8, 8))


def test_a_region_and_its_complement_add_up_to_the_whole_image(tmp_path: Path) -> None:
    features = featurize(tmp_path / "f")
    box = torch.zeros(8, 8)
    box[1:4, 2:7] = 1
    patch, rest = score(features, region=(1, 2, 4, 7)).values, score(features, region=1 - box).values
    whole = score(features).values
    assert_near(patch + rest, whole.numpy(), 1e-5)
    assert (patch - whole).abs().max() > 0.1 * whole.abs().max(), "the patch is not told from the whole"


def test_every_query_may_have_its_own_region(tmp_path: Path) -> None:
    features = featurize(tmp_path / "f")
    found = score(features, region=[(0, 0, 8, 4), lambda image: (image[0] > 0).float()]).values
    second = (make_trajectory().images[1, 0] > 0).float()
    assert_near(found[:1], score(features, region=(0, 0, 8, 4)).values[:1].numpy(), 1e-6)
    assert_near(found[1:], score(features, region=second).values[1:].numpy(), 1e-6)


class MeanOutput(Measurement):
    """A measurement that does not say what each pixel gives."""

    def __call__(self, p: Prediction) -> Tensor:
        return p.prediction.flatten(1).mean(1)


def test_a_measurement_without_pixels_has_no_regions(tmp_path: Path) -> None:
    features = featurize(tmp_path / "f", measurement=MeanOutput())
    with pytest.raises(TypeError, match=r"region needs a measurement that is a mean over pixels .* MeanOutput"):
        score(features, region=(0, 0, 4, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": [40], "interval": (0, 50)}, "give steps, .* or interval, .* not both"),
        ({"interval": (50, 50)}, r"interval must be timesteps \(t0, t1\) with 0 <= t0 < t1 <= 100, got \(50, 50\)"),
        ({"interval": (0, 101)}, "interval must be timesteps"),
        ({"interval": (0.5, 10)}, "interval must be timesteps"),
        ({"interval": (11, 40)}, r"interval must hold at least one of the recorded timesteps \[80, 40, 10\]"),
        ({"train_interval": (0, 50)}, "train_interval needs features in several bins .* got one bin"),
        ({"train_interval": (-1, 40)}, "train_interval must be timesteps"),
        ({"region": (0, 0, 9, 4)}, r"region must be a box .* within 8 x 8 pixels, got \(0, 0, 9, 4\)"),
    ],
)
def test_a_part_that_does_not_exist_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score(featurize(tmp_path / "f"), **options)


# The matrix of training timesteps and generation steps.


def matrix(features: journey.Features, train_ids: Any, **options: Any) -> InfluenceMatrix:
    return journey.influence_matrix(
        features, make_trajectory(), train_ids, damping=0.1, num_draws=4, progress=False, **options
    )


def test_the_influence_matrix_holds_the_scores_of_each_bin_and_step(tmp_path: Path) -> None:
    features = featurize(tmp_path / "f", draws=BINS)
    found = matrix(features, 3, query=1, steps=[10, 80])
    assert (found.edges.tolist(), found.timesteps.tolist(), found.train_ids) == (
        [0, 33, 66, 100],
        [10, 80],
        [3],
    )
    for b, interval in enumerate([(0, 33), (33, 66), (66, 100)]):
        scores = score(features, train_interval=interval, steps=[10, 80], noise=None, num_draws=4)
        assert_near(found.values[b], scores.values[1, :, 3].numpy(), 1e-5)


def test_the_influence_matrix_of_a_group_is_the_sum_and_its_columns_are_whole_scores(tmp_path: Path) -> None:
    features = featurize(tmp_path / "f", draws=BINS, checkpoints=[SmallDenoiser(1), SmallDenoiser(2)])
    group = matrix(features, [0, 3, 4])
    alone = sum(matrix(features, i).values for i in (0, 3, 4))
    assert_near(group.values, alone.numpy(), 1e-5)
    whole = score(features, noise=None, num_draws=4).values[0][:, [0, 3, 4]].sum(1)
    assert_near(group.values.sum(0), whole.numpy(), 1e-5)


def test_a_saved_influence_matrix_is_the_same(tmp_path: Path) -> None:
    edges, times, ids = torch.tensor([0, 5, 9]), torch.tensor([80, 40, 10]), ["é/4.png", "b"]
    saved = InfluenceMatrix(randn(2, 3), edges, times, ids)
    saved.save(tmp_path / "m")
    found = InfluenceMatrix.load(tmp_path / "m")
    assert all(torch.equal(getattr(found, name), getattr(saved, name)) for name in ("values", "edges", "timesteps"))
    assert found.train_ids == ids
    score(featurize(tmp_path / "f")).save(tmp_path / "scores")
    with pytest.raises(ValueError, match="holds no saved influence"):
        InfluenceMatrix.load(tmp_path / "scores")
    with pytest.raises(ValueError, match=r"values must be \[train_bins, query_steps\] = \[2, 3\], got \[3, 2\]"):
        InfluenceMatrix(randn(3, 2), edges, times, ids)


@pytest.mark.parametrize(
    ("train_ids", "options", "message"),
    [
        (5, {}, r"train_ids must be of images that have features, got \[5\]"),
        ([], {}, "train_ids must be of images that have features, got none"),
        (0, {"query": 2}, r"query must be in 0\.\.1, got 2"),
        (0, {"steps": [11]}, "steps must be among the recorded"),
    ],
)
def test_an_influence_that_does_not_exist_is_refused(
    tmp_path: Path, train_ids: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        matrix(featurize(tmp_path / "f", draws=BINS), train_ids, **options)
