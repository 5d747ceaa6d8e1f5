"""FLUX.2: a multimodal transformer on packed latents that a batch norm scales; dev embeds guidance, Klein does not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from journey.models.condition import Condition
from journey.models.flow import Flow, embed_guidance, pack, told_guidance, unpack


class Flux2(Flow):
    """The transformer of a ``Flux2Pipeline`` (dev), told token states and the guidance as a number.

    Texts are padded to one length, and the network sees the padding. Latents are images [C, H, W] everywhere outside
    the network, as those of Flux; training images are measured under the guidance that the pipeline samples with by
    default.
    """

    gives_guidance = True
    default_guidance = 4.0
    autoencoders = ("AutoencoderKLFlux2",)
    embeddings = ("encoder_hidden_states",)

    @torch.no_grad()
    def encode_prompt(self, prompts: list[str]) -> Condition:
        """Return ``encoder_hidden_states`` [num_rows, tokens, channels] of some prompts, and their ``guidance``."""
        states, _ = self.pipeline.encode_prompt(prompt=list(prompts), device=self.text_device)
        return self.with_guidance(Condition({"encoder_hidden_states": states}), self.default_guidance)[0]

    def with_guidance(self, condition: Condition, guidance_scale: float) -> tuple[Condition, float]:
        """Tell the network the guidance; no second prediction is needed, see ``Guidance.with_guidance``."""
        if not self.config.guidance_embeds:
            return condition, self.no_guidance
        return embed_guidance(condition, guidance_scale), self.no_guidance

    def mu(self, scheduler: Any, shape: tuple[int, ...], num_inference_steps: int) -> float:
        """Return the pipeline's shift, which depends on the steps too, see ``Flow.mu``."""
        # Here, because it imports the text encoders' library.
        from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

        return float(compute_empirical_mu(shape[1] * shape[2] // 4, num_inference_steps))

    def velocity(self, x_t: Tensor, sigma: Tensor, told: Condition) -> Tensor:
        """Run the network on tokens of 2x2 latents with four coordinates each, see ``Flow.velocity``."""
        states, device = told["encoder_hidden_states"].to(self.dtype), x_t.device
        one = torch.zeros(1, dtype=torch.int64, device=device)
        rows, columns, words = (
            torch.arange(length, dtype=torch.int64, device=device)
            for length in (x_t.shape[2] // 2, x_t.shape[3] // 2, states.shape[1])
        )
        found = self.network(
            hidden_states=pack(x_t),
            timestep=sigma,
            guidance=told_guidance(told, self.default_guidance) if self.config.guidance_embeds else None,
            encoder_hidden_states=states,
            txt_ids=torch.cartesian_prod(one, one, one, words),
            img_ids=torch.cartesian_prod(one, rows, columns, one),
        ).sample
        return unpack(found, x_t.shape)

    def _scaled(self, z: Tensor) -> Tensor:
        mean, std = self._statistics(z)
        return (z - mean) / std

    def _unscaled(self, latents: Tensor) -> Tensor:
        mean, std = self._statistics(latents)
        return latents * std + mean

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel and each place in a square of 2x2 latents. Each [C, H, W]"""
        norm, (channels, height, width) = self.pipeline.vae.bn, like.shape[1:]
        std = (norm.running_var + self.pipeline.vae.config.batch_norm_eps).sqrt()
        mean, std = (
            value.to(like).view(channels, 2, 2).repeat(1, height // 2, width // 2) for value in (norm.running_mean, std)
        )
        return mean, std


class Flux2Klein(Flux2):
    """The transformer of a ``Flux2KleinPipeline``, told token states: guided by the empty prompt, or distilled."""

    def __init__(self, pipeline: Any, *, latents: str = "mean", seed: int = 0) -> None:
        super().__init__(pipeline, latents=latents, seed=seed)
        self.distilled = bool(pipeline.config.is_distilled)
        if self.distilled:
            self.default_guidance = self.no_guidance

    def with_guidance(self, condition: Condition, guidance_scale: float) -> tuple[Condition, float]:
        """Guide by a second prediction unless the model is distilled, see ``Guidance.with_guidance``."""
        return condition, self.no_guidance if self.distilled else guidance_scale
