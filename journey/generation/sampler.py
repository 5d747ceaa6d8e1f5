"""The sampling loop of a model, one step at a time, from pure noise or from any step on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from journey.models.condition import Condition
from journey.models.denoiser import Denoiser
from journey.models.schedulers import VariancePreserving
from journey.ops.keys import to_signed
from journey.ops.noise import keyed_noise

# What schedulers keep between steps and cannot begin without: PNDM, IPNDM; LMS; single-step DPM-Solver.
_HISTORY = ("ets", "derivatives", "order_list")


@dataclass(frozen=True)
class Step:
    """One step of some images.

    Attributes:
        index: Which step of the sampler.
        timestep: The training timestep of the latents, the nearest one for samplers between timesteps.
        x_t: The latents before the step as the network sees them, float32. [num_rows, C, H, W]
        x0_hat: The image predicted from them, float32. [num_rows, C, H, W]
        prev: The latents after the step, in the sampler's scale; after the last step the image. [num_rows, C, H, W]
    """

    index: int
    timestep: int
    x_t: Tensor
    x0_hat: Tensor
    prev: Tensor


class Sampler:
    """Samples images with the scheduler of a denoiser.

    Latents that go in and come out as ``x_t`` are in the network's scale, ``x_t = signal_t x0 + sigma_t noise``, also
    for schedulers that keep theirs in another one (Euler).

    Args:
        denoiser: The model; neither it nor its scheduler is changed.
        num_inference_steps: Steps of the sampler.
        condition: What the network is told, one row per image or one for all.
        guidance_scale: Strength of guidance; by default, and at ``denoiser.no_guidance`` or below, there is none.
        negative: What guidance leads away from, one row per image or one for all; the denoiser's null condition by
            default.
        shape: Shape of one image in the model's space; by default that of the model. [C, H, W]
        stochastic: Sample from the model's own transitions, with noise in every step, whatever the scheduler: DDPM
            steps of the same noise schedule, or stochastic flow matching. Branches from one x_t then differ.

    Raises:
        ValueError: If a number is not positive, or guidance is asked for without a condition.
        TypeError: If the model does not tell the shape of its images and none is given.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        num_inference_steps: int,
        *,
        condition: Condition | None = None,
        guidance_scale: float | None = None,
        negative: Condition | None = None,
        shape: tuple[int, ...] | None = None,
        stochastic: bool = False,
    ) -> None:
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps must be positive, got {num_inference_steps}")
        shape = denoiser.shape_of(None) if shape is None else shape
        guidance_scale = denoiser.no_guidance if guidance_scale is None else guidance_scale
        guided = guidance_scale > denoiser.no_guidance
        if guided and condition is None:
            raise ValueError(
                f"guidance_scale must be {denoiser.no_guidance:g} without a prompt or class label, got {guidance_scale}"
            )
        self.denoiser = denoiser
        self.num_inference_steps = num_inference_steps
        self.shape = shape
        self._condition = None if condition is None else condition.to(denoiser.device)
        self._guidance_scale = guidance_scale
        self._negative = (denoiser.null_condition() if negative is None else negative) if guided else None
        self._stochastic = stochastic
        times = self._scheduler().timesteps
        self.timesteps: list[int] = times.tolist() if self._is_ancestral else denoiser.schedule.nearest(times)

    def start(self, keys: Sequence[int]) -> Tensor:
        """Return the latents that sampling begins with, one image per key (``journey.ops.keys``).

        Args:
            keys: One unsigned 64-bit key per image; equal keys give equal noise on every device.

        Returns:
            float32, in the network's scale, on the model's device. [num_rows, C, H, W]
        """
        signed = torch.tensor([to_signed(key) for key in keys], dtype=torch.int64, device="cpu")
        noise = keyed_noise(signed, 1, self.shape, self.denoiser.device, antithetic=False, per=1)[:, 0, 0]
        return self.start_from(noise)

    def start_from(self, noise: Tensor) -> Tensor:
        """Return the latents that sampling begins with, from standard normal noise. [num_rows, C, H, W]"""
        scheduler = self._scheduler()
        # Flow matching has no such factor: its first latents are the noise itself.
        return noise * getattr(scheduler, "init_noise_sigma", 1.0) * _input_scale(scheduler, scheduler.timesteps[0])

    @torch.no_grad()
    def steps(
        self, x: Tensor, *, first: int = 0, generators: Sequence[torch.Generator] | None = None
    ) -> Iterator[Step]:
        """Sample to the end, yielding every step.

        Args:
            x: Latents before step ``first``, in the network's scale, as ``start`` or ``Step.x_t`` give them.
                [num_rows, C, H, W]
            first: Step to begin with. A multistep scheduler (DPM-Solver++, UniPC) begins there as at its start, with a
                step of first order.
            generators: The sampler's own noise, one CPU generator per row, so that neither the device nor the batch
                matters; needed by samplers that add noise.

        Yields:
            The steps from ``first`` on.

        Raises:
            ValueError: If ``first`` is not a step, or the scheduler cannot begin in the middle, or the condition has
                another number of rows.
        """
        scheduler = self._scheduler()
        times = scheduler.timesteps
        if not 0 <= first < len(times):
            raise ValueError(f"first must be a step of the sampler, 0 to {len(times) - 1}, got {first}")
        if first > 0:
            _begin_at_(scheduler, first)
        own_noise = {}
        if generators is not None and "generator" in signature(scheduler.step).parameters:
            own_noise["generator"] = list(generators)
        x = x.to(self.denoiser.device)
        condition, negative = (None if c is None else c.expand(len(x)) for c in (self._condition, self._negative))
        x = x / _input_scale(scheduler, times[first])
        x0_hat = None
        for index in range(first, len(times)):
            t = times[index]
            x_t = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            # DDPM's steps in place of another scheduler's count in timesteps, whatever the network is told.
            told = self.denoiser.schedule.network_time(t) if self._is_ancestral else t
            prediction = self._predict(x_t, told, condition, negative)
            level = self.denoiser.schedule.level(scheduler, index)
            before = (x0_hat, None if x0_hat is None else times[index - 1])
            x_prev, x0_hat = _step(scheduler, prediction, t, x, before, own_noise)
            if x0_hat is None:
                x0_hat = self.denoiser.schedule.invert(prediction, x_t, *level)
            x = x_prev
            yield Step(index, self.timesteps[index], x_t, x0_hat, x)

    def _predict(self, x_t: Tensor, time: Tensor, condition: Condition | None, negative: Condition | None) -> Tensor:
        """The network's prediction under guidance. [num_rows, C, H, W]"""
        if negative is None or condition is None:
            return self.denoiser.predict_at(x_t, time.expand(len(x_t)).to(x_t.device), condition)
        both = Condition.cat([negative.to(x_t.device), condition])
        prediction = self.denoiser.predict_at(torch.cat([x_t, x_t]), time.expand(2 * len(x_t)).to(x_t.device), both)
        without, given = prediction.chunk(2)
        return self.denoiser.combine(without, given, self._guidance_scale)

    @property
    def _is_ancestral(self) -> bool:
        """Whether steps are DDPM's, whatever the scheduler."""
        return self._stochastic and isinstance(self.denoiser.schedule, VariancePreserving)

    def _scheduler(self) -> Any:
        """A scheduler of our own, ready to sample; sampling changes its state."""
        given, ancestral = self.denoiser.scheduler, self._is_ancestral
        changes = {}
        if self._stochastic and not ancestral:
            if "stochastic_sampling" not in signature(type(given).__init__).parameters:
                raise ValueError(
                    "completions need a scheduler that adds noise in every step, such as DDPM or DDIM, or for flow "
                    "matching a FlowMatchEulerDiscreteScheduler of a diffusers that has stochastic_sampling, got "
                    f"{type(given).__name__}"
                )
            changes = {"stochastic_sampling": True}
        # Schedulers make their tables, and numbers in their steps, on torch's default device.
        with torch.device("cpu"):
            scheduler = type(given).from_config(given.config, **changes)
            try:
                self.denoiser.set_timesteps(scheduler, self.num_inference_steps, self.shape)
            except (ValueError, IndexError) as error:  # of a sampler whose order needs more steps, say
                steps = f"num_inference_steps={self.num_inference_steps}"
                raise ValueError(f"{type(given).__name__} cannot make {steps}: {error}") from error
        if not ancestral or isinstance(given, DDPMScheduler):
            return scheduler
        # Through the same timesteps, so that what the scheduler recorded can be continued. A scheduler that never clips
        # would otherwise get DDPM's clipping to [-1, 1], wrong for latents.
        visited = dict.fromkeys(self.denoiser.schedule.nearest(scheduler.timesteps))
        changes = {} if "clip_sample" in given.config else {"clip_sample": False}
        with torch.device("cpu"):
            ddpm = DDPMScheduler.from_config(given.config, **changes)
            ddpm.set_timesteps(timesteps=list(visited))
        return ddpm


def _step(
    scheduler: Any, prediction: Tensor, t: Tensor, x: Tensor, before: tuple[Any, Any], own_noise: dict[str, Any]
) -> tuple[Tensor, Tensor | None]:
    """Latents after a step, and the image that the scheduler predicts, if it tells; ``before`` is that and its time."""
    with torch.device("cpu"):
        # CogVideoX's own solver keeps nothing of the step before: it is handed it.
        if "old_pred_original_sample" in signature(scheduler.step).parameters:
            x_prev, x0_hat = scheduler.step(prediction, before[0], t, before[1], x, **own_noise, return_dict=False)
            return x_prev, x0_hat
        found = scheduler.step(prediction, t, x, **own_noise)
    return found.prev_sample, getattr(found, "pred_original_sample", None)


def _input_scale(scheduler: Any, time: Tensor) -> float:
    """The factor that takes the scheduler's latents to the network's at one time."""
    if not hasattr(scheduler, "scale_model_input"):
        return 1.0
    return float(scheduler.scale_model_input(torch.ones(1, dtype=torch.float32, device="cpu"), time))


def _begin_at_(scheduler: Any, first: int) -> None:
    if getattr(scheduler, "order", 1) != 1 or any(hasattr(scheduler, name) for name in _HISTORY):
        raise ValueError(
            f"{type(scheduler).__name__} cannot begin at step {first}: its steps need the ones before. Use DDPM, DDIM, "
            "Euler, DPMSolverMultistep or stochastic=True"
        )
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
