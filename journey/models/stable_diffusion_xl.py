"""Stable Diffusion XL: a UNet on VAE latents, told the text by two encoders, and the size of the image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from journey.models.condition import Condition
from journey.models.stable_diffusion import StableDiffusion


class StableDiffusionXL(StableDiffusion):
    """The UNet of a ``StableDiffusionXLPipeline``, told token states, a pooled embedding and ``time_ids``.

    The time ids say how large an image was before it was scaled and cropped. Training images are measured, and images
    are made, as uncropped ones of their own size: ``(H, W, 0, 0, H, W)``, which is the pipeline's default.

    Args:
        pipeline: The pipeline, in eval mode.
        latents: See ``LatentDenoiser``.
        seed: See ``LatentDenoiser``.

    Raises:
        ValueError: If a part is in train mode, or the UNet takes more than this.

    Reference:
        Podell et al., "SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis", ICLR 2024.
    """

    default_guidance = 5.0
    embeddings = ("encoder_hidden_states", "text_embeds")
    encoders = ("text_encoder", "text_encoder_2")

    def __init__(self, pipeline: Any, *, latents: str = "mean", seed: int = 0) -> None:
        super().__init__(pipeline, latents=latents, seed=seed)
        if self.config.addition_embed_type != "text_time":
            raise ValueError(
                f'the UNet must take text embeddings and time ids, addition_embed_type="text_time", got '
                f"{self.config.addition_embed_type!r}"
            )

    @torch.no_grad()
    def encode_prompt(self, prompts: list[str]) -> Condition:
        """Return ``encoder_hidden_states`` [num_rows, tokens, channels] and ``text_embeds`` of some prompts."""
        states, _, pooled, _ = self.pipeline.encode_prompt(
            prompt=prompts, device=self.text_device, do_classifier_free_guidance=False
        )
        return Condition({"encoder_hidden_states": states, "text_embeds": pooled})

    def null_condition(self) -> Condition:
        """Return zeros where the pipeline says so, else the empty prompt, as its guidance does. One row."""
        empty = super().null_condition()
        if not self.pipeline.config.force_zeros_for_empty_prompt:
            return empty
        return Condition({name: torch.zeros_like(tensor) for name, tensor in empty.tensors.items()})

    def _scaled(self, z: Tensor) -> Tensor:
        """Latents as the network takes them, which a few models normalise by channel."""
        mean, std = self._statistics(z)
        if mean is None:
            return super()._scaled(z)
        latents: Tensor = (z - mean) * (self.pipeline.vae.config.scaling_factor / std)
        return latents

    def _unscaled(self, latents: Tensor) -> Tensor:
        """The other way round."""
        mean, std = self._statistics(latents)
        if mean is None:
            return super()._unscaled(latents)
        z: Tensor = latents * (std / self.pipeline.vae.config.scaling_factor) + mean
        return z

    def _statistics(self, like: Tensor) -> tuple[Any, Any]:
        """Mean and standard deviation of the VAE's channels, each [C, 1, 1], or None."""
        config = self.pipeline.vae.config
        found = [getattr(config, name, None) for name in ("latents_mean", "latents_std")]
        if None in found:
            return None, None
        mean, std = (like.new_tensor(values).view(-1, 1, 1) for values in found)
        return mean, std

    def _call(self, x_t: Tensor, times: Tensor, condition: Condition | None) -> Tensor:
        told = self._told(condition)
        size = [side * self.scale_factor for side in x_t.shape[2:]]
        time_ids = torch.tensor([*size, 0, 0, *size], device=x_t.device, dtype=self.dtype)
        added = {"text_embeds": told["text_embeds"].to(self.dtype), "time_ids": time_ids.expand(len(x_t), -1)}
        states = told["encoder_hidden_states"].to(self.dtype)
        output: Tensor = self.network(x_t, times, encoder_hidden_states=states, added_cond_kwargs=added).sample
        return output
