"""Schedules agree with diffusers' own tables: noise levels, network times, and the way back from a prediction."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import randn
from diffusers import (
    CosineDPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from models import make_images, make_scheduler

from journey.models.schedulers import FlowMatching, as_schedule
from journey.models.schedules import PREDICTION_TYPES

TIMESTEPS = torch.tensor([0, 1, 37, 98, 99])
SCHEDULERS: dict[str, Any] = {
    **{kind: lambda kind=kind: make_scheduler(kind) for kind in PREDICTION_TYPES},
    "flow": lambda: FlowMatchEulerDiscreteScheduler(num_train_timesteps=100),
    "shifted flow": lambda: FlowMatchEulerDiscreteScheduler(num_train_timesteps=100, shift=3.0),
    "continuous": lambda: EulerDiscreteScheduler(
        num_train_timesteps=100, beta_end=0.2, prediction_type="v_prediction", timestep_type="continuous"
    ),
    "EDM": lambda: EDMEulerScheduler(num_train_timesteps=100),
    "EDM of v": lambda: EDMDPMSolverMultistepScheduler(
        num_train_timesteps=100, prediction_type="v_prediction", sigma_data=1.0, sigma_schedule="exponential"
    ),
    "EDM of angles": lambda: CosineDPMSolverMultistepScheduler(num_train_timesteps=100, sigma_data=1.0),
    "dynamic flow": lambda: FlowMatchEulerDiscreteScheduler(
        num_train_timesteps=100, shift=3.0, use_dynamic_shifting=True
    ),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_perfect_prediction_leads_back_to_the_image(name: str) -> None:
    schedule = as_schedule(SCHEDULERS[name]())
    x0, noise = make_images(5), randn(5, 1, 8, 8)
    x_t = schedule.add_noise(x0, noise, TIMESTEPS)
    found = schedule.x0_from(schedule.target(x0, noise, TIMESTEPS), x_t, TIMESTEPS)
    torch.testing.assert_close(found, x0, rtol=1e-3, atol=1e-3)  # the last timestep is nearly noise


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_default_dtype_does_not_round_a_schedule(name: str) -> None:
    scheduler = SCHEDULERS[name]()
    expected = as_schedule(scheduler).signal_and_sigma(TIMESTEPS)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        if name.startswith("EDM"):
            with pytest.raises(ValueError, match="torch's default dtype must be float32 or float64"):
                as_schedule(scheduler)
            return
        found = as_schedule(scheduler).signal_and_sigma(TIMESTEPS)
    finally:
        torch.set_default_dtype(before)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", [name for name in SCHEDULERS if "flow" in name])
def test_flow_matching_noises_as_the_scheduler_and_tells_its_times(name: str) -> None:
    scheduler, schedule = SCHEDULERS[name](), as_schedule(SCHEDULERS[name]())
    x0, noise = make_images(5), randn(5, 1, 8, 8)
    times = schedule.network_time(TIMESTEPS)
    assert torch.equal(times, scheduler.timesteps.flip(0)[TIMESTEPS])
    expected = scheduler.scale_noise(x0, times, noise)
    torch.testing.assert_close(schedule.add_noise(x0, noise, TIMESTEPS), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(schedule.target(x0, noise, TIMESTEPS), noise - x0)
    assert schedule.prediction_type == "velocity"


def test_flow_matching_noise_ascends_to_pure_noise() -> None:
    sigma = as_schedule(SCHEDULERS["shifted flow"]()).signal_and_sigma(torch.arange(100))[1].flatten()
    assert (sigma.diff() > 0).all()
    assert sigma[-1] == 1
    torch.testing.assert_close(sigma[49].item(), 3 * 0.5 / (1 + 2 * 0.5))


def test_a_scheduler_that_was_used_for_sampling_keeps_its_training_schedule() -> None:
    scheduler = SCHEDULERS["shifted flow"]()
    fresh = as_schedule(scheduler)
    scheduler.set_timesteps(4)
    assert as_schedule(scheduler).fingerprint() == fresh.fingerprint()
    assert as_schedule(scheduler).num_train_timesteps == 100


def test_different_schedules_have_different_fingerprints() -> None:
    found = {as_schedule(SCHEDULERS[name]()).fingerprint() for name in ("epsilon", "flow", "shifted flow")}
    assert len(found) == 3


def test_times_between_timesteps_belong_to_the_nearest() -> None:
    flow = as_schedule(SCHEDULERS["flow"]())
    assert flow.nearest(torch.tensor([100.0, 50.4, 50.6, 0.2])) == [99, 49, 50, 0]
    scheduler = EulerDiscreteScheduler(num_train_timesteps=100)
    assert as_schedule(scheduler).nearest(torch.tensor([98.6, 0.4])) == [99, 0]


@pytest.mark.parametrize("name", ["EDM", "EDM of v", "EDM of angles"])
def test_edm_is_what_its_scheduler_makes_of_images_times_and_answers(name: str) -> None:
    scheduler, schedule = SCHEDULERS[name](), as_schedule(SCHEDULERS[name]())
    scheduler.set_timesteps(7)
    assert as_schedule(scheduler).fingerprint() == schedule.fingerprint(), "a used scheduler has another table"
    x0, noise, answer = make_images(5), randn(5, 1, 8, 8), randn(5, 1, 8, 8, seed=3)
    scheduler = SCHEDULERS[name]()
    ratios = scheduler.sigmas[99 - TIMESTEPS].view(-1, 1, 1, 1)
    assert (schedule.signal_and_sigma(torch.arange(100))[1].flatten().diff() > 0).all()
    torch.testing.assert_close(schedule.network_time(TIMESTEPS), scheduler.timesteps[99 - TIMESTEPS])
    noisy = x0 + ratios * noise
    x_t = schedule.add_noise(x0, noise, TIMESTEPS)
    torch.testing.assert_close(x_t, scheduler.precondition_inputs(noisy, ratios))
    expected = scheduler.precondition_outputs(noisy, answer, ratios)
    torch.testing.assert_close(schedule.x0_from(answer, x_t, TIMESTEPS), expected)
    perfect = scheduler.precondition_outputs(noisy, schedule.target(x0, noise, TIMESTEPS), ratios)
    torch.testing.assert_close(perfect, x0, rtol=1e-4, atol=1e-4)
    scheduler.set_timesteps(7)
    levels = torch.tensor([schedule.level(scheduler, i) for i in range(7)])
    torch.testing.assert_close(levels[:, 1] / levels[:, 0], scheduler.sigmas[:7])


def test_the_two_edm_schedules_and_their_predictions_are_told_apart() -> None:
    kinds = [EDMEulerScheduler(), EDMEulerScheduler(sigma_data=1.0), EDMDPMSolverMultistepScheduler()]
    assert len({as_schedule(kind).fingerprint() for kind in kinds}) == 3
    assert as_schedule(EDMEulerScheduler(prediction_type="v_prediction")).prediction_type == "edm_v_prediction"
    with pytest.raises(ValueError, match="prediction_type of an EDM scheduler must be epsilon or v_prediction, got 's"):
        as_schedule(EDMDPMSolverMultistepScheduler(prediction_type="sample"))


def test_inverted_sigmas_are_refused() -> None:
    with pytest.raises(ValueError, match=r"sigma = 1 for pure noise, got one with invert_sigmas"):
        FlowMatching(FlowMatchEulerDiscreteScheduler(invert_sigmas=True))


def test_a_network_of_continuous_time_is_told_what_its_scheduler_tells() -> None:
    scheduler = SCHEDULERS["continuous"]()
    schedule = as_schedule(scheduler)
    scheduler.set_timesteps(100)  # with as many steps as timesteps, its table is that of training
    torch.testing.assert_close(schedule.network_time(torch.arange(100)), scheduler.timesteps.flip(0))
    assert schedule.nearest(scheduler.timesteps) == list(range(99, -1, -1))
    discrete = as_schedule(EulerDiscreteScheduler.from_config(scheduler.config, timestep_type="discrete"))
    assert schedule.fingerprint() != discrete.fingerprint()
    assert torch.equal(discrete.network_time(TIMESTEPS), TIMESTEPS)
    other = EulerDiscreteScheduler.from_config(scheduler.config, prediction_type="epsilon")
    assert torch.equal(as_schedule(other).network_time(TIMESTEPS), TIMESTEPS), (
        "diffusers tells only v its continuous time"
    )
