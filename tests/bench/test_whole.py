"""The checked-in losses of retrained models: scores are held against them in seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench.retraining.tiers import TIERS
from bench.retraining.whole.compare import table
from bench.retraining.whole.truth import BINS, QUERY_KINDS, read_truth
from journey.evaluate.lds import CONSTANT, RANDOM, lds
from journey.files.fingerprint import fingerprint_json
from journey.methods.baselines import optimal_denoiser, pixels
from journey.models.denoiser import Denoiser

pytest.importorskip("sklearn.datasets")

RESULTS = Path(__file__).parents[2] / "bench" / "results"
TIER = TIERS["laptop"]
LOSSES = RESULTS / f"lds-{TIER.name}.json"


@pytest.mark.parametrize("name", ["laptop", "digits16"])
def test_the_losses_are_those_of_their_tier_and_unaltered(name: str) -> None:
    tier = TIERS[name]
    path = RESULTS / f"lds-{tier.name}.json"
    document = json.loads(path.read_text())
    assert document["checksum"] == fingerprint_json(document["responses"])
    assert document["training"] == json.loads(json.dumps(tier.training(tier.images(None)[0]).fingerprint()))
    truth = read_truth(path)
    subsets, losses = truth.reported()
    assert losses.shape[0] == len(subsets) == tier.num_subsets
    assert losses.shape[2:] == (len(QUERY_KINDS) * tier.num_queries, BINS)
    assert not torch.isnan(losses).any()
    assert len(truth.tuning()[0]) == tier.num_tuning
    assert (truth.subsets.members.sum(1) == tier.num_train // 2).all()


@pytest.mark.parametrize("kind", [0, 1])
def test_pixels_and_the_optimal_denoiser_predict_retraining_and_controls_do_not(kind: int) -> None:
    train, held_out = TIER.images(None)
    queries = (train[: TIER.num_queries], held_out)[kind]
    subsets, losses = read_truth(LOSSES).reported()
    some = slice(kind * TIER.num_queries, (kind + 1) * TIER.num_queries)
    training = TIER.training(train)
    denoiser = Denoiser(training.build(0), training.scheduler)
    scores = {"pixels": pixels(train, queries), "optimal": optimal_denoiser(denoiser, train, queries)}
    found = lds(scores, losses[:, :, some].mean(-1), subsets, num_bootstrap=200)
    assert found.rows["pixels"].lds.low > 0.2
    assert found.difference("optimal", "pixels").low > 0
    assert found.rows[CONSTANT].lds.value == 0
    assert found.rows[RANDOM].lds.low < 0 < found.rows[RANDOM].lds.high


def test_a_table_is_sorted_and_ends_with_the_ceiling() -> None:
    def row(value: float) -> dict[str, object]:
        behind = None if value == 0.5 else [0.5 - value, 0.1, 0.4]
        return {kind: {"lds": [value, value - 0.1, value + 0.1], "behind": behind} for kind in QUERY_KINDS}

    document = {
        "rows": {"worse": {**row(0.2), "seconds": 3, "bytes": 4100, "damping": 0.1}, "better": row(0.5)},
        "ceiling": {kind: [0.9, 0.8, 1.0] for kind in QUERY_KINDS},
    }
    lines = table(document).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| better", "| worse", "| ceiling"]
    assert "0.20 [0.10, 0.30]" in lines[3]
    assert lines[3].endswith("| 0.30 [0.10, 0.40] | 3 | 4.1 | 0.1 |")


def test_the_snr_lds_has_a_column_where_the_numbers_have_it() -> None:
    def row(snr: object) -> dict[str, object]:
        found = {"lds": [0.5, 0.4, 0.6], "behind": None}
        return {kind: {**found, **({} if snr is None else {"snr": snr})} for kind in QUERY_KINDS}

    ceiling = {kind: [0.9, 0.8, 1.0] for kind in QUERY_KINDS}
    method = row({"lds": [0.25, 0.125, 0.375], "share": 0.0625})
    lines = table({"rows": {"method": method, "control": row(None)}, "ceiling": ceiling}).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert {len(line) for line in cells} == {len(cells[0])}
    column = cells[0].index("SNR-LDS, held-out queries; share of scores left")
    assert [line[column] for line in cells[2:]] == ["0.25 [0.12, 0.38]; 6.2%", "", ""]
    assert "SNR" not in table({"rows": {"control": row(None)}, "ceiling": ceiling})
