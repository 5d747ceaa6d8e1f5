"""Lumina 2: one stream of image and text tokens, whose time runs from noise to image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from journey.models.condition import Condition
from journey.models.flow import Flow, padded


class Lumina2(Flow):
    """The transformer of a ``Lumina2Pipeline``, told token states of any length. Its output is ``x0 - noise``.

    The system prompt precedes a prompt, but not a negative one. At one noise level the loss is that of diffusers' LoRA
    script, which draws its levels from the mirrored table.

    Reference:
        Qin et al., "Lumina-Image 2.0: A Unified and Efficient Image Generative Framework", ICCV 2025.
    """

    default_guidance = 4.0

    def encode_prompt(self, prompts: list[str]) -> Condition:
        """Return ``encoder_hidden_states`` [num_rows, tokens, channels] of some prompts, and their mask."""
        return self._encode([f"{self.pipeline.system_prompt} <Prompt Start> {prompt}" for prompt in prompts])

    def encode_negative(self, prompts: list[str]) -> Condition:
        """Return the same without the system prompt."""
        return self._encode(list(prompts))

    def combine(self, without: Tensor, given: Tensor, guidance_scale: float) -> Tensor:
        """Guide, then give each line of latents the norm that it has under the prompt, see ``Guidance.combine``."""
        plain: Tensor = super().combine(without, given, guidance_scale)
        guided: Tensor = plain * (given.norm(dim=-1, keepdim=True) / plain.norm(dim=-1, keepdim=True))
        return guided

    def mu(self, scheduler: Any, shape: tuple[int, ...], num_inference_steps: int) -> float:
        """Return the pipeline's shift, for which it takes the number of channels for that of tokens."""
        return super().mu(scheduler, (1, shape[0] * self.patch_size, self.patch_size), num_inference_steps)

    def velocity(self, x_t: Tensor, sigma: Tensor, told: Condition) -> Tensor:
        """Run the network, see ``Flow.velocity``."""
        found: Tensor = self.network(
            hidden_states=x_t,
            timestep=1 - sigma,
            encoder_hidden_states=told["encoder_hidden_states"].to(self.dtype),
            encoder_attention_mask=told["encoder_hidden_states_mask"],
        ).sample
        return -found

    @torch.no_grad()
    def _encode(self, texts: list[str]) -> Condition:
        states, mask = self.pipeline._get_gemma_prompt_embeds(texts, self.text_device)
        return padded([row[present] for row, present in zip(states, mask.bool(), strict=True)])
