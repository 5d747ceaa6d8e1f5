"""AuraFlow: a multimodal transformer on VAE latents, told the states of one language model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from journey.models.condition import Condition
from journey.models.flow import Flow


class AuraFlow(Flow):
    """The transformer of an ``AuraFlowPipeline``, told token states.

    Texts are padded to one length with states of zero, and the network sees the padding.
    """

    default_guidance = 3.5
    embeddings = ("encoder_hidden_states",)

    @torch.no_grad()
    def encode_prompt(self, prompts: list[str]) -> Condition:
        """Return ``encoder_hidden_states`` [num_rows, tokens, channels] of some prompts."""
        states, *_ = self.pipeline.encode_prompt(
            list(prompts), do_classifier_free_guidance=False, device=self.text_device
        )
        return Condition({"encoder_hidden_states": states})

    def set_timesteps(self, scheduler: Any, num_inference_steps: int, shape: tuple[int, ...]) -> None:
        """Use the scheduler's own sigmas, see ``Denoiser.set_timesteps``."""
        scheduler.set_timesteps(num_inference_steps)

    def velocity(self, x_t: Tensor, sigma: Tensor, told: Condition) -> Tensor:
        """Run the network, see ``Flow.velocity``."""
        states = told["encoder_hidden_states"].to(self.dtype)
        found: Tensor = self.network(x_t, encoder_hidden_states=states, timestep=sigma).sample
        return found
