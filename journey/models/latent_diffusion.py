"""Latent diffusion: an unconditional UNet on the latents of a vector-quantised autoencoder."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from journey.models.latent import LatentDenoiser


class LatentDiffusion(LatentDenoiser):
    """The UNet of an ``LDMPipeline``. Latents are those before they are quantised, which decoding begins with.

    Args:
        pipeline: The pipeline, in eval mode.
        latents: See ``LatentDenoiser``.
        seed: See ``LatentDenoiser``.

    Raises:
        ValueError: If a part is in train mode, the UNet has classes, or ``latents`` is ``"sample"`` and the autoencoder
            has no posterior.

    Reference:
        Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", CVPR 2022.
    """

    autoencoders = ("VQModel", *LatentDenoiser.autoencoders)

    def __init__(self, pipeline: Any, *, latents: str = "mean", seed: int = 0) -> None:
        parts = SimpleNamespace(vae=pipeline.vqvae, scheduler=pipeline.scheduler)
        super().__init__(parts, pipeline.unet, latents=latents, seed=seed)
        told = [name for name in ("num_class_embeds", "class_embed_type") if getattr(self.config, name, None)]
        if told:
            raise ValueError(
                f"unet of an {type(pipeline).__name__} must be told nothing, got one with {told[0]}; its pipeline "
                "cannot tell it a class either"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the latents of an image of ``sample_size``. [C, H, W]"""
        return (int(self.config.in_channels), *self.latent_size)
