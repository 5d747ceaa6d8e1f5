"""Counterfactuals: generations that are those of record, controls that are controls, effects, and the interval swap."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from cases import assert_same_but_for_rounding
from diffusers import DDIMScheduler
from models import IMAGE, make_scheduler
from safetensors.torch import save_file
from torch import Tensor, nn

import journey
from journey.evaluate.counterfactual import Counterfactual, counterfactual, measure_effect
from journey.evaluate.detection import detect
from journey.evaluate.effects import (
    embedding_distance,
    generate,
    generation_change,
    loss_change,
    prediction_change,
    step_loss_change,
)
from journey.evaluate.removal import RANDOM, RESEED, Removals, remove
from journey.evaluate.responses import measure_responses
from journey.measure.draws import StratifiedDraws
from journey.models.denoiser import Denoiser
from journey.ops.noise import query_noise

SCHEDULER = DDIMScheduler.from_config(make_scheduler().config)
NUM_TRAIN, NUM_QUERIES = 60, 3


class Shift(nn.Module):
    """Predicts the latent times a number plus a number: what it generates follows from both."""

    def __init__(self, bias: float) -> None:
        super().__init__()
        self.config = type("Config", (), {"in_channels": 1, "sample_size": 8})()
        self.mix = nn.Conv2d(1, 1, 1)
        nn.init.constant_(self.mix.weight, 0.9)
        nn.init.constant_(self.mix.bias, bias)
        self.eval()

    def forward(self, x_t: Tensor, timesteps: Tensor) -> Tensor:
        return self.mix(x_t)


def train(indices: Sequence[int], seed: int) -> nn.Module:
    """Images 0 and 1 matter, the others hardly do; seeds matter less than those and more than the others."""
    gone = set(range(NUM_TRAIN)) - set(indices)
    return Shift(0.5 * len(gone & {0, 1}) + 0.01 * len(gone) + 0.05 * seed)


def run(out: Path, **options: object) -> Counterfactual:
    model = Denoiser(train(range(NUM_TRAIN), 0), SCHEDULER)
    scores = torch.zeros(NUM_QUERIES, NUM_TRAIN)
    scores[:, :2] = 1
    defaults: dict[str, object] = {"num_inference_steps": 10, "fingerprint": "shift", "progress": False}
    return counterfactual(model, train, {"right": scores, "wrong": -scores}, 2, out, **{**defaults, **options})  # type: ignore[arg-type]


def test_generations_are_those_of_record() -> None:
    model = Denoiser(Shift(0.2), SCHEDULER)
    recorded = journey.record(model, seed=4, num_images=3, num_inference_steps=10, progress=False)
    found = generate(model, [0, 2], seed=4, num_inference_steps=10)
    assert_same_but_for_rounding(found, recorded.images[[0, 2]])


def test_removing_what_matters_moves_generations_more_than_the_controls(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert set(result.moved) == {"right", "wrong", RANDOM, RESEED}
    assert result.excess("right").low > 0
    assert result.excess("right", RESEED).low > 0
    assert result.excess("wrong").high <= 0
    assert (result.moved[RESEED] > 0).all(), "the reseed control must use another seed"


def test_an_interval_that_no_step_lies_in_moves_nothing(tmp_path: Path) -> None:
    result = run(tmp_path, interval=(95, 91))
    assert all((moved == 0).all() for moved in result.moved.values())


def test_a_part_of_the_way_moves_less_than_all_of_it_and_something(tmp_path: Path) -> None:
    whole, part = run(tmp_path).moved["right"], run(tmp_path, interval=(50, 20)).moved["right"]
    assert (part > 0).all()
    assert (part < whole).all()


def removed_by(removals: Removals, trained: list[tuple[tuple[int, ...], int]], name: str) -> list[set[int]]:
    """What each query lacks in the first training of a method, from the order in which models were trained."""
    files = list(dict.fromkeys(file for runs in removals.weights.values() for some in runs for file in some))
    order = dict(zip(files, trained, strict=True))
    return [set(range(NUM_TRAIN)) - set(order[file][0]) for file in removals.weights[name][0]]


def test_each_query_lacks_its_own_proponents_and_the_controls_serve_all_queries(tmp_path: Path) -> None:
    trained: list[tuple[tuple[int, ...], int]] = []

    def remember(indices: Sequence[int], seed: int) -> nn.Module:
        trained.append((tuple(indices), seed))
        return train(indices, seed)

    scores = torch.zeros(2, NUM_TRAIN)
    scores[0, [7, 3]], scores[1, [5]] = 1, 1  # of the second query's equal scores that of image 0 goes next
    removals = remove(
        remember, {"a": scores}, 2, tmp_path, model_seed=1, num_controls=3, fingerprint="shift", progress=False
    )
    assert removed_by(removals, trained, "a") == [{3, 7}, {0, 5}]
    assert [len(removals.weights[name]) for name in ("a", RANDOM, RESEED)] == [1, 3, 3]
    for runs in (removals.weights[RANDOM], removals.weights[RESEED]):
        assert all(files[0] == files[1] for files in runs)
        assert len({files[0] for files in runs}) == 3
    assert all(len(lacking) == 2 for lacking in removed_by(removals, trained, RANDOM))
    assert {seed for indices, seed in trained if len(indices) == NUM_TRAIN} == {0, 2, 3}


def test_broken_scores_are_refused(tmp_path: Path) -> None:
    scores = {"a": torch.zeros(1, NUM_TRAIN), "b": torch.full((1, NUM_TRAIN), torch.nan)}
    with pytest.raises(ValueError, match="NaN entries: those of b"):
        remove(train, scores, 2, tmp_path, fingerprint="shift")


@pytest.fixture
def swapped(tmp_path: Path) -> Path:
    path = tmp_path / "other.safetensors"
    save_file(Shift(0.3).state_dict(), path)
    return path


def recorded(model: Denoiser) -> journey.Trajectory:
    return journey.record(model, num_images=3, num_inference_steps=10, progress=False)


def test_a_change_of_prediction_is_that_of_the_network_at_the_recorded_latent(swapped: Path) -> None:
    model, other = (Denoiser(Shift(bias), SCHEDULER) for bias in (0.1, 0.3))
    trajectory, times = recorded(model), torch.full((2,), 50)
    latents = trajectory.x_t[[2, 0], trajectory.timesteps.tolist().index(50)]
    with torch.no_grad():
        images = [m.schedule.x0_from(m.predict(latents, times), latents, times).clamp(-1, 1) for m in (model, other)]
    expected = (images[0] - images[1]).flatten(1).norm(dim=1)
    found = prediction_change(model, trajectory, 50)(swapped, [2, 0])
    assert (found > 0).all()
    assert torch.allclose(found, expected, rtol=1e-5)


def test_a_change_of_loss_is_the_difference_of_measured_losses(swapped: Path) -> None:
    model = Denoiser(Shift(0.1), SCHEDULER)
    draws, images = StratifiedDraws(4, bins=2), recorded(model).images
    losses = measure_responses(model, [None, swapped], images, draws=draws, progress=False).mean(-1)
    found = loss_change(model, images, draws=draws)(swapped, [2, 1])
    assert torch.allclose(found.float(), (losses[1] - losses[0])[[2, 1]], rtol=1e-4)


def test_a_change_of_loss_at_a_step_is_that_of_the_predicted_image_noised_to_it(swapped: Path) -> None:
    model, other = (Denoiser(Shift(bias), SCHEDULER) for bias in (0.1, 0.3))
    trajectory = recorded(model)
    x0 = trajectory.x0_hat[1, trajectory.timesteps.tolist().index(30)]
    noise = query_noise(0, [1], 30, 6, IMAGE, torch.device("cpu"))[0]
    alpha = SCHEDULER.alphas_cumprod[30]
    x_t = alpha.sqrt() * x0 + (1 - alpha).sqrt() * noise
    with torch.no_grad():
        losses = [(noise - m.network(x_t, torch.full((6,), 30))).square().mean() for m in (model, other)]
    found = step_loss_change(model, trajectory, 30, num_draws=6)(swapped, [1])
    assert torch.allclose(found, (losses[1] - losses[0]).unsqueeze(0), rtol=1e-4)


def test_the_model_itself_has_no_effect(tmp_path: Path) -> None:
    model = Denoiser(Shift(0.1), SCHEDULER)
    path, trajectory = tmp_path / "same.safetensors", recorded(model)
    save_file(model.network.state_dict(), path)
    effects = [
        generation_change(model, num_inference_steps=10),
        prediction_change(model, trajectory, 50),
        loss_change(model, trajectory.images, draws=StratifiedDraws(4)),
        step_loss_change(model, trajectory, 50),
    ]
    assert all((effect(path, [0, 1, 2]).abs() < 1e-5).all() for effect in effects)


def test_a_step_that_was_not_recorded_is_refused() -> None:
    model = Denoiser(Shift(0.1), SCHEDULER)
    for effect in (prediction_change, step_loss_change):
        with pytest.raises(ValueError, match="step must be among the recorded timesteps"):
            effect(model, recorded(model), 51)


def test_an_effect_that_is_no_number_is_refused(swapped: Path) -> None:
    with pytest.raises(ValueError, match="NaN for 'a'"):
        measure_effect(Removals({"a": [[swapped]]}), lambda weights, queries: torch.full((len(queries),), torch.nan))


def test_intervals_compare_the_same_queries_and_know_of_trainings() -> None:
    hard = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    result = Counterfactual({"a": hard + 1, "b": hard, "control": torch.tensor([[-1.0], [1.0]]) + hard})
    assert tuple(result.excess("a", "b")) == (1, 1, 1)
    assert result.mean("a").low < 2.5 < result.mean("a").high
    assert result.share("a", "b") == 1
    excess = result.excess("a", "control")
    assert (excess.value, excess.low, excess.high) == (1, 0, 2), "two trainings differ by 2 whatever the query"


def test_a_random_sampler_is_refused() -> None:
    with pytest.raises(TypeError, match="deterministic"):
        generate(Denoiser(Shift(0), make_scheduler()), [0], seed=0, num_inference_steps=5)


@pytest.mark.parametrize("num_removed", [0, NUM_TRAIN])
def test_impossible_removals_are_refused(tmp_path: Path, num_removed: int) -> None:
    scores = {"a": torch.zeros(1, NUM_TRAIN)}
    with pytest.raises(ValueError, match="num_removed"):
        counterfactual((Shift(0), SCHEDULER), train, scores, num_removed, tmp_path, fingerprint="shift")


def test_an_embedding_distance_is_one_minus_the_cosine() -> None:
    distance = embedding_distance(lambda images: images.flatten(1))
    a = torch.rand(2, *IMAGE) + 0.1
    assert torch.allclose(distance(a, 3 * a), torch.zeros(2), atol=1e-6)
    assert torch.allclose(distance(a, -a), torch.full((2,), 2.0), atol=1e-6)


def test_detection_counts_what_was_found() -> None:
    scores = torch.tensor([[0.9, 0.1, 0.8, 0.2], [0.1, 0.9, 0.2, 0.8]])
    planted = torch.tensor([[True, False, False, True], [False, True, False, True]])
    found = detect(scores, planted, k=2)
    # First query: one of two in the top two, and three of four pairs in order. Second: all.
    assert (found.precision, found.recall, found.auc) == (0.75, 0.75, (3 / 4 + 1) / 2)


def test_detection_of_equal_scores_is_chance_and_of_reversed_ones_none() -> None:
    planted = torch.tensor([[True, False, True, False, False]])
    assert detect(torch.zeros(1, 5), planted, k=1).auc == 0.5
    assert detect(-planted.float(), planted, k=1).auc == 0


def test_the_interval_of_detection_is_one_over_queries() -> None:
    scores = torch.tensor([[0.9, 0.1, 0.8], [0.1, 0.9, 0.8]])
    planted = torch.tensor([[True, False, False]] * 2)
    found = detect(scores, planted, k=1)
    assert found.aucs.tolist() == [1, 0]
    assert tuple(found.auc_interval()) == (0.5, 0, 1)
    assert tuple(detect(scores[:1], planted[:1], k=1).auc_interval()) == (1, 1, 1)


def test_detection_without_anything_planted_is_refused() -> None:
    with pytest.raises(ValueError, match="planted images and others"):
        detect(torch.zeros(1, 3), torch.zeros(1, 3, dtype=torch.bool), k=1)
