"""Z-Image: one stream of image and text tokens, whose time runs from noise to image."""

from __future__ import annotations

import torch
from torch import Tensor

from journey.models.condition import Condition
from journey.models.flow import Flow, padded


class ZImage(Flow):
    """The transformer of a ``ZImagePipeline``, told token states of any length. Its output is ``x0 - noise``.

    Reference:
        Z-Image Team, "Z-Image: An Efficient Image Generation Foundation Model with Single-Stream Diffusion
        Transformer", 2025.
    """

    default_guidance = 5.0
    # The pipeline adds its scale times the difference to the prediction under the prompt.
    no_guidance = 0.0

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of the latents of 1,024 pixels, the pipeline's default."""
        return (1024 // self.scale_factor,) * 2

    @torch.no_grad()
    def encode_prompt(self, prompts: list[str]) -> Condition:
        """Return ``encoder_hidden_states`` [num_rows, tokens, channels] of some prompts, and their mask."""
        # A list of our own: the pipeline writes into it.
        rows, _ = self.pipeline.encode_prompt(list(prompts), self.text_device, do_classifier_free_guidance=False)
        return padded(rows)

    def combine(self, without: Tensor, given: Tensor, guidance_scale: float) -> Tensor:
        """Lead away from the prediction under the prompt, see ``Guidance.combine``."""
        return given + guidance_scale * (given - without)

    def velocity(self, x_t: Tensor, sigma: Tensor, told: Condition) -> Tensor:
        """Run the network on lists, see ``Flow.velocity``."""
        states, mask = told["encoder_hidden_states"].to(self.dtype), told["encoder_hidden_states_mask"]
        texts = [row[present] for row, present in zip(states, mask, strict=True)]
        found = self.network(list(x_t.unsqueeze(2)), 1 - sigma, texts).sample
        return -torch.stack(found).squeeze(2)
