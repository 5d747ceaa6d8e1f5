"""One view of a diffusion model for everything that measures or samples it: a network and its noise schedule.

Unconditional pixel models: ``DDPMPipeline``, ``DDIMPipeline``, or a bare denoiser such as ``UNet2DModel`` with its
scheduler.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")


class Denoiser:
    """A denoising network with the schedule it was trained for.

    Args:
        network: Called as ``network(x_t, timesteps)``; returns the prediction or an object with ``.sample``. In eval
            mode.
        scheduler: A diffusers scheduler with ``alphas_cumprod``, ``config.prediction_type`` and
            ``config.num_train_timesteps``.

    Raises:
        ValueError: If the network is in train mode or the prediction type is not one of ``PREDICTION_TYPES``.
        TypeError: If the scheduler has no ``alphas_cumprod``.
    """

    def __init__(self, network: nn.Module, scheduler: Any) -> None:
        if network.training:
            raise ValueError("model must be in eval mode, got train mode; call model.eval()")
        if not isinstance(getattr(scheduler, "alphas_cumprod", None), Tensor):
            raise TypeError(
                "scheduler must be a diffusers scheduler with alphas_cumprod (DDPMScheduler, DDIMScheduler, ...), "
                f"got {type(scheduler).__name__}"
            )
        self.network = network
        self.scheduler = scheduler
        self.prediction_type = str(scheduler.config.prediction_type)
        if self.prediction_type not in PREDICTION_TYPES:
            raise ValueError(
                f"prediction_type of the scheduler must be one of {', '.join(PREDICTION_TYPES)}, "
                f"got {self.prediction_type!r}"
            )
        self._alphas_cumprod = scheduler.alphas_cumprod.double().cpu()

    @property
    def num_train_timesteps(self) -> int:
        """Number of timesteps of the schedule; timesteps are 0 ... num_train_timesteps - 1."""
        return len(self._alphas_cumprod)

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

    def predict(self, x_t: Tensor, timesteps: Tensor) -> Tensor:
        """Return the network's prediction in float32.

        Args:
            x_t: Noised images. [num_rows, C, H, W]
            timesteps: One per row, int64. [num_rows]

        Returns:
            The prediction, in the sense of ``prediction_type``. [num_rows, C, H, W]
        """
        output = self.network(x_t.to(self.dtype), timesteps)
        prediction: Tensor = output if isinstance(output, Tensor) else output.sample
        return prediction.float()

    def signal_and_noise(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``sqrt(abar_t)`` and ``sqrt(1 - abar_t)``, float32, where ``timesteps`` are. [num_rows, 1, 1, 1]

        Reference:
            Ho et al., "Denoising Diffusion Probabilistic Models", NeurIPS 2020, Eq. 4.
        """
        alphas = self._alphas_cumprod[timesteps.cpu()].view(-1, 1, 1, 1)
        return alphas.sqrt().float().to(timesteps.device), (1 - alphas).sqrt().float().to(timesteps.device)

    def add_noise(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return ``x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) noise``. [num_rows, C, H, W]"""
        signal, sigma = self.signal_and_noise(timesteps)
        return signal * x0 + sigma * noise

    def target(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return what the network was trained to predict. [num_rows, C, H, W]

        Reference:
            Salimans and Ho, "Progressive Distillation for Fast Sampling of Diffusion Models", ICLR 2022, appendix D,
            for ``v_prediction``.
        """
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return x0
        signal, sigma = self.signal_and_noise(timesteps)
        return signal * noise - sigma * x0

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
