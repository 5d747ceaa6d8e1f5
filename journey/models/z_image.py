"""Z-Image: one stream of image and text tokens, whose time runs from noise to image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from journey.models.apart import rows_apart
from journey.models.condition import Condition
from journey.models.flow import Flow, padded

# The network pads images and texts to a multiple of so many tokens.
_TOKENS = 32


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
        tokens = x_t.shape[2] * x_t.shape[3] // self.patch_size**2
        network: Any = self.network
        with ExitStack() as apart:
            apart.enter_context(_filled_by_rows(network))
            apart.enter_context(rows_apart(network.cap_embedder, [_filled(len(text)) for text in texts]))
            for embedder in network.all_x_embedder.values():
                apart.enter_context(rows_apart(embedder, [_filled(tokens)] * len(x_t)))
            found = network(list(x_t.unsqueeze(2)), 1 - sigma, texts).sample
        return -torch.stack(found).squeeze(2)


@contextmanager
def _filled_by_rows(network: Any) -> Iterator[None]:
    """Fill up the tokens of each row beside those of the others, so that each may have a filling token of its own.

    The network does it to the tokens of all rows as one. Versions of diffusers that do it elsewhere are left alone;
    there the filling tokens have no gradient rule.
    """
    inner = getattr(network, "_prepare_sequence", None)
    if inner is None:
        yield
        return

    def prepare(feats: list[Tensor], positions: Any, fill: list[Tensor], token: Tensor, *arguments: Any) -> Any:
        stacked = pad_sequence(feats, batch_first=True)
        filled = torch.where(pad_sequence(fill, batch_first=True).unsqueeze(-1), token, stacked)
        rows = [row[: len(own)] for row, own in zip(filled, feats, strict=True)]
        none = [torch.zeros_like(own) for own in fill]
        return inner(rows, positions, none, torch.zeros_like(feats[0][:1]), *arguments)

    vars(network)["_prepare_sequence"] = prepare
    try:
        yield
    finally:
        vars(network).pop("_prepare_sequence", None)


def _filled(tokens: int) -> int:
    """How many tokens the network makes of so many."""
    return -(-tokens // _TOKENS) * _TOKENS
