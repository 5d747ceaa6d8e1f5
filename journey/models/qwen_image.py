"""Qwen-Image: a multimodal transformer on packed latents of a video autoencoder."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from journey.models.condition import Condition
from journey.models.flow import Flow, pack, padded, unpack


class QwenImage(Flow):
    """The transformer of a ``QwenImagePipeline``, told token states of any length.

    Its autoencoder is one of videos, here of a single frame; its latents are scaled channel by channel.

    Reference:
        Qwen Team, "Qwen-Image Technical Report", 2025.
    """

    # Its ``true_cfg_scale``; without a negative prompt it would not guide, here the empty one is taken.
    default_guidance = 4.0
    autoencoders = ("AutoencoderKLQwenImage",)

    @property
    def in_channels(self) -> int:
        """Channels of an image."""
        return int(self.pipeline.vae.config.get("input_channels", 3))

    @property
    def scale_factor(self) -> int:
        """Pixels per latent in each direction."""
        return int(2 ** len(self.pipeline.vae.config.temperal_downsample))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the latents of an image of ``sample_size``. [C, H, W]"""
        return (int(self.pipeline.vae.config.z_dim), *self.latent_size)

    @torch.no_grad()
    def encode_prompt(self, prompts: list[str]) -> Condition:
        """Return ``encoder_hidden_states`` [num_rows, tokens, channels] of some prompts, and their mask."""
        states, mask = self.pipeline.encode_prompt(list(prompts), self.text_device)
        # No mask means no padding.
        lengths = [len(row) for row in states] if mask is None else mask.sum(1).tolist()
        return padded([row[:length] for row, length in zip(states, lengths, strict=True)])

    def combine(self, without: Tensor, given: Tensor, guidance_scale: float) -> Tensor:
        """Guide each token, then give it the norm of the prediction under the prompt, see ``Guidance.combine``."""
        plain = pack(super().combine(without, given, guidance_scale))
        ratio = pack(given).norm(dim=-1, keepdim=True) / plain.norm(dim=-1, keepdim=True)
        return unpack(plain * ratio, given.shape)

    def velocity(self, x_t: Tensor, sigma: Tensor, told: Condition) -> Tensor:
        """Run the network on tokens of 2x2 latents, see ``Flow.velocity``."""
        mask = told["encoder_hidden_states_mask"]
        found = self.network(
            hidden_states=pack(x_t),
            timestep=sigma,
            encoder_hidden_states=told["encoder_hidden_states"].to(self.dtype),
            encoder_hidden_states_mask=None if mask.all() else mask,
            img_shapes=[[(1, x_t.shape[2] // 2, x_t.shape[3] // 2)]] * len(x_t),
        ).sample
        return unpack(found, x_t.shape)

    def _posterior(self, images: Tensor) -> Any:
        found = self.pipeline.vae.encode(images.unsqueeze(2)).latent_dist
        return SimpleNamespace(mean=found.mean.squeeze(2), std=found.std.squeeze(2))

    def _images(self, z: Tensor) -> Tensor:
        images: Tensor = self.pipeline.vae.decode(z.unsqueeze(2)).sample
        return images.squeeze(2)

    def _scaled(self, z: Tensor) -> Tensor:
        mean, std = self._statistics(z)
        return (z - mean) / std

    def _unscaled(self, latents: Tensor) -> Tensor:
        mean, std = self._statistics(latents)
        return latents * std + mean

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel of the VAE's latents. Each [C, 1, 1]"""
        config = self.pipeline.vae.config
        mean, std = (like.new_tensor(values).view(-1, 1, 1) for values in (config.latents_mean, config.latents_std))
        return mean, std
