"""Stable Diffusion 1.x and 2.x: a UNet on VAE latents with cross-attention to a CLIP text encoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from journey.models.condition import Condition
from journey.models.latent import LatentDenoiser
from journey.models.text import TextDenoiser


class StableDiffusion(TextDenoiser, LatentDenoiser):
    """The UNet of a ``StableDiffusionPipeline``, told ``encoder_hidden_states``. Predicts noise, image or velocity.

    Args:
        pipeline: The pipeline, in eval mode.
        latents: See ``LatentDenoiser``.
        seed: See ``LatentDenoiser``.

    Raises:
        ValueError: If a part is in train mode or the UNet takes more than latents, a time and text.

    Reference:
        Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", CVPR 2022.
    """

    default_guidance = 7.5
    embeddings: tuple[str, ...] = ("encoder_hidden_states",)
    encoders: tuple[str, ...] = ("text_encoder",)

    def __init__(self, pipeline: Any, *, latents: str = "mean", seed: int = 0) -> None:
        super().__init__(pipeline, pipeline.unet, latents=latents, seed=seed)
        if self.config.in_channels != self.shape[0] or self.config.time_cond_proj_dim is not None:
            raise ValueError(
                f"the UNet must take the VAE's {self.shape[0]} channels and no guidance embedding, got "
                f"{self.config.in_channels} channels and time_cond_proj_dim={self.config.time_cond_proj_dim} "
                "(inpainting and latent consistency models are not covered)"
            )

    @torch.no_grad()
    def encode_prompt(self, prompts: list[str]) -> Condition:
        """Return ``encoder_hidden_states`` of some prompts. [num_rows, tokens, channels]"""
        embeddings, _ = self.pipeline.encode_prompt(prompts, self.text_device, 1, False)
        return Condition({"encoder_hidden_states": embeddings})

    def _call(self, x_t: Tensor, times: Tensor, condition: Condition | None) -> Tensor:
        states = self._told(condition)["encoder_hidden_states"].to(self.dtype)
        output: Tensor = self.network(x_t, times, encoder_hidden_states=states).sample
        return output
