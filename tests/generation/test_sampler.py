"""The sampler does what the scheduler's own loop does, whole or from the middle, for schedulers of every kind."""

from __future__ import annotations

from inspect import signature
from typing import Any

import pytest
import torch
from cases import randn
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from models import SmallDenoiser, make_scheduler, make_unet, need_stochastic_flow
from torch import Tensor

from journey.generation.sampler import Sampler
from journey.models.denoiser import Denoiser
from journey.ops.keys import derive_key

NUM_STEPS = 5
_FIELDS: dict[str, Any] = {"num_train_timesteps": 100, "beta_end": 0.2}
SCHEDULERS: dict[str, Any] = {
    "DDPM": make_scheduler,
    "DDIM": lambda: DDIMScheduler(**_FIELDS),
    "DDIM v_prediction": lambda: DDIMScheduler(**_FIELDS, prediction_type="v_prediction", clip_sample=False),
    "PNDM": lambda: PNDMScheduler(**_FIELDS, skip_prk_steps=True),
    "Heun": lambda: HeunDiscreteScheduler(**_FIELDS),
    "Euler": lambda: EulerDiscreteScheduler(**_FIELDS),
    "Euler continuous": lambda: EulerDiscreteScheduler(
        **_FIELDS, prediction_type="v_prediction", timestep_type="continuous"
    ),
    "Euler ancestral": lambda: EulerAncestralDiscreteScheduler(**_FIELDS),
    "DPM-Solver++": lambda: DPMSolverMultistepScheduler(**_FIELDS),
    "DPM-Solver++ Karras": lambda: DPMSolverMultistepScheduler(**_FIELDS, use_karras_sigmas=True),
    "UniPC": lambda: UniPCMultistepScheduler(**_FIELDS),
    "flow": lambda: FlowMatchEulerDiscreteScheduler(num_train_timesteps=100, shift=3.0),
}
# Those whose next latents depend on the present ones alone, without noise.
MEMORYLESS = ["DDIM", "Euler", "Euler continuous", "flow"]


def make_denoiser(name: str) -> Denoiser:
    return Denoiser(SmallDenoiser(), SCHEDULERS[name]())


def make_generators(num_rows: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(num_rows)]


@torch.no_grad()
def plain_loop(denoiser: Denoiser, noise: Tensor) -> tuple[list[Tensor], Tensor]:
    """What a pipeline does: the network's inputs, and the last latents."""
    scheduler = type(denoiser.scheduler).from_config(denoiser.scheduler.config)
    scheduler.set_timesteps(NUM_STEPS)
    x, inputs = noise * getattr(scheduler, "init_noise_sigma", 1.0), []
    own: dict[str, Any] = {}
    if "generator" in signature(scheduler.step).parameters:
        own["generator"] = make_generators(len(noise))
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        inputs.append(scaled)
        x = scheduler.step(denoiser.network(scaled, t.expand(len(x))), t, x, **own).prev_sample
    return inputs, x


@pytest.mark.parametrize("name", SCHEDULERS)
def test_sampling_is_the_schedulers_own_loop(name: str) -> None:
    denoiser, noise = make_denoiser(name), randn(3, 1, 8, 8)
    sampler = Sampler(denoiser, NUM_STEPS)
    steps = list(sampler.steps(sampler.start_from(noise), generators=make_generators(3)))
    inputs, last = plain_loop(denoiser, noise)
    assert [step.index for step in steps] == list(range(len(inputs)))
    assert [step.timestep for step in steps] == sampler.timesteps
    assert all(0 <= t < 100 for t in sampler.timesteps)
    for step, wanted in zip(steps, inputs, strict=True):
        torch.testing.assert_close(step.x_t, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(steps[-1].prev, last, rtol=1e-4, atol=1e-4)


class Memory(SmallDenoiser):
    """Predicts exactly what lies between x_t and one image, if it is told signal and sigma."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.image, self.level = image, (0.0, 0.0)
        self.kind = "epsilon"

    def forward(self, x_t: Tensor, timesteps: Tensor) -> Tensor:
        signal, sigma = self.level
        noise = (x_t - signal * self.image) / sigma
        return {"epsilon": noise, "v_prediction": signal * noise - sigma * self.image, "velocity": noise - self.image}[
            self.kind
        ]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_predicted_image_is_the_one_that_the_network_knows(name: str) -> None:
    image = torch.tanh(randn(1, 1, 8, 8, seed=3))
    network = Memory(image)
    denoiser = Denoiser(network, SCHEDULERS[name]())
    network.kind = denoiser.prediction_type
    asked = []

    def predict(time: Tensor) -> None:
        sigmas = getattr(probe, "sigmas", None)
        index = int((probe.timesteps == time).nonzero()[-1])
        if name == "flow":
            network.level = (1 - float(sigmas[index]), float(sigmas[index]))
        elif sigmas is not None and len(sigmas) > len(probe.timesteps):
            ratio = float(sigmas[index])
            network.level = (1 / (1 + ratio**2) ** 0.5, ratio / (1 + ratio**2) ** 0.5)
        else:
            alpha = float(probe.alphas_cumprod[int(time)])
            network.level = (alpha**0.5, (1 - alpha) ** 0.5)
        asked.append(network.level)

    probe = SCHEDULERS[name]()
    probe.set_timesteps(NUM_STEPS)
    run = network.forward
    network.forward = lambda x_t, timesteps: (predict(timesteps[0]), run(x_t, timesteps))[1]  # type: ignore[method-assign]
    sampler = Sampler(denoiser, NUM_STEPS)
    for step in sampler.steps(sampler.start_from(randn(2, 1, 8, 8)), generators=make_generators(2)):
        torch.testing.assert_close(step.x0_hat, image.expand(2, -1, -1, -1), rtol=1e-3, atol=1e-3)
    assert len(asked) == len(sampler.timesteps)


@pytest.mark.parametrize("name", MEMORYLESS)
def test_sampling_from_the_middle_is_the_rest_of_the_whole(name: str) -> None:
    sampler = Sampler(make_denoiser(name), NUM_STEPS)
    whole = list(sampler.steps(sampler.start([1, 2, 3])))
    rest = list(sampler.steps(whole[2].x_t[1:], first=2))
    assert [step.timestep for step in rest] == sampler.timesteps[2:]
    for step, wanted in zip(rest, whole[2:], strict=True):
        torch.testing.assert_close(step.x_t, wanted.x_t[1:], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(step.x0_hat, wanted.x0_hat[1:], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(step.prev, wanted.prev[1:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["DPM-Solver++", "UniPC"])
def test_a_multistep_sampler_restarts_in_the_middle_with_a_first_order_step(name: str) -> None:
    sampler = Sampler(make_denoiser(name), NUM_STEPS)
    whole = list(sampler.steps(sampler.start([1])))
    first = next(iter(sampler.steps(whole[2].x_t, first=2)))
    torch.testing.assert_close(first.x0_hat, whole[2].x0_hat, rtol=1e-5, atol=1e-5)
    # A first-order step is DDIM's: straight to the next level with the present prediction.
    ratio, following = (float(s) for s in sampler_sigmas(name)[2:4])
    signal, sigma = 1 / (1 + ratio**2) ** 0.5, ratio / (1 + ratio**2) ** 0.5
    noise = (first.x_t - signal * first.x0_hat) / sigma
    expected = (first.x0_hat + following * noise) / (1 + following**2) ** 0.5
    torch.testing.assert_close(first.prev, expected, rtol=1e-4, atol=1e-4)


def sampler_sigmas(name: str) -> Tensor:
    scheduler = SCHEDULERS[name]()
    scheduler.set_timesteps(NUM_STEPS)
    return scheduler.sigmas


@pytest.mark.parametrize("name", ["PNDM", "Heun"])
def test_a_sampler_that_needs_its_past_is_refused_in_the_middle(name: str) -> None:
    sampler = Sampler(make_denoiser(name), NUM_STEPS)
    with pytest.raises(ValueError, match=r"cannot begin at step 2: its steps need the ones before"):
        next(iter(sampler.steps(sampler.start([1]), first=2)))


@pytest.mark.parametrize("name", ["PNDM", "DDIM", "Euler", "flow"])
def test_stochastic_branches_of_one_latent_differ_and_repeat(name: str) -> None:
    if name == "flow":
        need_stochastic_flow()
    sampler = Sampler(make_denoiser(name), NUM_STEPS, stochastic=True)
    middle = list(sampler.steps(sampler.start([7]), generators=make_generators(1)))[2].x_t
    ends = [
        list(sampler.steps(middle.expand(3, -1, -1, -1), first=2, generators=make_generators(3)))[-1].prev
        for _ in range(2)
    ]
    assert torch.equal(ends[0], ends[1])
    assert min((ends[0][0] - ends[0][1]).abs().max(), (ends[0][1] - ends[0][2]).abs().max()) > 0.01


@pytest.mark.parametrize("name", SCHEDULERS)
def test_stochastic_sampling_visits_the_timesteps_of_the_scheduler(name: str) -> None:
    if "flow" in name:
        need_stochastic_flow()
    denoiser = make_denoiser(name)
    visited = list(dict.fromkeys(Sampler(denoiser, NUM_STEPS).timesteps))
    assert Sampler(denoiser, NUM_STEPS, stochastic=True).timesteps == visited


def test_stochastic_sampling_is_ddpms_whatever_the_scheduler() -> None:
    ends = []
    for name in ("DDPM", "DDIM"):
        sampler = Sampler(make_denoiser(name), NUM_STEPS, stochastic=True)
        ends.append(list(sampler.steps(sampler.start([1, 2]), generators=make_generators(2)))[-1].prev)
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-5, atol=1e-5)


def test_ddpms_steps_tell_a_network_of_continuous_time_its_own() -> None:
    denoiser, told = make_denoiser("Euler continuous"), []
    denoiser.network.register_forward_pre_hook(lambda _, args: told.append(args[1][:1]))
    sampler = Sampler(denoiser, NUM_STEPS, stochastic=True)
    for _ in sampler.steps(sampler.start([7]), generators=make_generators(1)):
        pass
    assert torch.equal(torch.cat(told), denoiser.schedule.network_time(torch.tensor(sampler.timesteps)))


def test_stochastic_sampling_clips_only_where_the_scheduler_did() -> None:
    small = DDIMScheduler(**_FIELDS, clip_sample=False)
    network = SmallDenoiser()
    with torch.no_grad():
        network.outward.bias.fill_(5.0)
    for scheduler in (small, PNDMScheduler(**_FIELDS)):
        sampler = Sampler(Denoiser(network, scheduler), NUM_STEPS, stochastic=True)
        step = next(iter(sampler.steps(sampler.start([7]), generators=make_generators(1))))
        assert step.x0_hat.abs().max() > 1.5, "clipped to the range of pixels, which latents do not have"


def test_the_callers_scheduler_is_left_alone() -> None:
    denoiser = make_denoiser("Euler")
    before = denoiser.scheduler.timesteps.clone()
    sampler = Sampler(denoiser, NUM_STEPS)
    list(sampler.steps(sampler.start([1])))
    assert torch.equal(denoiser.scheduler.timesteps, before)


def test_an_image_does_not_depend_on_its_neighbours() -> None:
    sampler = Sampler(Denoiser(make_unet(), make_scheduler()), NUM_STEPS)
    keys = [derive_key(0, "test", i) for i in range(3)]
    together = list(sampler.steps(sampler.start(keys), generators=make_generators(3)))[-1].prev
    alone = list(sampler.steps(sampler.start(keys[:1]), generators=make_generators(1)))[-1].prev
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps must be positive, got 0"),
        ({"guidance_scale": 2.0}, r"guidance_scale must be 1 without a prompt or class label, got 2\.0"),
    ],
)
def test_an_argument_out_of_range_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampler(make_denoiser("DDPM"), **{"num_inference_steps": NUM_STEPS, **options})


@pytest.mark.parametrize("first", [-1, 5])
def test_a_step_that_the_sampler_has_not_is_refused(first: int) -> None:
    sampler = Sampler(make_denoiser("DDPM"), NUM_STEPS)
    with pytest.raises(ValueError, match=f"first must be a step of the sampler, 0 to 4, got {first}"):
        next(iter(sampler.steps(sampler.start([1]), first=first)))
