"""The checked-in counterfactuals say what the documents say, and tables say what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.retraining import planted as detection
from bench.retraining.library import WHOLE_IMAGE
from bench.retraining.removals import SETS
from bench.retraining.removals_report import AT_STEP, NEAREST, tables
from bench.retraining.tiers import TIERS
from journey.evaluate.counterfactual import Counterfactual
from journey.evaluate.removal import RANDOM, RESEED
from journey.evaluate.training import RemovalTraining

pytest.importorskip("sklearn.datasets")

TIER = TIERS["laptop"]
RESULTS = Path(__file__).parents[2] / "bench" / "results"


def checked_in() -> dict[str, Any]:
    document: dict[str, Any] = json.loads((RESULTS / f"removals-{TIER.name}.json").read_text())
    return document


def result(runs: dict[str, list[list[float]]]) -> Counterfactual:
    return Counterfactual({name: torch.tensor(rows) for name, rows in runs.items()})


def test_the_results_are_those_of_this_tier() -> None:
    training = TIER.training(TIER.images(None)[0], RemovalTraining)
    assert checked_in()["training"] == json.loads(json.dumps(training.fingerprint()))


@pytest.mark.parametrize("effect", ["pixels", "loss"])
@pytest.mark.parametrize("method", [WHOLE_IMAGE, SETS])
def test_removing_our_proponents_changes_more_than_random_removal_and_another_seed(method: str, effect: str) -> None:
    found = result(checked_in()["whole"]["48"][effect])
    assert found.excess(method, RANDOM).low > 0
    assert found.excess(method, RESEED).low > 0


@pytest.mark.parametrize("effect", ["pixels", "embedding", "loss"])
def test_sets_chosen_together_change_more_than_the_highest_scores(effect: str) -> None:
    assert result(checked_in()["whole"]["48"][effect]).excess(SETS, WHOLE_IMAGE).low > 0


def test_tables_name_every_method_the_strongest_first_and_the_gap_of_each_step() -> None:
    controls = {RANDOM: [[0.5, 0.5], [1.5, 0.5]], RESEED: [[1.0, 1.0]]}
    runs = {"weak": [[1.0, 2.0]], "strong": [[3.0, 4.0]], **controls}
    document = {
        "num_train": 9,
        "removed_at_step": 3,
        "whole": {"3": {"pixels": runs, "embedding": runs, "loss": runs}},
        "step": {"50": {key: {**runs, f"weak{AT_STEP}": [[2.0, 2.0]]} for key in ("prediction", "generation", "loss")}},
    }
    whole, prediction = tables(document, short=True).split("\n\nAt a step")
    names = [line.split(" | ")[0] for line in whole.splitlines()[4:]]
    assert names == ["| strong", "| weak", f"| {RANDOM}", f"| {RESEED}"]
    assert whole.splitlines()[4].startswith("| strong | 3.50 [3.00, 4.00] | 2.75 [")
    assert "3500.00 [3000.00, 4000.00]" in whole, "losses are in thousandths"
    assert prediction.splitlines()[-1] == "| *weak: at the step minus whole* | 0.50 [0.00, 1.00] (50 %) |"
    assert tables(document).count("At a step") == 3


def test_methods_are_paired_with_the_nearest_by_pixels() -> None:
    runs = {"ours": [[1.0, 2.0]], NEAREST: [[0.5, 1.5]], RANDOM: [[0.0, 0.0]], RESEED: [[0.0, 0.0]]}
    document = {"num_train": 9, "whole": {"3": {"pixels": runs, "embedding": runs, "loss": runs}}, "step": {}}
    lines = tables(document, short=True).splitlines()
    assert lines[-1] == "| ours | 0.50 [0.50, 0.50] (100 %) | 500.00 [500.00, 500.00] (100 %) |"
    assert lines[-5] == "More than the nearest by pixels, 3 removed:"


def test_detection_is_told_by_method_with_its_interval() -> None:
    row = {"auc": [0.9, 0.8, 1.0], "found": 0.75}
    sizes = {"num_queries": 4, "num_planted": 2}
    document = {
        "rows": {
            "mark": {**sizes, "methods": {"ours": row, "region": row}},
            "twice": {**sizes, "methods": {"ours": row}},
        }
    }
    lines = detection.table(document).splitlines()
    assert lines[0] == "| method | mark: 4 queries, 2 planted | twice: 4 queries, 2 planted |"
    assert lines[2:] == [
        "| ours | 0.90 [0.80, 1.00], 75 % | 0.90 [0.80, 1.00], 75 % |",
        "| region | 0.90 [0.80, 1.00], 75 % |  |",
    ]


def test_asking_about_the_mark_finds_more_of_it_than_asking_about_the_image() -> None:
    rows = json.loads((RESULTS / f"planted-{TIER.name}.json").read_text())["rows"]
    for what in ("held-out images with the mark", "generated images with the mark"):
        methods = rows[what]["methods"]
        assert methods["library default, region"]["auc"][1] > methods["library default"]["auc"][2]
