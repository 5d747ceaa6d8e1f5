"""Shared draws are shared by exactly those that they should be."""

from __future__ import annotations

import pytest
import torch

from journey.measure.draws import GridDraws, StratifiedDraws, UniformDraws
from journey.measure.shared_draws import CubicDraws, SharedDraws

CPU = torch.device("cpu")


def test_one_slot_gives_everybody_the_same_pairs() -> None:
    draws = SharedDraws(StratifiedDraws(4, bins=2))
    times, noise = draws.timesteps([0, 7, 30], 100), draws.noise([0, 7, 30], (1, 2, 2), CPU)
    assert times.shape == (3, 2, 4)
    assert (times == times[:1]).all()
    assert (noise == noise[:1]).all()
    assert torch.equal(noise[0], StratifiedDraws(4, bins=2).noise([0], (1, 2, 2), CPU)[0])


def test_slots_are_ids_modulo_their_number() -> None:
    draws, inner = SharedDraws(UniformDraws(2), slots=3), UniformDraws(2)
    noise, times = draws.noise([5, 2, 3], (1, 2, 2), CPU), draws.timesteps([5, 2, 3], 100)
    assert torch.equal(noise, inner.noise([2, 2, 0], (1, 2, 2), CPU))
    assert torch.equal(times, inner.timesteps([2, 2, 0], 100))


def test_one_noise_is_that_of_the_first_draw_at_all_timesteps() -> None:
    draws = SharedDraws(GridDraws(3, antithetic=False), one_noise=True)
    noise = draws.noise([4], (1, 2, 2), CPU)
    assert (noise == noise[:, :, :1]).all()
    assert draws.timesteps([4], 90).flatten().tolist() == [0, 30, 60]


def test_cubic_timesteps_lie_denser_towards_pure_noise() -> None:
    times = CubicDraws(4, antithetic=False).timesteps([0], 1000).flatten().tolist()
    assert times == [999, 984, 875, 578]  # 1000 (1 - (i / 4)^3), the first within the range


def test_slots_must_be_positive() -> None:
    with pytest.raises(ValueError, match="slots"):
        SharedDraws(UniformDraws(), slots=0)


def test_fingerprints_tell_configurations_apart() -> None:
    prints = [
        SharedDraws(UniformDraws(2)),
        SharedDraws(UniformDraws(2), 2),
        SharedDraws(UniformDraws(2), one_noise=True),
    ]
    assert len({str(draws.fingerprint()) for draws in prints}) == 3
