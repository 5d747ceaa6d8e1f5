"""Flux: a multimodal transformer on packed VAE latents, trained by flow matching and distilled from guidance."""

from __future__ import annotations

import torch
from torch import Tensor

from journey.models.condition import Condition
from journey.models.flow import Flow, embed_guidance, pack, told_guidance, unpack
from journey.models.text import TextDenoiser


class Flux(Flow):
    """The transformer of a ``FluxPipeline``, told token and pooled embeddings and, if it embeds it, the guidance.

    Latents are images [C, H, W] everywhere outside the network, which takes squares of 2x2 as one token. Guidance is
    a number that the network is told, not a second prediction; training images are measured under the guidance that
    the pipeline samples with by default.

    Args:
        pipeline: The pipeline, in eval mode.
        latents: See ``LatentDenoiser``.
        seed: See ``LatentDenoiser``.

    Raises:
        ValueError: If a part is in train mode.
    """

    gives_guidance = True
    default_guidance = 3.5
    embeddings = TextDenoiser.embeddings
    encoders = TextDenoiser.encoders

    @torch.no_grad()
    def encode_prompt(self, prompts: list[str]) -> Condition:
        """Return the condition of some prompts under the default guidance.

        ``encoder_hidden_states`` [num_rows, tokens, channels], ``pooled_projections`` [num_rows, channels] and, where
        the network embeds it, ``guidance`` [num_rows].
        """
        states, pooled, _ = self.pipeline.encode_prompt(prompt=prompts, prompt_2=None, device=self.text_device)
        condition = Condition({"encoder_hidden_states": states, "pooled_projections": pooled})
        return self.with_guidance(condition, self.default_guidance)[0]

    def with_guidance(self, condition: Condition, guidance_scale: float) -> tuple[Condition, float]:
        """Tell the network the guidance; no second prediction is needed, see ``Denoiser.with_guidance``."""
        if not self.config.guidance_embeds:
            return condition, 1.0
        return embed_guidance(condition, guidance_scale), 1.0

    def velocity(self, x_t: Tensor, sigma: Tensor, told: Condition) -> Tensor:
        """Run the network on tokens of 2x2 latents, see ``Flow.velocity``."""
        states = told["encoder_hidden_states"].to(self.dtype)
        output = self.network(
            hidden_states=pack(x_t),
            timestep=sigma,
            guidance=told_guidance(told, self.default_guidance) if self.config.guidance_embeds else None,
            encoder_hidden_states=states,
            pooled_projections=told["pooled_projections"].to(self.dtype),
            txt_ids=states.new_zeros(states.shape[1], 3),
            img_ids=image_ids(x_t),
        ).sample
        return unpack(output, x_t.shape)


def image_ids(latents: Tensor) -> Tensor:
    """Return the coordinates of tokens of 2x2 latents, in their dtype: zero, row and column. [H W / 4, 3]"""
    height, width = latents.shape[2] // 2, latents.shape[3] // 2
    ids = latents.new_zeros(height, width, 3)
    ids[..., 1] += torch.arange(height, device=latents.device, dtype=latents.dtype)[:, None]
    ids[..., 2] += torch.arange(width, device=latents.device, dtype=latents.dtype)
    return ids.flatten(0, 1)
