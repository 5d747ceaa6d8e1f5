"""Retrained models: each trained once, named by what they were trained on, the same in any process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from models import make_images, make_scheduler, make_unet
from safetensors.torch import load_file
from torch import nn

from journey.errors import StoreMismatchError
from journey.evaluate.responses import measure_responses
from journey.evaluate.retrain import Run, retrain
from journey.evaluate.training import RemovalTraining, UNetTraining
from journey.measure.batch import measure_values
from journey.measure.draws import StratifiedDraws
from journey.measure.measurements import TrainingLoss
from journey.models.denoiser import Denoiser

RUNS = [Run((0, 2, 3), 0), Run((0, 2, 3), 1), Run((1, 2, 4), 0)]


def training(steps: int = 2) -> UNetTraining:
    return UNetTraining((make_unet(), make_scheduler()), make_images(6), steps=steps, batch_size=4)


class Counting:
    """A train_fn that remembers its calls."""

    def __init__(self) -> None:
        self.calls: list[Run] = []

    def __call__(self, indices: Sequence[int], seed: int) -> nn.Module:
        self.calls.append(Run(tuple(indices), seed))
        layer = nn.Linear(1, 1)
        nn.init.constant_(layer.weight, sum(indices) + 100 * seed)
        return layer


def test_every_run_is_trained_once_and_paths_are_in_order(tmp_path: Path) -> None:
    train = Counting()
    paths = retrain(train, [*RUNS, RUNS[0]], tmp_path, fingerprint="counting", progress=False)
    assert train.calls == RUNS
    assert [load_file(path)["weight"].item() for path in paths] == [5, 105, 7, 5]
    again = Counting()
    assert retrain(again, RUNS, tmp_path, fingerprint="counting", progress=False) == paths[:3]
    assert again.calls == []


def test_an_interrupted_retraining_continues(tmp_path: Path) -> None:
    class Interrupted(Counting):
        def __call__(self, indices: Sequence[int], seed: int) -> nn.Module:
            if len(self.calls) == 2:
                raise KeyboardInterrupt
            return super().__call__(indices, seed)

    with pytest.raises(KeyboardInterrupt):
        retrain(Interrupted(), RUNS, tmp_path, fingerprint="counting", progress=False)
    rest = Counting()
    retrain(rest, RUNS, tmp_path, fingerprint="counting", progress=False)
    assert rest.calls == RUNS[2:]


def test_models_of_another_training_are_refused(tmp_path: Path) -> None:
    retrain(training(steps=1), RUNS[:1], tmp_path, progress=False)
    with pytest.raises(StoreMismatchError, match="other steps"):
        retrain(training(steps=2), RUNS[:1], tmp_path, progress=False)


def test_a_train_function_must_say_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fingerprint"):
        retrain(Counting(), RUNS, tmp_path, progress=False)


def test_other_processes_train_the_same_weights(tmp_path: Path) -> None:
    here = retrain(training(1), RUNS[:1], tmp_path / "here", progress=False)
    there = retrain(training(1), RUNS[:1], tmp_path / "there", processes=2, progress=False)
    assert here[0].read_bytes() == there[0].read_bytes()


def test_training_repeats_and_depends_on_images_and_seed() -> None:
    weights = [
        torch.cat([p.flatten() for p in training()(indices, seed).parameters()])
        for indices, seed in [((0, 1), 0), ((0, 1), 0), ((0, 2), 0), ((0, 1), 1)]
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[3])


def test_one_seed_gives_every_subset_the_same_initial_weights() -> None:
    first, second = training().build(3), training().build(3)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_removal_training_on_all_images_is_the_plain_one() -> None:
    removal = RemovalTraining((make_unet(), make_scheduler()), make_images(6), steps=3, batch_size=4)
    trained = [train(range(6), 2).parameters() for train in (removal, training(3))]
    assert all(torch.equal(a, b) for a, b in zip(*trained, strict=True))


def test_removal_training_exchanges_the_images_that_are_left_out_and_no_others() -> None:
    train = RemovalTraining((make_unet(), make_scheduler()), make_images(6), steps=1, batch_size=600)
    every, some = (train._batches(kept, 0)(torch.Generator().manual_seed(3)) for kept in (range(6), (0, 3, 5)))
    gone = sum(every == left_out for left_out in (1, 2, 4)).bool()
    assert torch.equal(every[~gone], some[~gone])
    assert set(some[gone].tolist()) == {0, 3, 5}


def test_snapshots_end_with_the_trained_model() -> None:
    early, late = training(3).snapshots((0, 1), 0, (1, 3))
    trained = training(3)((0, 1), 0)
    pairs = list(zip(early.parameters(), late.parameters(), trained.parameters(), strict=True))
    assert all(torch.equal(b, c) for _, b, c in pairs)
    assert not all(torch.equal(a, b) for a, b, _ in pairs)


def test_training_lowers_the_loss() -> None:
    images, draws = make_images(6), StratifiedDraws(8)
    scheduler = make_scheduler()
    train = UNetTraining((make_unet(), scheduler), images, steps=40, batch_size=8, warm_up=5)
    before, after = (
        measure_values(Denoiser(network, scheduler), images, draws=draws, measurement=TrainingLoss()).mean()
        for network in (train.build(0), train(range(6), 0))
    )
    assert after < 0.8 * before, "an untrained network predicts next to nothing of the noise: a loss near one"


@pytest.mark.parametrize("indices", [(), (6,), (-1,)])
def test_images_that_are_not_there_are_refused(indices: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="indices must name"):
        training()(indices, 0)


def test_responses_are_the_losses_of_each_model_at_the_same_draws(tmp_path: Path) -> None:
    train, queries, draws = training(1), make_images(3, seed=8), StratifiedDraws(2, bins=2)
    paths = retrain(train, RUNS[:2], tmp_path, progress=False)
    model = (make_unet(), make_scheduler())
    found = measure_responses(model, paths, queries, draws=draws, progress=False)
    assert found.shape == (2, 3, 2)
    for values, seed in zip(found, (0, 1), strict=True):
        network = train((0, 2, 3), seed)
        for q in range(3):
            times = draws.timesteps([q], 100)[0]
            noise = draws.noise([q], (1, 8, 8), torch.device("cpu"))[0]
            for b in range(2):
                x_t = model[1].add_noise(queries[q].expand(2, -1, -1, -1), noise[b], times[b])
                with torch.no_grad():
                    loss = (network(x_t, times[b]).sample - noise[b]).square().mean()
                # The same float32 network on other batch sizes.
                assert values[q, b].item() == pytest.approx(loss.item(), rel=1e-5)
