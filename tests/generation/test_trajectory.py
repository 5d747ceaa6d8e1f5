"""A recorded trajectory is what the diffusers scheduler does, image by image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import randn
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
)
from models import LinearDenoiser, SmallDenoiser, make_scheduler, make_unet
from safetensors.torch import save_file
from torch import Tensor

from journey.files.tensors import write_tensors
from journey.generation.completions import Completer
from journey.generation.noised import noised_trajectory
from journey.generation.record import record
from journey.generation.trajectory import Trajectory
from journey.models.denoiser import Denoiser
from journey.models.schedulers import as_schedule
from journey.ops.keys import derive_key
from journey.ops.noise import query_noise

SCHEDULERS = {
    "DDPM": lambda: make_scheduler(),
    "DDPM, not clipped": lambda: make_scheduler(clip_sample=False),
    "DDPM, v": lambda: make_scheduler("v_prediction"),
    "DDIM": lambda: DDIMScheduler.from_config(make_scheduler().config),
    "DDIM, sample": lambda: DDIMScheduler.from_config(make_scheduler("sample").config),
}


def quietly(model: Any, **options: Any) -> Trajectory:
    return record(model, progress=False, **{"num_inference_steps": 5, **options})


@torch.no_grad()
def plain_loop(network: torch.nn.Module, scheduler: Any, start: Tensor, seed: int) -> list[Tensor]:
    """Sample as a pipeline does; return x_t and x0_hat of every step, and the last x."""
    scheduler.set_timesteps(5)
    generators = [torch.Generator().manual_seed(derive_key(seed, "sampler", i)) for i in range(len(start))]
    x, x_t, x0_hat = start, [], []
    for t in scheduler.timesteps:
        output = network(x, t.expand(len(x)))
        step = scheduler.step(output, t, x, generator=generators)
        x_t.append(x)
        x0_hat.append(step.pred_original_sample)
        x = step.prev_sample
    return [torch.stack(x_t, 1), torch.stack(x0_hat, 1), x]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_record_does_what_a_plain_loop_over_the_scheduler_does(name: str) -> None:
    network, scheduler = SmallDenoiser(), SCHEDULERS[name]()
    found = quietly((network, scheduler), seed=3, num_images=2)
    assert found.timesteps.tolist() == [80, 60, 40, 20, 0]
    x_t, x0_hat, last = plain_loop(network, scheduler, found.x_t[:, 0], seed=3)
    torch.testing.assert_close(found.x_t, x_t, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.x0_hat, x0_hat, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.images, last.clamp(-1, 1), rtol=1e-5, atol=1e-5)
    assert not torch.equal(found.x0_hat[:, 0], found.x0_hat[:, -1])


def test_a_pipeline_is_recorded_like_its_parts_and_keeps_its_scheduler() -> None:
    unet, scheduler = make_unet(), make_scheduler()
    before = scheduler.timesteps.clone()
    pipeline = DDPMPipeline(unet, scheduler)
    found, parts = quietly(pipeline), quietly((unet, scheduler))
    assert torch.equal(found.images, parts.images)
    assert torch.equal(pipeline.scheduler.timesteps, before), "the caller's scheduler was changed"


def test_the_start_is_standard_normal_noise_of_the_sampler() -> None:
    start = quietly((SmallDenoiser(), make_scheduler()), num_images=200, num_inference_steps=1).x_t
    numbers = start.double().flatten()
    # Five standard errors of mean and variance over 12,800 numbers.
    assert abs(numbers.mean().item()) < 5 / len(numbers) ** 0.5
    assert abs(numbers.square().mean().item() - 1) < 5 * (2 / len(numbers)) ** 0.5
    assert numbers.unique().numel() > 0.99 * len(numbers)


@pytest.mark.parametrize("name", ["DDPM", "DDIM"])
def test_an_image_does_not_depend_on_how_many_are_made(name: str) -> None:
    model = (SmallDenoiser(), SCHEDULERS[name]())
    alone, among = quietly(model, seed=5, num_images=1), quietly(model, seed=5, num_images=4)
    assert torch.equal(alone.x_t[:, 0], among.x_t[:1, 0])
    torch.testing.assert_close(alone.x_t, among.x_t[:1], rtol=1e-4, atol=1e-4)  # rounding of another batch size
    assert (among.images[0] - among.images[1]).abs().max() > 0.01
    assert (quietly(model, seed=6).images - alone.images).abs().max() > 0.01


def test_the_same_seed_gives_the_same_bits() -> None:
    model = (SmallDenoiser(), make_scheduler())
    torch.manual_seed(1)
    first = quietly(model, seed=5, num_images=2)
    torch.manual_seed(2)
    assert torch.equal(quietly(model, seed=5, num_images=2).images, first.images)


def test_chosen_steps_are_those_of_the_whole_trajectory() -> None:
    model = (SmallDenoiser(), make_scheduler())
    whole, some = quietly(model, num_images=2), quietly(model, num_images=2, steps=[20, 80])
    assert some.timesteps.tolist() == [80, 20], "steps are in the order of sampling"
    assert torch.equal(some.x_t, whole.x_t[:, [0, 3]])
    assert torch.equal(some.x0_hat, whole.x0_hat[:, [0, 3]])
    assert torch.equal(some.images, whole.images)
    assert (some.num_queries, some.x_t.shape) == (2, (2, 2, 1, 8, 8))


def test_save_and_load_give_the_same_trajectory(tmp_path: Path) -> None:
    saved = quietly((SmallDenoiser(), make_scheduler()), num_images=2)
    saved.save(tmp_path / "trajectory.safetensors")
    found = Trajectory.load(tmp_path / "trajectory.safetensors")
    for name in ("timesteps", "x_t", "x0_hat", "images"):
        assert torch.equal(getattr(found, name), getattr(saved, name))
        assert getattr(found, name).dtype == getattr(saved, name).dtype


def test_a_file_that_is_no_trajectory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"x_t": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="holds no saved trajectory"):
        Trajectory.load(path)


@pytest.mark.parametrize("name", ["x_t", "x0_hat"])
def test_tensors_that_do_not_belong_together_are_refused(name: str) -> None:
    fields = {"x_t": torch.zeros(2, 3, 1, 8, 8), "x0_hat": torch.zeros(2, 3, 1, 8, 8)}
    fields[name] = torch.zeros(3, 2, 1, 8, 8)
    with pytest.raises(
        ValueError, match=rf"{name} must be \[num_queries, num_steps, C, ...\] = \[2, 3, 1, 8, 8\], got \[3, 2"
    ):
        Trajectory(timesteps=torch.arange(3), images=torch.zeros(2, 1, 8, 8), **fields)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": [80, 41]}, r"steps must be among the sampler's timesteps \[80, 60, 40, 20, 0\], got \[41\]"),
        ({"steps": []}, r"steps must be among the sampler's timesteps .* got none"),
        ({"num_images": 0}, "num_images must be positive, got 0"),
        ({"num_inference_steps": 0}, "num_inference_steps must be positive, got 0"),
    ],
)
def test_an_argument_out_of_range_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quietly((SmallDenoiser(), make_scheduler()), **options)


def test_steps_that_a_sampler_cannot_make_are_refused() -> None:
    with pytest.raises(ValueError, match=r"PNDMScheduler cannot make num_inference_steps=3: "):
        quietly((SmallDenoiser(), PNDMScheduler(num_train_timesteps=100)), num_inference_steps=3)


@pytest.mark.parametrize("size", [8, "8", (8.0, 8.0), (0, 8), (), None.__class__])
def test_a_size_that_is_no_tuple_of_numbers_is_refused(size: Any) -> None:
    with pytest.raises(
        TypeError, match=r"size must be a tuple of positive integers, \(height, width\) of an image, .* got"
    ):
        quietly((SmallDenoiser(), make_scheduler()), size=size)


def test_a_size_that_a_network_cannot_halve_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"size must be a height and width that 2 divides, as the model takes, got \(9, 8"
    ):
        quietly((make_unet(), make_scheduler()), size=(9, 8))
    assert quietly((make_unet(), make_scheduler()), size=(10, 8)).x_t.shape[-2:] == (10, 8)


def test_a_model_that_does_not_tell_the_size_of_its_images_is_refused() -> None:
    network = LinearDenoiser()
    del network.config
    with pytest.raises(
        TypeError, match="model must tell in_channels and sample_size in its config, LinearDenoiser does not"
    ):
        quietly((network, make_scheduler()))


def test_a_file_of_an_older_version_is_refused(tmp_path: Path) -> None:
    write_tensors(tmp_path / "old", "trajectory", {"timesteps": torch.arange(3)})
    with pytest.raises(ValueError, match="of another version: it lacks x_t, x0_hat, images, settings of trajectory"):
        Trajectory.load(tmp_path / "old")


@pytest.mark.parametrize("scheduler", [make_scheduler(), FlowMatchEulerDiscreteScheduler(num_train_timesteps=100)])
def test_a_trajectory_keeps_its_schedule_and_the_noise_of_its_steps(scheduler: Any, tmp_path: Path) -> None:
    saved = quietly((SmallDenoiser(), scheduler))
    saved.save(tmp_path / "trajectory.safetensors")
    found = Trajectory.load(tmp_path / "trajectory.safetensors")
    schedule = as_schedule(scheduler)
    assert found.schedule == schedule.fingerprint()
    signal, sigma = schedule.signal_and_sigma(found.timesteps)
    assert found.levels is not None
    assert torch.equal(found.levels, torch.stack([signal.flatten(), sigma.flatten()], 1))


def test_a_file_of_before_schedules_were_kept_is_refused(tmp_path: Path) -> None:
    tensors = {name: torch.zeros(1, 1, 1, 8, 8) for name in ("x_t", "x0_hat")}
    settings = b'{"guidance_scale": 1.0, "num_inference_steps": 1, "prompts": []}'
    tensors |= {"timesteps": torch.zeros(1, dtype=torch.int64), "images": torch.zeros(1, 1, 8, 8)}
    tensors["settings"] = torch.frombuffer(bytearray(settings), dtype=torch.uint8)
    write_tensors(tmp_path / "old.safetensors", "trajectory", tensors)
    with pytest.raises(ValueError, match="it lacks schedule; record it again"):
        Trajectory.load(tmp_path / "old.safetensors")


def flow(shift: float = 1.0, num: int = 100) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=num, shift=shift)


@pytest.mark.parametrize(
    ("recorded", "used", "message"),
    [
        (
            flow(3.0),
            flow(1.0),
            r"timestep \d+ means .* of the noise where it was recorded, and .* here; trajectory\.on",
        ),
        (make_scheduler(), make_scheduler(beta_end=0.02), "timestep 80 means 0.0.* of the image and .* of the noise"),
        (flow(1.0), make_scheduler(), "got one of another: timestep"),
        (flow(), flow(num=1000), "got one of another: timestep"),
        (flow(num=1000), flow(), r"which has 100 timesteps, got timestep 999; trajectory\.on"),
    ],
)
def test_a_model_of_another_schedule_cannot_go_on_with_a_trajectory(recorded: Any, used: Any, message: str) -> None:
    network = SmallDenoiser()
    trajectory = quietly((network, recorded))
    with pytest.raises(ValueError, match=message):
        trajectory.sampler((network, used))
    with pytest.raises(ValueError, match=message):
        Completer(Denoiser(network, used), trajectory, seed=0)


def test_schedules_whose_steps_mean_the_same_noise_are_one() -> None:
    network, trained = SmallDenoiser(), make_scheduler()
    trajectory = quietly((network, DDIMScheduler.from_config(trained.config)))
    trajectory.sampler((network, trained))
    rounded = make_scheduler()
    rounded.alphas_cumprod = rounded.alphas_cumprod.double() * (1 + 1e-7)
    assert as_schedule(rounded).fingerprint() != trajectory.schedule
    trajectory.sampler((network, rounded))


def test_a_trajectory_of_the_callers_own_is_taken_at_its_word() -> None:
    zeros = torch.zeros(1, 2, 1, 8, 8)
    trajectory = Trajectory(torch.tensor([90, 10]), zeros, zeros, zeros[:, 0])
    trajectory.check_schedule(as_schedule(flow(3.0)))
    with pytest.raises(ValueError, match="which has 50 timesteps, got timestep 90"):
        trajectory.check_schedule(as_schedule(flow(num=50)))


SCHEDULES: dict[str, Any] = {
    "VP": DDPMScheduler(),
    "VP, fewer timesteps": make_scheduler(),
    "VP to pure noise": DDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing"),
    "flow": flow(num=1000),
    "flow of another shift": flow(3.0, num=1000),
    "EDM": EDMEulerScheduler(),
}


@pytest.mark.parametrize("there", SCHEDULES)
@pytest.mark.parametrize("here", SCHEDULES)
def test_a_trajectory_is_counted_in_the_timesteps_of_the_same_noise(here: str, there: str) -> None:
    given, other = Denoiser(LinearDenoiser(), SCHEDULES[here]), Denoiser(LinearDenoiser(), SCHEDULES[there])
    images, steps = randn(2, 1, 8, 8, seed=5), [given.num_train_timesteps * k // 100 for k in (60, 50, 40, 30)]
    recorded = noised_trajectory(given, images, steps)
    found = recorded.on((other.network, SCHEDULES[there]))
    found.check_schedule(other.schedule)
    assert torch.equal(found.x0_hat, recorded.x0_hat)
    assert (found.timesteps.diff() < 0).all()
    if here == there:
        assert torch.equal(found.timesteps, recorded.timesteps)
        torch.testing.assert_close(found.x_t, recorded.x_t)
    noise = query_noise(0, range(2), -1, 1, (1, 8, 8), torch.device("cpu"))[:, 0]
    wanted = torch.stack([other.add_noise(images, noise, t.expand(2)) for t in found.timesteps], 1)
    # Half a timestep apart at most, of a hundred.
    assert (found.x_t - wanted).abs().max() <= 0.05 * wanted.abs().max()
    angles = [
        torch.atan2(*x.schedule.levels(t).flip(1).T) for x, t in ((given, recorded.timesteps), (other, found.timesteps))
    ]
    assert (angles[0] - angles[1]).abs().max() < 0.02


@pytest.mark.parametrize(
    ("there", "message"),
    [
        (
            (SmallDenoiser(), make_scheduler(beta_end=0.02)),
            "timestep 80 has .* no timestep of the other schedule comes",
        ),
        ((SmallDenoiser(), flow(num=4)), r"timesteps 80 and 60 have the noise of one timestep .* leave one out"),
        ((make_unet(in_channels=3, out_channels=3), flow()), "what the trajectory is of, 1 channels, got one of 3"),
    ],
)
def test_a_trajectory_without_the_same_noise_elsewhere_is_refused(there: Any, message: str) -> None:
    trajectory = quietly((SmallDenoiser(), make_scheduler()))
    with pytest.raises(ValueError, match=message):
        trajectory.on(there)
    with pytest.raises(ValueError, match="must say what noise its steps mean"):
        replace(trajectory, levels=None).on((SmallDenoiser(), make_scheduler()))
