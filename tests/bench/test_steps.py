"""The checked-in losses of single steps under retrained models: scores are held against them in seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.retraining.library import DEFAULT
from bench.retraining.steps.compare import add_kind, step_table
from bench.retraining.steps.contenders import PUBLISHED, TRAINING_LOSS
from bench.retraining.steps.truth import STEP_KINDS, STEPS, read_step_truth, step_responses
from bench.retraining.tiers import TIERS
from journey.evaluate.lds import CEILING, CONSTANT, RANDOM, lds, significant
from journey.files.fingerprint import fingerprint_json
from journey.methods.baselines import optimal_denoiser_at, pixels
from journey.models.denoiser import Denoiser

pytest.importorskip("sklearn.datasets")

RESULTS = Path(__file__).parents[2] / "bench" / "results"
TIER = TIERS["laptop"]
LOSSES = RESULTS / f"lds-{TIER.name}-steps.json"


def untrained() -> Denoiser:
    """A network of the tier, for its schedule and for what any weights must satisfy."""
    training = TIER.training(TIER.images(None)[0])
    return Denoiser(training.build(0), training.scheduler)


def test_the_losses_are_those_of_this_tier_and_unaltered() -> None:
    document = json.loads(LOSSES.read_text())
    assert document["checksum"] == fingerprint_json(document["responses"])
    assert document["training"] == json.loads(json.dumps(TIER.training(TIER.images(None)[0]).fingerprint()))
    truth = read_step_truth(LOSSES)
    subsets, losses = truth.reported()
    assert losses.shape == (len(subsets), TIER.num_seeds, len(STEP_KINDS) * TIER.num_queries, len(STEPS))
    assert not torch.isnan(losses).any()
    tuned, tuning = truth.tuning()
    assert len(tuned) == len(tuning) == TIER.num_tuning
    assert not torch.isnan(tuning).any()
    assert truth.trajectory.timesteps.tolist() == list(STEPS)
    assert truth.trajectory.schedule == untrained().schedule.fingerprint()


def test_a_response_is_the_mean_loss_over_the_noises() -> None:
    trajectory, model = read_step_truth(LOSSES).trajectory, untrained()
    noise = torch.randn(trajectory.num_queries, len(STEPS), 2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = step_responses(model, trajectory, noise)
    query, step = 40, 3
    x0, times = trajectory.x0_hat[query, step].expand(2, 1, 8, 8), torch.full((2,), STEPS[step])
    with torch.no_grad():
        x_t = model.scheduler.add_noise(x0, noise[query, step], times)
        output = model.network(x_t, times).sample
    expected = (output - model.scheduler.get_velocity(x0, noise[query, step], times)).square().mean()
    assert torch.isclose(found[query, step], expected, rtol=1e-5)


def test_the_snr_lds_of_a_method_is_the_lds_of_the_scores_that_stand_out() -> None:
    truth = read_step_truth(LOSSES)
    subsets, losses = truth.reported()
    train, part = TIER.images(None)[0], truth.of_kind("generated")
    trajectory, steps = truth.trajectory, range(len(STEPS))
    scores = torch.stack([pixels(train, trajectory.x0_hat[part, i], cosine=True) for i in steps], 1) ** 9
    document: dict[str, Any] = {"steps": STEPS, "rows": {}, "ceiling": {}}
    # What stands out is told apart in a second name, so that its own LDS is the SNR-LDS of the first.
    kept = torch.stack([significant(scores[:, i])[0] for i in steps], 1)
    add_kind(document, "generated", {DEFAULT: scores, "kept": kept}, losses[:, :, part], subsets)
    first, second = (document["rows"][name]["generated"] for name in (DEFAULT, "kept"))
    assert first["snr"]["mean"] == second["mean"]
    assert first["snr"]["share"] == pytest.approx((kept != 0).double().mean().item())
    assert first["snr"]["mean"] != first["mean"]
    for part_of in (*document["rows"].values(), document["ceiling"]):
        part_of["held-out"] = part_of["generated"]
    lines = [line.split("|") for line in step_table(document).splitlines()]
    assert {len(line) for line in lines} == {len(lines[0])}
    column = [cell.strip() for cell in lines[0]].index("SNR-LDS, mean; share of scores left")
    cells = {line[1].strip(): line[column].strip() for line in lines}
    assert cells[DEFAULT].endswith(f"; {first['snr']['share']:.1%}")
    assert cells[RANDOM] == cells[CEILING] == ""


def test_the_latent_and_the_predicted_image_tell_of_retraining_at_their_own_steps() -> None:
    truth = read_step_truth(LOSSES)
    train, trajectory, model = TIER.images(None)[0], truth.trajectory, untrained()
    subsets, losses = truth.reported()

    def rows(step: int, scores: dict[str, Tensor]) -> dict[str, float]:
        table = lds(scores, losses[..., STEPS.index(step)], subsets, num_bootstrap=100)
        assert table.rows[CONSTANT].lds.value == 0
        assert table.rows[RANDOM].lds.low < 0 < table.rows[RANDOM].lds.high
        return {name: row.lds.low for name, row in table.rows.items()}

    early, middle = STEPS.index(800), STEPS.index(500)
    assert rows(800, {"pixels": pixels(train, trajectory.x0_hat[:, early], cosine=True)})["pixels"] > 0.5
    at_latent = optimal_denoiser_at(model, train, trajectory.x_t[:, middle], 500)
    at_other = optimal_denoiser_at(model, train, trajectory.x_t[:, STEPS.index(950)], 950)
    found = rows(500, {"own": at_latent, "other": at_other})
    assert found["own"] > 0.15
    assert found["own"] > found["other"]


def test_the_default_leads_the_training_loss_every_baseline_and_every_control_at_single_steps() -> None:
    document = json.loads((RESULTS / f"lds-{TIER.name}-steps-table.json").read_text())
    for kind in STEP_KINDS:
        behind = (TRAINING_LOSS, PUBLISHED, "pixels of x0_hat, cosine", "optimal denoiser at the latent")
        for other in (*behind, RANDOM, CONSTANT):
            assert document["rows"][other][kind]["behind"][1] > 0
    lines = step_table(document).splitlines()
    assert lines[-1].startswith(f"| {CEILING} |")
    assert len([line for line in lines if line.startswith(f"| {DEFAULT} |")]) == 1
    means = [document["rows"][line.split(" | ")[0][2:]][STEP_KINDS[1]]["mean"][0] for line in lines[2:-1]]
    assert means == sorted(means, reverse=True)
