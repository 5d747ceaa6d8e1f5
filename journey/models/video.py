"""Models that denoise the latents of a video autoencoder."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import Tensor

from journey.data.items import check_finite
from journey.data.numbers import as_size
from journey.models.latent import LatentDenoiser


class VideoDenoiser(LatentDenoiser):
    """A denoiser of latents [C, F, H, W] of videos [F, 3, height, width], from a diffusers pipeline.

    A family gives its ``autoencoders`` and the size that its pipeline makes by default; the rest is the same for all.
    Files are read in ``video_size`` and videos made in it where no other is asked for: set it to the size that the
    model was trained on.

    Args:
        pipeline: A diffusers pipeline with ``vae`` and ``scheduler``, all parts in eval mode.
        arguments: As for ``LatentDenoiser``.
        options: Likewise.

    Attributes:
        video_size: Frames, height and width of a video.

    Raises:
        ValueError: As ``LatentDenoiser``.
        TypeError: Likewise.
    """

    video_size: tuple[int, int, int]
    # Names of the pipeline's numbers of frames and of pixels per latent.
    factors = ("vae_scale_factor_temporal", "vae_scale_factor_spatial")
    # The network works on squares of so many latents.
    patch_size = 2

    def __init__(self, pipeline: Any, *arguments: Any, **options: Any) -> None:
        super().__init__(pipeline, *arguments, **options)
        self._frames, self._pixels = (int(getattr(pipeline, name)) for name in self.factors)

    @property
    def in_channels(self) -> int:
        """Channels of a frame."""
        return 3

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return int(self.config.in_channels)

    @property
    def scale_factor(self) -> int:
        """Pixels per latent in both directions of a frame."""
        return self._pixels

    @property
    def sample_size(self) -> tuple[int, ...]:
        """Frames, height and width of a video."""
        return as_size(self.video_size, "video_size")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the latents of a video of ``sample_size``. [C, F, H, W]"""
        return self.shape_of(self.sample_size)

    def shape_of(self, size: tuple[int, ...] | None) -> tuple[int, ...]:
        """Return the shape of the latents of a video of some frames, height and width, see ``Denoiser.shape_of``."""
        size = self.sample_size if size is None else tuple(size)
        if len(size) != 3:
            raise ValueError(f"size must be the frames, height and width of a video, got {size}")
        step, every = self.scale_factor * self.patch_size, self._frames
        if any(pixels % step or pixels < step for pixels in size[1:]):
            raise ValueError(f"size must be a height and width that {step} divides, as the model takes, got {size[1:]}")
        if size[0] < 1 or (size[0] - 1) % every:
            raise ValueError(
                f"size must have 1, {every + 1}, {2 * every + 1}, ... frames, as the model takes, got {size[0]}"
            )
        frames = (size[0] - 1) // every + 1
        return (self.latent_channels, frames, size[1] // self.scale_factor, size[2] // self.scale_factor)

    def check_image(self, image: Tensor, what: str) -> None:
        """Refuse a video that does not fit the VAE or is not finite; its size may differ from ``sample_size``.

        Args:
            image: One video. [F, C, H, W]
            what: Names the video in the error.

        Raises:
            ValueError: If it is a still image, the number of channels or the size is wrong, or a pixel is NaN or
                infinite.
        """
        if image.dim() != 4:
            raise ValueError(
                f"{what} must be a video [F, C, H, W], got {list(image.shape)}; a still image is one of a single "
                "frame, image.unsqueeze(0)"
            )
        if image.shape[1] != self.in_channels:
            raise ValueError(f"{what} must be a video [F, {self.in_channels}, H, W], got {list(image.shape)}")
        try:
            self.shape_of((image.shape[0], image.shape[2], image.shape[3]))
        except ValueError as error:
            raise ValueError(f"{what} does not fit: {error}") from None
        check_finite(image, what)

    def _posterior(self, images: Tensor) -> Any:
        found = self.pipeline.vae.encode(images.transpose(1, 2)).latent_dist
        return SimpleNamespace(mean=found.mean, std=found.std)

    def _images(self, z: Tensor) -> Tensor:
        videos: Tensor = self.pipeline.vae.decode(z).sample
        return videos.transpose(1, 2)

    @property
    def _shift(self) -> float:
        return 0.0
