"""Flux: a multimodal transformer on packed VAE latents, trained by flow matching and distilled from guidance."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from journey.models.condition import Condition
from journey.models.latent import LatentDenoiser
from journey.models.text import TextDenoiser


class Flux(TextDenoiser, LatentDenoiser):
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

    default_guidance = 3.5
    patch_size = 2

    def __init__(self, pipeline: Any, *, latents: str = "mean", seed: int = 0) -> None:
        super().__init__(pipeline, pipeline.transformer, latents=latents, seed=seed)
        self._packing = type(pipeline)

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of the latents that the pipeline makes by default."""
        return (int(self.pipeline.default_sample_size),) * 2

    @torch.no_grad()
    def encode_prompt(self, prompts: list[str]) -> Condition:
        """Return the condition of some prompts under the default guidance.

        ``encoder_hidden_states`` [num_rows, tokens, channels], ``pooled_projections`` [num_rows, channels] and, where
        the network embeds it, ``guidance`` [num_rows].
        """
        device = self.text_device
        states, pooled, _ = self.pipeline.encode_prompt(prompt=prompts, prompt_2=None, device=device)
        condition = Condition({"encoder_hidden_states": states, "pooled_projections": pooled})
        return self.with_guidance(condition, self.default_guidance)[0]

    def with_guidance(self, condition: Condition, guidance_scale: float) -> tuple[Condition, float]:
        """Tell the network the guidance; no second prediction is needed, see ``Denoiser.with_guidance``."""
        if not self.config.guidance_embeds:
            return condition, 1.0
        states = condition["encoder_hidden_states"]
        guidance = torch.full((len(condition),), float(guidance_scale), device=states.device, dtype=torch.float32)
        return Condition({**condition.tensors, "guidance": guidance}), 1.0

    def set_timesteps(self, scheduler: Any, num_inference_steps: int, shape: tuple[int, ...]) -> None:
        """Use the pipeline's sigmas and their shift by the resolution, see ``Denoiser.set_timesteps``."""
        # Here, because it imports the text encoders' library.
        from diffusers.pipelines.flux.pipeline_flux import calculate_shift

        limits = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        mu = calculate_shift((shape[1] // 2) * (shape[2] // 2), *(scheduler.config[name] for name in limits))
        sigmas = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)
        scheduler.set_timesteps(sigmas=sigmas, mu=mu)

    def _call(self, x_t: Tensor, times: Tensor, condition: Condition | None) -> Tensor:
        told = self._told(condition)
        num_rows, channels, height, width = x_t.shape
        guidance = told["guidance"] if self.config.guidance_embeds else None
        states = told["encoder_hidden_states"].to(self.dtype)
        output = self.network(
            hidden_states=self._packing._pack_latents(x_t, num_rows, channels, height, width),
            timestep=times / self.num_train_timesteps,
            guidance=guidance,
            encoder_hidden_states=states,
            pooled_projections=told["pooled_projections"].to(self.dtype),
            txt_ids=states.new_zeros(states.shape[1], 3),
            img_ids=self._packing._prepare_latent_image_ids(num_rows, height // 2, width // 2, x_t.device, x_t.dtype),
        ).sample
        scale = self.scale_factor
        unpacked: Tensor = self._packing._unpack_latents(output, height * scale, width * scale, scale)
        return unpacked
