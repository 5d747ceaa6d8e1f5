"""Counterfactuals: generations that are those of record, controls that are controls, and the interval swap."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from models import IMAGE, make_scheduler
from torch import Tensor, nn

import journey
from journey.denoiser import Denoiser
from journey.evaluate.counterfactual import RANDOM, RESEED, counterfactual, embedding_distance, generate
from journey.evaluate.detection import detect

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


def run(out: Path, **options: object) -> object:
    model = Denoiser(train(range(NUM_TRAIN), 0), SCHEDULER)
    scores = torch.zeros(NUM_QUERIES, NUM_TRAIN)
    scores[:, :2] = 1
    defaults: dict[str, object] = {"num_inference_steps": 10, "fingerprint": "shift", "progress": False}
    return counterfactual(model, train, {"right": scores, "wrong": -scores}, 2, out, **{**defaults, **options})  # type: ignore[arg-type]


def test_generations_are_those_of_record() -> None:
    model = Denoiser(Shift(0.2), SCHEDULER)
    recorded = journey.record(model, seed=4, num_images=3, num_inference_steps=10, progress=False)
    assert torch.equal(generate(model, [0, 2], seed=4, num_inference_steps=10), recorded.images[[0, 2]])


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


def test_detection_without_anything_planted_is_refused() -> None:
    with pytest.raises(ValueError, match="planted images and others"):
        detect(torch.zeros(1, 3), torch.zeros(1, 3, dtype=torch.bool), k=1)
