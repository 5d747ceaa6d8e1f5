"""Stable Diffusion 3: a multimodal transformer on VAE latents, trained by flow matching."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from journey.models.condition import Condition
from journey.models.flow import check_flow
from journey.models.latent import LatentDenoiser
from journey.models.text import TextDenoiser


class StableDiffusion3(TextDenoiser, LatentDenoiser):
    """The transformer of a ``StableDiffusion3Pipeline``, told token and pooled embeddings. Predicts the velocity.

    Args:
        pipeline: The pipeline, in eval mode.
        latents: See ``LatentDenoiser``.
        seed: See ``LatentDenoiser``.

    Raises:
        ValueError: If a part is in train mode, or the scheduler is none of flow matching.

    Reference:
        Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", ICML 2024.
    """

    default_guidance = 7.0

    def __init__(self, pipeline: Any, *, latents: str = "mean", seed: int = 0) -> None:
        super().__init__(pipeline, pipeline.transformer, latents=latents, seed=seed)
        check_flow(self, pipeline)
        self.patch_size = int(self.config.patch_size)

    @torch.no_grad()
    def encode_prompt(self, prompts: list[str]) -> Condition:
        """Return ``encoder_hidden_states`` [num_rows, tokens, channels] and ``pooled_projections`` of some prompts."""
        states, _, pooled, _ = self.pipeline.encode_prompt(
            prompt=prompts,
            prompt_2=None,
            prompt_3=None,
            device=self.text_device,
            do_classifier_free_guidance=False,
        )
        return Condition({"encoder_hidden_states": states, "pooled_projections": pooled})

    def set_timesteps(self, scheduler: Any, num_inference_steps: int, shape: tuple[int, ...]) -> None:
        """Shift the schedule by the resolution where the scheduler asks for it, see ``Denoiser.set_timesteps``."""
        # Here, because it imports the text encoders' library.
        from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift

        options = {}
        if scheduler.config.get("use_dynamic_shifting", False):
            tokens = (shape[1] // self.patch_size) * (shape[2] // self.patch_size)
            limits = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
            options["mu"] = calculate_shift(tokens, *(scheduler.config[name] for name in limits))
        scheduler.set_timesteps(num_inference_steps, **options)

    def _call(self, x_t: Tensor, times: Tensor, condition: Condition | None) -> Tensor:
        told = self._told(condition)
        output: Tensor = self.network(
            hidden_states=x_t,
            timestep=times,
            encoder_hidden_states=told["encoder_hidden_states"].to(self.dtype),
            pooled_projections=told["pooled_projections"].to(self.dtype),
        ).sample
        return output
