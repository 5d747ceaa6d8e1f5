"""HunyuanDiT: a transformer on VAE latents that attends to the states of two text encoders, a Chinese one and T5."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from journey.models.apart import rows_apart
from journey.models.condition import Condition
from journey.models.latent import LatentDenoiser
from journey.models.text import TextDenoiser

# The image size that positions are scaled to, and the original size that the pipeline tells, in pixels.
_BASE, _ORIGINAL = 512, (1024.0, 1024.0)


class HunyuanDiT(TextDenoiser, LatentDenoiser):
    """The transformer of a ``HunyuanDiTPipeline``, told the states of both encoders at their full lengths.

    Versions that are told sizes hear what the pipeline tells them by default: an original of 1,024 pixels, not
    cropped, and the size of the image. The half of the output that is a variance is left away.

    Args:
        pipeline: The pipeline, in eval mode.
        latents: See ``LatentDenoiser``.
        seed: See ``LatentDenoiser``.

    Raises:
        ValueError: If a part is in train mode.

    Reference:
        Li et al., "Hunyuan-DiT: A Powerful Multi-Resolution Diffusion Transformer with Fine-Grained Chinese
        Understanding", 2024.
    """

    default_guidance = 5.0
    embeddings = (
        "encoder_hidden_states",
        "encoder_hidden_states_mask",
        "encoder_hidden_states_t5",
        "encoder_hidden_states_t5_mask",
    )

    def __init__(self, pipeline: Any, *, latents: str = "mean", seed: int = 0) -> None:
        super().__init__(pipeline, pipeline.transformer, latents=latents, seed=seed)
        self.patch_size = int(self.config.patch_size)

    @torch.no_grad()
    def encode_prompt(self, prompts: list[str]) -> Condition:
        """Return the states [num_rows, tokens, channels] of both encoders, and their masks."""
        found: dict[str, Tensor] = {}
        for index, (name, length) in enumerate((("encoder_hidden_states", 77), ("encoder_hidden_states_t5", 256))):
            states, _, mask, _ = self.pipeline.encode_prompt(
                list(prompts),
                device=self.text_device,
                do_classifier_free_guidance=False,
                max_sequence_length=length,
                text_encoder_index=index,
            )
            found |= {name: states, f"{name}_mask": mask.bool()}
        return Condition(found)

    def _call(self, x_t: Tensor, times: Tensor, condition: Condition | None) -> Tensor:
        told = self._told(condition)
        size = [length * self.scale_factor for length in x_t.shape[2:]]
        t5 = told["encoder_hidden_states_t5"].to(self.dtype)
        network: Any = self.network
        pooler = network.time_extra_emb.pooler
        with rows_apart(network.text_embedder, [t5.shape[1]] * len(t5)), _pooled_by_layers(pooler):
            found: Tensor = network(
                x_t,
                times.to(x_t.dtype),
                encoder_hidden_states=told["encoder_hidden_states"].to(self.dtype),
                text_embedding_mask=told["encoder_hidden_states_mask"],
                encoder_hidden_states_t5=t5,
                text_embedding_mask_t5=told["encoder_hidden_states_t5_mask"],
                image_meta_size=x_t.new_tensor([[*_ORIGINAL, *size, 0, 0]]).repeat(len(x_t), 1),
                style=torch.zeros(len(x_t), dtype=torch.int64, device=x_t.device),
                image_rotary_emb=self._rotations(x_t),
            ).sample
        return found[:, : x_t.shape[1]]

    def _rotations(self, x_t: Tensor) -> Any:
        """The positions of the tokens, as the pipeline has them."""
        # Here, because it imports the text encoders' library.
        from diffusers.models.embeddings import get_2d_rotary_pos_embed
        from diffusers.pipelines.hunyuandit.pipeline_hunyuandit import get_resize_crop_region_for_grid

        grid = (x_t.shape[2] // self.patch_size, x_t.shape[3] // self.patch_size)
        region = get_resize_crop_region_for_grid(grid, _BASE // 8 // self.patch_size)
        network: Any = self.network
        width = network.inner_dim // network.num_heads
        return get_2d_rotary_pos_embed(width, region, grid, device=x_t.device, output_type="pt")


@contextmanager
def _pooled_by_layers(pooler: Any) -> Iterator[None]:
    """Call the layers that pool the states of T5, so that hooks see them; the network itself takes their weights alone.

    Where one is no plain layer, as with an adapter, which the network passes over, it is left to the network.
    """
    layers = (pooler.q_proj, pooler.k_proj, pooler.v_proj, pooler.c_proj)
    if any(type(layer) is not nn.Linear for layer in layers):
        yield
        return

    def forward(x: Tensor) -> Tensor:
        x = torch.cat([x.mean(1, keepdim=True), x], 1) + pooler.positional_embedding.to(x.dtype)
        parts = (pooler.q_proj(x[:, :1]), pooler.k_proj(x), pooler.v_proj(x))
        heads = [part.unflatten(-1, (pooler.num_heads, -1)).transpose(1, 2) for part in parts]
        found = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        pooled: Tensor = pooler.c_proj(found).squeeze(1)
        return pooled

    vars(pooler)["forward"] = forward
    try:
        yield
    finally:
        vars(pooler).pop("forward", None)
