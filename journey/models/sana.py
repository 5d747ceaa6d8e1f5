"""SANA: a linear transformer on the latents of a deep compression autoencoder, told the states of a language model."""

from __future__ import annotations

from inspect import signature
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from journey.models.condition import Condition
from journey.models.flow import Flow, padded


class Sana(Flow):
    """The transformer of a ``SanaPipeline``, told token states of any length.

    The pipeline's instruction to the language model precedes a prompt, but not a negative one.

    Raises:
        ValueError: If a part is in train mode, or ``latents`` is ``"sample"``: the autoencoder has no posterior.

    Reference:
        Xie et al., "SANA: Efficient High-Resolution Image Synthesis with Linear Diffusion Transformers", ICLR 2025.
    """

    default_guidance = 4.5
    autoencoders = ("AutoencoderDC",)

    def __init__(self, pipeline: Any, *, latents: str = "mean", seed: int = 0) -> None:
        super().__init__(pipeline, latents=latents, seed=seed)
        if latents == "sample":
            raise ValueError('latents must be "mean" for SANA, whose autoencoder has no posterior, got "sample"')
        self.patch_size = int(self.config.patch_size)

    @property
    def scale_factor(self) -> int:
        """Pixels per latent in each direction."""
        return int(2 ** (len(self.pipeline.vae.config.encoder_block_out_channels) - 1))

    def encode_prompt(self, prompts: list[str]) -> Condition:
        """Return ``encoder_hidden_states`` [num_rows, tokens, channels] of some prompts, and their mask."""
        instruction = signature(type(self.pipeline).__call__).parameters["complex_human_instruction"].default
        return self._encode(prompts, instruction)

    def encode_negative(self, prompts: list[str]) -> Condition:
        """Return the same without the instruction."""
        return self._encode(prompts, None)

    def set_timesteps(self, scheduler: Any, num_inference_steps: int, shape: tuple[int, ...]) -> None:
        """Use the scheduler's own sigmas, see ``Denoiser.set_timesteps``."""
        scheduler.set_timesteps(num_inference_steps)

    def velocity(self, x_t: Tensor, sigma: Tensor, told: Condition) -> Tensor:
        """Run the network, see ``Flow.velocity``."""
        found: Tensor = self.network(
            x_t,
            encoder_hidden_states=told["encoder_hidden_states"].to(self.dtype),
            encoder_attention_mask=told["encoder_hidden_states_mask"],
            timestep=sigma * self.num_train_timesteps * self.config.timestep_scale,
        ).sample
        # The rest, where there is one, is a variance.
        return found[:, : x_t.shape[1]]

    @torch.no_grad()
    def _encode(self, prompts: list[str], instruction: list[str] | None) -> Condition:
        states, mask, _, _ = self.pipeline.encode_prompt(
            list(prompts), False, device=self.text_device, complex_human_instruction=instruction
        )
        return padded([row[present] for row, present in zip(states, mask.bool(), strict=True)])

    def _posterior(self, images: Tensor) -> Any:
        return SimpleNamespace(mean=self.pipeline.vae.encode(images).latent)

    def _scaled(self, z: Tensor) -> Tensor:
        return z * float(self.pipeline.vae.config.scaling_factor)

    def _unscaled(self, latents: Tensor) -> Tensor:
        return latents / float(self.pipeline.vae.config.scaling_factor)
