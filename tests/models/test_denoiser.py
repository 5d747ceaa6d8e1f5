"""The denoiser speaks diffusers' language: same noising, same targets, and clear words about what it does not take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from cases import assert_same_but_for_rounding, randn
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline
from models import LinearDenoiser, SmallDenoiser, make_images, make_scheduler, make_unet
from torch import Tensor

from journey.models.denoiser import Denoiser
from journey.models.load import as_denoiser
from journey.models.schedules import PREDICTION_TYPES

TIMESTEPS = torch.tensor([0, 1, 37, 98, 99])


def training_target(scheduler: Any, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What diffusers' training scripts compare the prediction with."""
    if scheduler.config.prediction_type == "epsilon":
        return noise
    if scheduler.config.prediction_type == "v_prediction":
        return scheduler.get_velocity(x0, noise, timesteps)
    return x0


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_targets_are_those_of_the_training_scripts(prediction_type: str) -> None:
    scheduler = make_scheduler(prediction_type)
    x0, noise = make_images(5), randn(5, 1, 8, 8)
    found = Denoiser(SmallDenoiser(), scheduler).target(x0, noise, TIMESTEPS)
    torch.testing.assert_close(found, training_target(scheduler, x0, noise, TIMESTEPS), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
def test_noising_is_that_of_the_scheduler(schedule: str) -> None:
    scheduler = make_scheduler(beta_schedule=schedule)
    denoiser = Denoiser(SmallDenoiser(), scheduler)
    x0, noise = make_images(5), randn(5, 1, 8, 8)
    expected = scheduler.add_noise(x0, noise, TIMESTEPS)
    torch.testing.assert_close(denoiser.add_noise(x0, noise, TIMESTEPS), expected, rtol=1e-5, atol=1e-6)


def test_the_prediction_is_the_networks_in_float32_whatever_it_returns() -> None:
    x_t, unet = make_images(5), make_unet()
    found = Denoiser(unet, make_scheduler()).predict(x_t, TIMESTEPS)
    assert_same_but_for_rounding(found, unet(x_t, TIMESTEPS).sample)
    small = SmallDenoiser().to(torch.bfloat16)
    found = Denoiser(small, make_scheduler()).predict(x_t, TIMESTEPS)
    assert found.dtype == torch.float32
    assert_same_but_for_rounding(found, small(x_t.bfloat16(), TIMESTEPS).float(), 0.01)  # of 8 bits


def test_the_denoiser_knows_the_images_and_the_schedule_of_its_network() -> None:
    denoiser = Denoiser(make_unet(sample_size=(8, 16), in_channels=3, out_channels=3), make_scheduler())
    assert (denoiser.in_channels, denoiser.sample_size, denoiser.num_train_timesteps) == (3, (8, 16), 100)
    assert Denoiser(SmallDenoiser(), make_scheduler()).sample_size == (8, 8)
    bare = LinearDenoiser()
    del bare.config
    assert (Denoiser(bare, make_scheduler()).in_channels, Denoiser(bare, make_scheduler()).sample_size) == (None, None)


@pytest.mark.parametrize("form", ["pair", "denoiser", "DDPM pipeline", "DDIM pipeline", "path", "path in words"])
def test_a_model_may_come_in_any_documented_form(tmp_path: Path, form: str) -> None:
    unet, scheduler = make_unet(), make_scheduler("v_prediction")
    if form == "pair":
        model: Any = (unet, scheduler)
    elif form == "denoiser":
        model = Denoiser(unet, scheduler)
    elif form == "DDPM pipeline":
        model = DDPMPipeline(unet, scheduler)
    elif form == "DDIM pipeline":
        model = DDIMPipeline(unet, DDIMScheduler.from_config(scheduler.config))
    else:
        DDPMPipeline(unet, scheduler).save_pretrained(tmp_path)
        model = tmp_path if form == "path" else str(tmp_path)
    denoiser = as_denoiser(model)
    x_t = make_images(5)
    assert_same_but_for_rounding(denoiser.predict(x_t, TIMESTEPS), unet(x_t, TIMESTEPS).sample)
    assert denoiser.prediction_type == "v_prediction"


@pytest.mark.parametrize("model", [SmallDenoiser(), 3, (SmallDenoiser(), make_scheduler(), 1), None])
def test_other_forms_are_refused(model: Any) -> None:
    with pytest.raises(TypeError, match=rf"model must be a diffusers pipeline, .* got {type(model).__name__}"):
        as_denoiser(model)


def test_a_network_in_train_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model must be in eval mode, got train mode; call model\.eval\(\)"):
        Denoiser(SmallDenoiser().train(), make_scheduler())


def test_an_unknown_prediction_type_is_refused() -> None:
    message = "prediction_type of the scheduler must be one of epsilon, sample, v_prediction, got 'score'"
    with pytest.raises(ValueError, match=message):
        Denoiser(SmallDenoiser(), make_scheduler("score"))


def test_a_scheduler_without_a_known_schedule_is_refused() -> None:
    with pytest.raises(TypeError, match=r"with alphas_cumprod .* or one of EDM, got AmusedScheduler"):
        Denoiser(SmallDenoiser(), diffusers.AmusedScheduler(mask_token_id=1))


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("ScoreSdeVeScheduler", "its network predicts a score, which is covered where it is told nothing else"),
        ("KarrasVeScheduler", "its sampler corrects each step, .* EDMEulerScheduler is the one of EDM"),
        ("CMStochasticIterativeScheduler", "consistency models are trained by another loss"),
        ("FlowMatchHeunDiscreteScheduler", "give the FlowMatchEulerDiscreteScheduler of the same shift"),
    ],
)
def test_a_schedule_of_another_kind_is_refused_with_the_reason(kind: str, why: str) -> None:
    with pytest.raises(TypeError, match=f"scheduler must be one that .*, got {kind}: {why}"):
        Denoiser(SmallDenoiser(), getattr(diffusers, kind)())


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(8, 8), r"dataset\[7\] must be an image \[C, H, W\], got \[8, 8\]"),
        (torch.zeros(3, 8, 8), r"dataset\[7\] must have 1 channels, as the model takes, got \[3, 8, 8\]"),
        (torch.zeros(1, 8, 16), r"dataset\[7\] must be \(8, 8\) pixels, as the model takes, got \(8, 16\)"),
        (torch.full((1, 8, 8), float("nan")), r"dataset\[7\] has NaN or infinite pixels"),
        (torch.full((1, 8, 8), float("-inf")), r"dataset\[7\] has NaN or infinite pixels"),
    ],
)
def test_an_image_that_does_not_fit_is_refused(image: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Denoiser(SmallDenoiser(), make_scheduler()).check_image(image, "dataset[7]")


def test_the_mixed_precision_that_accelerate_leaves_on_a_network_is_taken_off_a_copy() -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    network = make_unet()
    wrapped = accelerator.unwrap_model(accelerator.prepare(network), keep_fp32_wrapper=True).eval()
    assert "forward" in vars(wrapped), "accelerate no longer leaves its wrapper on"
    denoiser = Denoiser(wrapped, make_scheduler())
    x_t, times = make_images(2), torch.tensor([10, 90])
    plain = Denoiser(make_unet(), make_scheduler())
    assert torch.equal(denoiser.predict(x_t, times), plain.predict(x_t, times))
    assert "forward" in vars(wrapped), "the caller's network was changed"
    assert all(a is b for a, b in zip(denoiser.network.parameters(), wrapped.parameters(), strict=True))
