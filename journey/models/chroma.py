"""Chroma: Flux without its guidance and its pooled embedding, on packed latents."""

from __future__ import annotations

import torch
from torch import Tensor

from journey.models.condition import Condition
from journey.models.flow import Flow, pack, unpack
from journey.models.flux import image_ids


class Chroma(Flow):
    """The transformer of a ``ChromaPipeline``, told token states.

    Texts are padded to one length. The pipeline adds 1 to the logits of the tokens that count and 0 to those of the
    padding after the first; so does this adapter, and the padding is not cut away.
    """

    default_guidance = 5.0
    embeddings = ("encoder_hidden_states", "counts")

    @torch.no_grad()
    def encode_prompt(self, prompts: list[str]) -> Condition:
        """Return ``encoder_hidden_states`` [num_rows, tokens, channels] of some prompts, and what each token counts."""
        states, _, counts, *_ = self.pipeline.encode_prompt(
            list(prompts), device=self.text_device, do_classifier_free_guidance=False
        )
        return Condition({"encoder_hidden_states": states, "counts": counts})

    def velocity(self, x_t: Tensor, sigma: Tensor, told: Condition) -> Tensor:
        """Run the network on tokens of 2x2 latents, see ``Flow.velocity``."""
        tokens, states = pack(x_t), told["encoder_hidden_states"].to(self.dtype)
        found = self.network(
            hidden_states=tokens,
            timestep=sigma,
            encoder_hidden_states=states,
            txt_ids=states.new_zeros(states.shape[1], 3),
            img_ids=image_ids(x_t),
            attention_mask=torch.cat([told["counts"].to(states), tokens.new_ones(tokens.shape[:2])], 1),
        ).sample
        return unpack(found, x_t.shape)
