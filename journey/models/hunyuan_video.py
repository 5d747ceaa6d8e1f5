"""HunyuanVideo: a transformer on video latents, told the states of Llama, a pooled embedding, and the guidance."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from journey.models.condition import Condition
from journey.models.flow import Flow, embed_guidance, padded, told_guidance
from journey.models.video import VideoDenoiser


class HunyuanVideo(VideoDenoiser, Flow):
    """The transformer of a ``HunyuanVideoPipeline``, told token states of any length.

    It is told the guidance as a number, in training too, by default the pipeline's. Guidance by a second prediction,
    the pipeline's ``true_cfg_scale``, is not offered.

    Args:
        pipeline: The pipeline, in eval mode.
        latents: See ``LatentDenoiser``.
        seed: See ``LatentDenoiser``.

    Raises:
        ValueError: As ``Flow``, or if the network is told an image.

    Reference:
        Kong et al., "HunyuanVideo: A Systematic Framework For Large Video Generative Models", 2024.
    """

    gives_guidance = True
    default_guidance = 6.0
    video_size = (129, 720, 1280)
    autoencoders = ("AutoencoderKLHunyuanVideo",)
    embeddings = ("encoder_hidden_states", "encoder_hidden_states_mask", "pooled_projections")
    encoders = ("text_encoder", "text_encoder_2")

    def __init__(self, pipeline: Any, *, latents: str = "mean", seed: int = 0) -> None:
        super().__init__(pipeline, latents=latents, seed=seed)
        if self.config.image_condition_type is not None or self.config.in_channels != self.config.out_channels:
            raise ValueError(
                f"transformer of a {type(pipeline).__name__} must be told text alone, got one that is told an image"
            )
        self.patch_size = int(self.config.patch_size)

    @torch.no_grad()
    def encode_prompt(self, prompts: list[str]) -> Condition:
        """Return token states and their mask, pooled embeddings and the ``guidance`` of some prompts."""
        states, pooled, mask = self.pipeline.encode_prompt(list(prompts), device=self.text_device)
        rows = padded([row[present] for row, present in zip(states, mask.bool(), strict=True)])
        told = Condition({**rows.tensors, "pooled_projections": pooled})
        return self.with_guidance(told, self.default_guidance)[0]

    def with_guidance(self, condition: Condition, guidance_scale: float) -> tuple[Condition, float]:
        """Tell the network the guidance; no second prediction is made, see ``Guidance.with_guidance``."""
        if not self.config.guidance_embeds:
            return condition, self.no_guidance
        return embed_guidance(condition, guidance_scale), self.no_guidance

    def set_timesteps(self, scheduler: Any, num_inference_steps: int, shape: tuple[int, ...]) -> None:
        """Use the pipeline's sigmas, which no resolution shifts, see ``Denoiser.set_timesteps``."""
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.0, num_inference_steps + 1)[:-1])

    def velocity(self, x_t: Tensor, sigma: Tensor, told: Condition) -> Tensor:
        """Run the network, see ``Flow.velocity``."""
        found: Tensor = self.network(
            hidden_states=x_t,
            timestep=sigma * self.num_train_timesteps,
            encoder_hidden_states=told["encoder_hidden_states"].to(self.dtype),
            encoder_attention_mask=told["encoder_hidden_states_mask"].to(self.dtype),
            pooled_projections=told["pooled_projections"].to(self.dtype),
            guidance=told_guidance(told, self.default_guidance) * 1000 if self.config.guidance_embeds else None,
        ).sample
        return found
