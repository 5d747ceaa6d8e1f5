"""The demo's data, model and training."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DModel
from torch import nn

from journey.demo.digits import DigitsDataset, build_unet, knn_labels, load_digits_dataset, train

sklearn_datasets = pytest.importorskip("sklearn.datasets")


@pytest.fixture(autouse=True)
def one_thread(threads: Callable[[int], None]) -> None:
    """Train on one thread: faster than two on layers as small as these, and far faster on a busy machine."""
    threads(1)


@pytest.fixture(scope="module")
def digits() -> DigitsDataset:
    return load_digits_dataset(16)


@pytest.fixture(scope="module")
def small_digits() -> DigitsDataset:
    return load_digits_dataset(8)


def _weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def _loss(model: nn.Module, scheduler: Any, dataset: DigitsDataset) -> float:
    generator = torch.Generator().manual_seed(5)
    images = dataset.images[:128]
    timesteps = torch.arange(128) * 1000 // 128
    noise = torch.randn(images.shape, generator=generator)
    target = scheduler.get_velocity(images, noise, timesteps)
    with torch.no_grad():
        return F.mse_loss(model(scheduler.add_noise(images, noise, timesteps), timesteps).sample, target).item()


def test_all_1797_digits_are_there_in_range_with_their_labels(digits: DigitsDataset) -> None:
    assert len(digits) == 1797
    assert digits.images.shape == (1797, 1, 16, 16)
    assert digits.images.dtype == torch.float32
    assert digits.images.min() == -1
    assert digits.images.max() == 1
    item = digits[4]
    assert set(item) == {"image", "label"}
    assert torch.equal(item["image"], digits.images[4])
    assert [digits[i]["label"] for i in range(10)] == list(range(10))  # scikit-learn's first ten are 0..9


def test_enlarging_is_bilinear(digits: DigitsDataset) -> None:
    # A pixel doubled by bilinear interpolation is 3/4 of itself and 1/4 of the nearer neighbour, the edge repeated.
    small = sklearn_datasets.load_digits().images[7] / 8 - 1  # [8, 8]
    padded = np.pad(small, 1, mode="edge")
    rows = np.empty((16, 10))
    rows[0::2], rows[1::2] = 0.75 * padded[1:-1] + 0.25 * padded[:-2], 0.75 * padded[1:-1] + 0.25 * padded[2:]
    expected = np.empty((16, 16))
    expected[:, 0::2] = 0.75 * rows[:, 1:-1] + 0.25 * rows[:, :-2]
    expected[:, 1::2] = 0.75 * rows[:, 1:-1] + 0.25 * rows[:, 2:]
    # Ink levels are multiples of 1/8 and the weights of 1/16: float32 holds every product exactly.
    assert np.array_equal(digits.images[7, 0].numpy(), expected)


def test_a_missing_scikit_learn_names_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "journey\[demo\]"'):
        load_digits_dataset()


@pytest.mark.parametrize("size", [0, -4, 10])
def test_an_impossible_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"size must be a positive multiple of 4, got {size}"):
        load_digits_dataset(size)


def test_the_model_has_160_thousand_parameters_that_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = build_unet(seed=3)
    torch.manual_seed(2)
    second = build_unet(seed=3)
    assert 155_000 <= sum(parameter.numel() for parameter in first.parameters()) <= 165_000
    assert torch.equal(_weights(first), _weights(second))
    assert not torch.equal(_weights(first), _weights(build_unet(seed=4)))


def test_training_repeats_bitwise_and_leaves_the_global_random_state_alone(small_digits: DigitsDataset) -> None:
    torch.manual_seed(11)
    state = torch.get_rng_state()
    first, scheduler = train(small_digits, steps=3, batch_size=8, seed=7, progress=False)
    assert torch.equal(torch.get_rng_state(), state), "training drew from the global generator"
    torch.manual_seed(12)
    second, _ = train(small_digits, steps=3, batch_size=8, seed=7, progress=False)
    other, _ = train(small_digits, steps=3, batch_size=8, seed=8, progress=False)
    assert torch.equal(_weights(first), _weights(second))
    assert not torch.equal(_weights(first), _weights(other))
    assert not first.training
    assert isinstance(first, UNet2DModel)
    assert isinstance(scheduler, DDPMScheduler)


def test_training_learns(small_digits: DigitsDataset) -> None:
    model, scheduler = train(small_digits, steps=40, batch_size=32, progress=False)
    before = _loss(build_unet(8).eval(), scheduler, small_digits)
    after = _loss(model, scheduler, small_digits)
    # An untrained model scores about the mean square of the targets. Forty steps take nearly half of that away; a model
    # that learned a wrong target would stay at it or pass it.
    assert after < 0.75 * before, f"loss {before:.3f} -> {after:.3f}: a wrong sign or target would not fall"


def test_the_progress_bar_shows_the_loss(small_digits: DigitsDataset, capsys: pytest.CaptureFixture[str]) -> None:
    train(small_digits, steps=1, batch_size=2, progress=True)
    assert "loss=" in capsys.readouterr().err
    train(small_digits, steps=1, batch_size=2, progress=False)
    assert capsys.readouterr().err == ""


def test_training_refuses_what_it_cannot_do(small_digits: DigitsDataset) -> None:
    empty = DigitsDataset(small_digits.images[:0], small_digits.labels[:0])
    with pytest.raises(ValueError, match="dataset is empty"):
        train(empty, progress=False)
    with pytest.raises(ValueError, match="steps must be positive, got 0"):
        train(small_digits, steps=0, progress=False)
    with pytest.raises(ValueError, match="batch_size must be positive, got -1"):
        train(small_digits, batch_size=-1, progress=False)
    with pytest.raises(ValueError, match="learning_rate must be positive, got 0"):
        train(small_digits, learning_rate=0, progress=False)


def test_neighbours_name_noisy_digits(digits: DigitsDataset) -> None:
    noise = 0.1 * torch.randn(digits.images[:300].shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(knn_labels(digits.images[:300] + noise, digits, k=1), digits.labels[:300])
    # Five votes, four of them from other images: 98 to 99 % is what k-nearest-neighbours reaches on these digits.
    assert (knn_labels(digits.images[:300] + noise, digits) == digits.labels[:300]).float().mean() > 0.95


def test_the_majority_wins_and_a_tie_goes_to_the_nearest() -> None:
    levels = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5])  # distance from black, the image that is asked about
    images = levels[:, None, None, None].expand(5, 1, 4, 4)
    black = torch.zeros(1, 1, 4, 4)
    majority = DigitsDataset(images, torch.tensor([7, 3, 7, 3, 3]))
    assert knn_labels(black, majority, k=5).item() == 3
    assert knn_labels(black, majority, k=4).item() == 7, "two votes each: the nearest neighbour is a 7"
    tie = DigitsDataset(images, torch.tensor([1, 9, 9, 2, 2]))
    assert knn_labels(black, tie, k=5).item() == 9, "9 and 2 have two votes each and 9 is nearer"


def test_neighbour_labels_refuse_other_shapes_and_counts(digits: DigitsDataset) -> None:
    with pytest.raises(ValueError, match=r"images must be \[num_images, 1, 16, 16\], got \[2, 1, 8, 8\]"):
        knn_labels(torch.zeros(2, 1, 8, 8), digits)
    with pytest.raises(ValueError, match=r"k must be in 1\.\.1797"):
        knn_labels(digits.images[:1], digits, k=0)
