"""LTX-Video: a transformer on tokens of a strongly compressed video, told the states of T5 and the frame rate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from journey.models.condition import Condition
from journey.models.flow import Flow, padded
from journey.models.video import VideoDenoiser

# Frames a second that the pipeline tells the network's positions by default.
_RATE = 25


class Ltx(VideoDenoiser, Flow):
    """The transformer of an ``LTXPipeline``, told token states of any length.

    Positions are those of 25 frames a second, the pipeline's default. Where the autoencoder is told how much noise is
    in latents, it is told none.

    Reference:
        HaCohen et al., "LTX-Video: Realtime Video Latent Diffusion", 2025.
    """

    default_guidance = 3.0
    video_size = (161, 512, 704)
    autoencoders = ("AutoencoderKLLTXVideo",)
    factors = ("vae_temporal_compression_ratio", "vae_spatial_compression_ratio")

    def __init__(self, pipeline: Any, *, latents: str = "mean", seed: int = 0) -> None:
        super().__init__(pipeline, latents=latents, seed=seed)
        self.patch_size = int(self.config.patch_size)
        if self.config.patch_size_t != 1 or self.patch_size != 1:
            raise ValueError(
                "transformer of an LTXPipeline must take one latent as one token, got patches of "
                f"{self.config.patch_size_t} x {self.patch_size} x {self.patch_size}"
            )

    @torch.no_grad()
    def encode_prompt(self, prompts: list[str]) -> Condition:
        """Return ``encoder_hidden_states`` [num_rows, tokens, channels] of some prompts, and their mask."""
        states, mask, _, _ = self.pipeline.encode_prompt(
            list(prompts), do_classifier_free_guidance=False, device=self.text_device
        )
        return padded([row[present] for row, present in zip(states, mask.bool(), strict=True)])

    def mu(self, scheduler: Any, shape: tuple[int, ...], num_inference_steps: int) -> float:
        """Return the pipeline's shift: linear in the tokens of all frames."""
        return super().mu(scheduler, (1, shape[1] * shape[2], shape[3]), num_inference_steps)

    def velocity(self, x_t: Tensor, sigma: Tensor, told: Condition) -> Tensor:
        """Run the network on one token per latent, see ``Flow.velocity``."""
        frames, height, width = x_t.shape[2:]
        scale = (self._frames / _RATE, self.scale_factor, self.scale_factor)
        found: Tensor = self.network(
            hidden_states=x_t.flatten(2).transpose(1, 2),
            encoder_hidden_states=told["encoder_hidden_states"].to(self.dtype),
            timestep=sigma * self.num_train_timesteps,
            encoder_attention_mask=told["encoder_hidden_states_mask"],
            num_frames=frames,
            height=height,
            width=width,
            rope_interpolation_scale=scale,
        ).sample
        return found.transpose(1, 2).reshape(x_t.shape)

    def _images(self, z: Tensor) -> Tensor:
        vae = self.pipeline.vae
        clean = z.new_zeros(len(z)) if vae.config.timestep_conditioning else None
        videos: Tensor = vae.decode(z, clean).sample
        return videos.transpose(1, 2)

    def _scaled(self, z: Tensor) -> Tensor:
        mean, std = self._statistics(z)
        latents: Tensor = (z - mean) * self.pipeline.vae.config.scaling_factor / std
        return latents

    def _unscaled(self, latents: Tensor) -> Tensor:
        mean, std = self._statistics(latents)
        z: Tensor = latents * std / self.pipeline.vae.config.scaling_factor + mean
        return z

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel of the VAE's latents. Each [C, 1, 1, 1]"""
        vae = self.pipeline.vae
        return vae.latents_mean.to(like).view(-1, 1, 1, 1), vae.latents_std.to(like).view(-1, 1, 1, 1)
