"""What the comparison of short rows says is what an index finds, and the loss what retraining tells."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from cases import randn
from made_features import PROJ_DIM, make_features

from bench.retraining.exports import compare, indexed_scores, table
from bench.retraining.library import DEFAULT
from bench.retraining.steps.truth import STEP_KINDS, read_step_truth
from bench.retraining.tiers import TIERS
from journey.curvature.directions import Directions
from journey.methods.baselines import pixels

RESULTS = Path(__file__).parents[2] / "bench" / "results"


def test_an_index_of_cut_rows_is_asked_for_all_scores() -> None:
    features = make_features(randn(60, PROJ_DIM, seed=1))
    features.featurizer.features_dim = PROJ_DIM
    cut = Directions.of(features.fit.gram(0), features.blocks(), 40)
    solutions = randn(3, 2, PROJ_DIM, seed=2)
    found = indexed_scores(features, cut, solutions)
    wanted = cut.queries(solutions) @ cut.rows(features.matrix()).T
    assert found.shape == wanted.shape == (3, 2, 60)
    assert ((found - wanted).norm() / wanted.norm()).item() < 0.02


def test_the_loss_is_that_of_the_scores_and_its_interval_is_of_the_same_resamples() -> None:
    whole = read_step_truth(RESULTS / f"lds-{TIERS['laptop'].name}-steps.json")
    steps = whole.trajectory  # of which one is enough
    one = replace(steps, timesteps=steps.timesteps[1:2], x_t=steps.x_t[:, 1:2], x0_hat=steps.x0_hat[:, 1:2])
    truth = replace(whole, trajectory=one, responses=whole.responses[..., 1:2])
    good = pixels(TIERS["laptop"].images(None)[0], one.x0_hat[:, 0], cosine=True)[:, None]
    worse = good + good.std() * randn(*good.shape, seed=3)
    document = compare({DEFAULT: good, "512": worse, "256": good}, truth)
    rows = document["rows"]
    for kind in STEP_KINDS:
        best, short, same = (rows[name][kind] for name in (DEFAULT, "512", "256"))
        assert short["behind"][1] > 0.05
        assert short["behind"][0] == pytest.approx(best["mean"][0] - short["mean"][0])
        assert same["behind"] == [0, 0, 0]
        assert rows[DEFAULT]["tuning"][kind] > rows["512"]["tuning"][kind] + 0.05
    lines = table(document).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| 4,096 of the store", "| 512", "| 256"]
    assert lines[4].count("0.000 [0.000, 0.000]") == 2
