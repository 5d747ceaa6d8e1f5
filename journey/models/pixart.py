"""PixArt-alpha and -sigma: a transformer on VAE latents that attends to the states of T5 and predicts the noise."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from journey.models.apart import rows_apart
from journey.models.condition import Condition
from journey.models.flow import padded
from journey.models.latent import LatentDenoiser
from journey.models.text import TextDenoiser


class PixArt(TextDenoiser, LatentDenoiser):
    """The transformer of a ``PixArtAlphaPipeline`` or ``PixArtSigmaPipeline``, told token states of any length.

    Where it is told the size of the image too, that is the size of the latents in pixels. The half of its output that
    is a variance is left away.

    Args:
        pipeline: The pipeline, in eval mode.
        latents: See ``LatentDenoiser``.
        seed: See ``LatentDenoiser``.

    Raises:
        ValueError: If a part is in train mode.

    Reference:
        Chen et al., "PixArt-alpha: Fast Training of Diffusion Transformer for Photorealistic Text-to-Image Synthesis",
        ICLR 2024.
    """

    default_guidance = 4.5
    embeddings = ("encoder_hidden_states", "encoder_hidden_states_mask")
    encoders = ("text_encoder",)

    def __init__(self, pipeline: Any, *, latents: str = "mean", seed: int = 0) -> None:
        super().__init__(pipeline, pipeline.transformer, latents=latents, seed=seed)
        self.patch_size = int(self.config.patch_size)

    @torch.no_grad()
    def encode_prompt(self, prompts: list[str]) -> Condition:
        """Return ``encoder_hidden_states`` [num_rows, tokens, channels] of some prompts, and their mask."""
        # The pipelines clean captions by default, where the libraries for it are there.
        states, mask, *_ = self.pipeline.encode_prompt(
            list(prompts), False, device=self.text_device, clean_caption=True
        )
        return padded([row[present] for row, present in zip(states, mask.bool(), strict=True)])

    def _call(self, x_t: Tensor, times: Tensor, condition: Condition | None) -> Tensor:
        told = self._told(condition).trimmed()
        size = [length * self.scale_factor for length in x_t.shape[2:]]
        sizes: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        network: Any = self.network
        with ExitStack() as apart:
            if network.use_additional_conditions:
                resolution = x_t.new_tensor([size] * len(x_t))
                sizes = {"resolution": resolution, "aspect_ratio": x_t.new_full((len(x_t), 1), size[0] / size[1])}
                embedder = network.adaln_single.emb.resolution_embedder
                apart.enter_context(rows_apart(embedder, [len(size)] * len(x_t)))
            found: Tensor = network(
                x_t,
                encoder_hidden_states=told["encoder_hidden_states"].to(self.dtype),
                encoder_attention_mask=told["encoder_hidden_states_mask"],
                timestep=times,
                added_cond_kwargs=sizes,
            ).sample
        return found[:, : x_t.shape[1]]
