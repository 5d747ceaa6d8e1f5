"""One view of a diffusion model for everything that measures or samples it: a network and its noise schedule."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from journey.condition import Condition
from journey.schedules import Schedule, as_schedule


class Denoiser:
    """A denoising network with the schedule it was trained for, unconditional and in pixels.

    Other families of models are subclasses in ``journey.models``.

    Args:
        network: Called as ``network(x_t, time)``; returns the prediction or an object with ``.sample``. In eval mode.
        scheduler: A diffusers scheduler, see ``journey.schedules.as_schedule``.

    Raises:
        ValueError: If the network is in train mode or the prediction type is unknown.
        TypeError: If the scheduler has no known schedule.
    """

    def __init__(self, network: nn.Module, scheduler: Any) -> None:
        if network.training:
            raise ValueError("model must be in eval mode, got train mode; call model.eval()")
        self.network = network
        self.scheduler = scheduler
        self.schedule: Schedule = as_schedule(scheduler)

    @property
    def num_train_timesteps(self) -> int:
        """Number of timesteps of the schedule; timesteps are 0 ... num_train_timesteps - 1."""
        return self.schedule.num_train_timesteps

    @property
    def prediction_type(self) -> str:
        """What the network predicts, see ``journey.schedules.Schedule``."""
        return self.schedule.prediction_type

    @property
    def device(self) -> torch.device:
        """Where the network's parameters are."""
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the network's parameters."""
        return next(self.network.parameters()).dtype

    @property
    def in_channels(self) -> int | None:
        """Channels of an image, where the network's config tells."""
        return getattr(getattr(self.network, "config", None), "in_channels", None)

    @property
    def sample_size(self) -> tuple[int, int] | None:
        """Height and width of an image, where the network's config tells."""
        size = getattr(getattr(self.network, "config", None), "sample_size", None)
        return (size, size) if isinstance(size, int) else tuple(size) if size is not None else None

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of what the network denoises, an image or its latents, where the model tells. [C, H, W]"""
        if self.in_channels is None or self.sample_size is None:
            return None
        return (self.in_channels, *self.sample_size)

    def predict(self, x_t: Tensor, timesteps: Tensor, condition: Condition | None = None) -> Tensor:
        """Return the network's prediction in float32.

        Args:
            x_t: Noised images. [num_rows, C, H, W]
            timesteps: One per row, int64. [num_rows]
            condition: What the network is told, one row per image.

        Returns:
            The prediction, in the sense of ``prediction_type``. [num_rows, C, H, W]
        """
        return self.predict_at(x_t, self.schedule.network_time(timesteps), condition)

    def predict_at(self, x_t: Tensor, times: Tensor, condition: Condition | None = None) -> Tensor:
        """Return the prediction for times as the scheduler counts them, which may lie between timesteps.

        Args:
            x_t: Noised images. [num_rows, C, H, W]
            times: One per row. [num_rows]
            condition: As for ``predict``.

        Returns:
            The prediction, float32. [num_rows, C, H, W]
        """
        return self._call(x_t.to(self.dtype), times, condition).float()

    def _call(self, x_t: Tensor, times: Tensor, condition: Condition | None) -> Tensor:
        """Run the network. [num_rows, C, H, W]"""
        if condition is not None:
            raise ValueError(f"condition must be None for an unconditional model, got {', '.join(condition.tensors)}")
        output = self.network(x_t, times)
        return output if isinstance(output, Tensor) else output.sample

    def null_condition(self) -> Condition:
        """Return what the network is told when it is told nothing, one row, for guidance.

        Raises:
            TypeError: If the model has no such condition.
        """
        raise TypeError(
            f"{type(self).__name__} has no null condition: guidance needs a text or class-conditional model"
        )

    def set_timesteps(self, scheduler: Any, num_inference_steps: int, shape: tuple[int, ...]) -> None:
        """Prepare a scheduler for sampling as the model's pipeline does.

        Args:
            scheduler: Changed.
            num_inference_steps: Steps of the sampler.
            shape: Shape of one image in the model's space, on which some schedules depend. [C, H, W]
        """
        scheduler.set_timesteps(num_inference_steps)

    def add_noise(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return ``x_t = signal_t x0 + sigma_t noise``. [num_rows, C, H, W]"""
        return self.schedule.add_noise(x0, noise, timesteps)

    def target(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return what the network was trained to predict. [num_rows, C, H, W]"""
        return self.schedule.target(x0, noise, timesteps)

    def check_image(self, image: Tensor, what: str) -> None:
        """Refuse an image that does not fit the network or is not finite.

        Args:
            image: One image. [C, H, W]
            what: Names the image in the error, such as ``"dataset[7]"``.

        Raises:
            ValueError: If the number of channels or the size is wrong, or a pixel is NaN or infinite.
        """
        if image.dim() != 3:
            raise ValueError(f"{what} must be an image [C, H, W], got {list(image.shape)}")
        if self.in_channels is not None and image.shape[0] != self.in_channels:
            raise ValueError(
                f"{what} must have {self.in_channels} channels, as the model takes, got {list(image.shape)}"
            )
        if self.sample_size is not None and tuple(image.shape[1:]) != self.sample_size:
            raise ValueError(
                f"{what} must be {self.sample_size} pixels, as the model takes, got {tuple(image.shape[1:])}"
            )
        if not torch.isfinite(image).all():
            raise ValueError(f"{what} has NaN or infinite pixels; remove the image or repair it")


def as_denoiser(model: Any) -> Denoiser:
    """Return the denoiser of a model in any of the accepted forms.

    Args:
        model: A ``Denoiser``; a diffusers pipeline with ``unet`` and ``scheduler``; a pair ``(network, scheduler)``; or
            the path or repo id of a saved pipeline.

    Returns:
        The denoiser, sharing the network with ``model``.

    Raises:
        TypeError: If ``model`` is none of these.
        ValueError: As ``Denoiser``.
    """
    if isinstance(model, Denoiser):
        return model
    if isinstance(model, str | os.PathLike):
        model = DiffusionPipeline.from_pretrained(Path(model) if Path(model).exists() else str(model))
    if isinstance(model, tuple) and len(model) == 2:
        return Denoiser(*model)
    if isinstance(model, DiffusionPipeline) and hasattr(model, "unet") and hasattr(model, "scheduler"):
        components = [name for name in ("vae", "text_encoder") if getattr(model, name, None) is not None]
        if components:
            raise TypeError(
                f"model must be an unconditional pixel pipeline, got {type(model).__name__} with {components}"
            )
        return Denoiser(model.unet, model.scheduler)
    raise TypeError(
        "model must be a diffusers pipeline with unet and scheduler, a pair (network, scheduler), or the path of a "
        f"saved pipeline, got {type(model).__name__}"
    )
