"""CogVideoX: a transformer on video latents, diffused as by DDPM, that attends to the states of T5."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from journey.models.apart import frames_stacked
from journey.models.condition import Condition
from journey.models.text import TextDenoiser
from journey.models.video import VideoDenoiser


class CogVideoX(VideoDenoiser, TextDenoiser):
    """The transformer of a ``CogVideoXPipeline``, told token states of a fixed length.

    Args:
        pipeline: The pipeline, in eval mode.
        latents: See ``LatentDenoiser``.
        seed: See ``LatentDenoiser``.

    Raises:
        ValueError: If a part is in train mode, or the network is told an image.

    Reference:
        Yang et al., "CogVideoX: Text-to-Video Diffusion Models with An Expert Transformer", ICLR 2025.
    """

    default_guidance = 6.0
    autoencoders = ("AutoencoderKLCogVideoX",)
    embeddings = ("encoder_hidden_states",)
    encoders = ("text_encoder",)

    def __init__(self, pipeline: Any, *, latents: str = "mean", seed: int = 0) -> None:
        super().__init__(pipeline, pipeline.transformer, latents=latents, seed=seed)
        if self.config.in_channels != self.config.out_channels or self.config.ofs_embed_dim:
            raise ValueError(
                f"transformer of a {type(pipeline).__name__} must be told text alone, got one that is told an image"
            )
        if self.prediction_type != "v_prediction":
            raise ValueError(
                f"scheduler of a {type(pipeline).__name__} must be one of v_prediction, as its network was trained, "
                f"got {type(pipeline.scheduler).__name__} with {self.prediction_type}"
            )
        self.patch_size = int(self.config.patch_size)
        # Latent frames that version 1.5 has before those of the video, to fill up the blocks that it works on.
        self._extra = int(self.config.patch_size_t or 1) - 1
        height, width = (side * self.scale_factor for side in (self.config.sample_height, self.config.sample_width))
        self.video_size = (int(self.config.sample_frames), height, width)

    def shape_of(self, size: tuple[int, ...] | None) -> tuple[int, ...]:
        """Return the shape of the latents of a video, see ``Denoiser.shape_of``; of version 1.5 one frame more."""
        channels, frames, height, width = super().shape_of(size)
        if frames % 2 == 0:
            every = 2 * self._frames
            raise ValueError(
                f"size must have 1, {every + 1}, {2 * every + 1}, ... frames, for the autoencoder takes latent frames "
                f"in pairs behind the first, got {size}"
            )
        return (channels, frames + self._extra, height, width)

    @torch.no_grad()
    def encode_prompt(self, prompts: list[str]) -> Condition:
        """Return ``encoder_hidden_states`` [num_rows, tokens, channels] of some prompts."""
        states, _ = self.pipeline.encode_prompt(
            list(prompts),
            do_classifier_free_guidance=False,
            max_sequence_length=self.config.max_text_seq_length,
            device=self.text_device,
        )
        return Condition({"encoder_hidden_states": states})

    def _call(self, x_t: Tensor, times: Tensor, condition: Condition | None) -> Tensor:
        network: Any = self.network
        told = self._told(condition)
        # The first version embeds every frame by itself.
        embedder = network.patch_embed.proj
        apart = frames_stacked(embedder, x_t.shape[2]) if isinstance(embedder, nn.Conv2d) else nullcontext()
        with apart:
            found: Tensor = network(
                hidden_states=x_t.transpose(1, 2),
                encoder_hidden_states=told["encoder_hidden_states"].to(self.dtype),
                timestep=times,
                image_rotary_emb=self._rotations(x_t) if self.config.use_rotary_positional_embeddings else None,
            ).sample
        return found.transpose(1, 2)

    def _scaled(self, z: Tensor) -> Tensor:
        latents = super()._scaled(z)
        return torch.cat([latents[:, :, :1].repeat(1, 1, self._extra, 1, 1), latents], 2)

    def _unscaled(self, latents: Tensor) -> Tensor:
        return super()._unscaled(latents[:, :, self._extra :])

    def _rotations(self, x_t: Tensor) -> Any:
        """The positions of the tokens, as the pipeline has them."""
        # Here, because it imports the text encoders' library.
        from diffusers.models.embeddings import get_3d_rotary_pos_embed
        from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid

        patch = self.patch_size
        grid = (x_t.shape[3] // patch, x_t.shape[4] // patch)
        base = (self.config.sample_height // patch, self.config.sample_width // patch)
        shared = {"embed_dim": self.config.attention_head_dim, "grid_size": grid, "device": x_t.device}
        if self.config.patch_size_t is None:
            region = get_resize_crop_region_for_grid(grid, base[1], base[0])
            return get_3d_rotary_pos_embed(crops_coords=region, temporal_size=x_t.shape[2], **shared)
        frames = x_t.shape[2] // self.config.patch_size_t
        return get_3d_rotary_pos_embed(
            crops_coords=None, temporal_size=frames, grid_type="slice", max_size=base, **shared
        )
