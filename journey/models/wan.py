"""Wan 2.1 and 2.2: one transformer, or two for high and low noise, on video latents, told the states of T5."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from journey.models.condition import Condition
from journey.models.experts import Experts
from journey.models.flow import Flow, padded
from journey.models.video import VideoDenoiser


class Wan(VideoDenoiser, Flow):
    """The transformer of a ``WanPipeline``, told token states of any length.

    Wan 2.2 A14B has two, one for times of ``boundary_ratio`` or more; parameters are called ``transformer.*`` and
    ``transformer_2.*``, each draw is answered by its own, and both are guided by one scale, as the pipeline does.

    Args:
        pipeline: The pipeline, in eval mode.
        latents: See ``LatentDenoiser``.
        seed: See ``LatentDenoiser``.

    Raises:
        ValueError: As ``Flow``, or if a network is told a time for every token, or an image, or if a network is
            missing.

    Reference:
        Wan Team, "Wan: Open and Advanced Large-Scale Video Generative Models", 2025.
    """

    default_guidance = 5.0
    video_size = (81, 480, 832)
    autoencoders = ("AutoencoderKLWan",)

    def __init__(self, pipeline: Any, *, latents: str = "mean", seed: int = 0) -> None:
        super().__init__(pipeline, latents=latents, seed=seed)
        if pipeline.config.expand_timesteps:
            raise ValueError(
                f"{type(pipeline).__name__} must tell its network one time for all tokens, got expand_timesteps=True, "
                "as Wan 2.2 5B has it, which is not covered"
            )
        if self.config.image_dim is not None or self.config.in_channels != self.config.out_channels:
            raise ValueError(
                f"transformer of a {type(pipeline).__name__} must be told text alone, got one told an image"
            )
        # The network attends to so many tokens, zeros behind those of a text.
        self._tokens = int(signature(type(pipeline).__call__).parameters["max_sequence_length"].default)
        self.patch_size = int(self.config.patch_size[1])

    def network_of(self, pipeline: Any) -> nn.Module:
        """Return the transformer, or both as one."""
        parts: dict[str, Any] = {name: getattr(pipeline, name, None) for name in ("transformer", "transformer_2")}
        ratio = pipeline.config.boundary_ratio
        missing = [
            name for name, part in parts.items() if part is None and (ratio is not None or name == "transformer")
        ]
        if missing:
            raise ValueError(
                f"{missing[0]} of a {type(pipeline).__name__} with boundary_ratio={ratio} must be there, got None"
            )
        if ratio is None:
            return super().network_of(pipeline)
        return Experts(**parts, boundary=ratio * pipeline.scheduler.config.num_train_timesteps)

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in, of two networks the finer, see ``Denoiser.dtype``."""
        return self.network.dtype if isinstance(self.network, Experts) else super().dtype

    @property
    def boundaries(self) -> tuple[int, ...]:
        """The first timestep of the network for high noise, see ``Denoiser.boundaries``."""
        if not isinstance(self.network, Experts):
            return ()
        times = self.schedule.network_time(torch.arange(self.num_train_timesteps, dtype=torch.int64, device="cpu"))
        low = int((~self.network.is_first(times)).sum())
        return (low,) if 0 < low < len(times) else ()

    @torch.no_grad()
    def encode_prompt(self, prompts: list[str]) -> Condition:
        """Return ``encoder_hidden_states`` [num_rows, tokens, channels] of some prompts, and their mask."""
        states, _ = self.pipeline.encode_prompt(
            list(prompts), do_classifier_free_guidance=False, max_sequence_length=self._tokens, device=self.text_device
        )
        # Zeros fill a text up, and no state is one.
        return padded([row[: int(row.any(-1).sum())] for row in states])

    def set_timesteps(self, scheduler: Any, num_inference_steps: int, shape: tuple[int, ...]) -> None:
        """Use the scheduler's own sigmas, see ``Denoiser.set_timesteps``."""
        scheduler.set_timesteps(num_inference_steps)

    def velocity(self, x_t: Tensor, sigma: Tensor, told: Condition) -> Tensor:
        """Run the network, see ``Flow.velocity``."""
        states = told["encoder_hidden_states"]
        # Rows that others padded hold zeros there already.
        found: Tensor = self.network(
            hidden_states=x_t,
            timestep=sigma * self.num_train_timesteps,
            encoder_hidden_states=pad(states, (0, 0, 0, self._tokens - states.shape[1])).to(self.dtype),
        ).sample
        return found

    def _scaled(self, z: Tensor) -> Tensor:
        mean, std = self._statistics(z)
        return (z - mean) / std

    def _unscaled(self, latents: Tensor) -> Tensor:
        mean, std = self._statistics(latents)
        return latents * std + mean

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel of the VAE's latents. Each [C, 1, 1, 1]"""
        config = self.pipeline.vae.config
        mean, std = (like.new_tensor(values).view(-1, 1, 1, 1) for values in (config.latents_mean, config.latents_std))
        return mean, std
