"""Models that denoise the latents of a variational autoencoder."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from journey.data.ids import Ids
from journey.data.items import check_finite
from journey.models.denoiser import Denoiser
from journey.models.network import check_chance, check_offload
from journey.ops.keys import derive_key, to_signed
from journey.ops.noise import keyed_noise

if TYPE_CHECKING:
    from typing_extensions import Self


class LatentDenoiser(Denoiser):
    """A denoiser of VAE latents, from a diffusers pipeline.

    Latents are ``(z - shift_factor) * scaling_factor`` with z the mean of the VAE's posterior, or a sample of it.

    Args:
        pipeline: A diffusers pipeline with ``vae`` and ``scheduler``, all parts in eval mode.
        network: The denoising network of the pipeline.
        latents: ``"mean"`` of the posterior, or ``"sample"``: one sample, keyed by seed and sample id.
        seed: Names the samples.

    Raises:
        ValueError: If a part is in train mode or offloaded to the meta device, ``latents`` is neither, or a sample is
            asked of a VAE that has no posterior.
        TypeError: If the VAE is of another kind.
    """

    # The network works on squares of so many latents.
    patch_size = 1

    # Classes of diffusers whose latents the family knows how to scale.
    autoencoders: tuple[str, ...] = ("AsymmetricAutoencoderKL", "AutoencoderKL", "AutoencoderTiny")

    def __init__(self, pipeline: Any, network: nn.Module, *, latents: str = "mean", seed: int = 0) -> None:
        super().__init__(network, pipeline.scheduler)
        if latents not in ("mean", "sample"):
            raise ValueError(f'latents must be "mean" or "sample", got {latents!r}')
        kinds = [kind.__name__ for kind in type(pipeline.vae).__mro__]
        if not set(kinds) & set(self.autoencoders):
            raise TypeError(f"vae of the pipeline must be one of {', '.join(self.autoencoders)}, got {kinds[0]}")
        pointed = [kind for kind in kinds if kind in ("AutoencoderTiny", "VQModel")]
        if latents == "sample" and pointed:
            raise ValueError(f"latents must be \"mean\" for {pointed[0]}, which has no posterior, got 'sample'")
        self.pipeline = pipeline
        self.config: Any = self.network.config
        self.latents = latents
        self.seed = seed
        training = [name for name, part in self.frozen.items() if part.training]
        if training:
            raise ValueError(f"{', '.join(training)} of the pipeline must be in eval mode, got train mode; call eval()")
        for name, part in self.frozen.items():
            check_chance(part, name)
            check_offload(part, name)

    def around(self, network: nn.Module) -> Self:
        """Return the model around another network, see ``Denoiser.around``; of the VAE it knows the sizes alone."""
        other = super().around(network)
        other.pipeline = SimpleNamespace(vae=SimpleNamespace(config=self.pipeline.vae.config))
        return other

    @property
    def frozen(self) -> dict[str, nn.Module]:
        """The parts that run once per image: the VAE and the text encoders."""
        names = ("vae", "text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4")
        parts = {name: getattr(self.pipeline, name, None) for name in names}
        return {name: part for name, part in parts.items() if part is not None}

    @property
    def in_channels(self) -> int:
        """Channels of an image."""
        return int(self.pipeline.vae.config.in_channels)

    @property
    def scale_factor(self) -> int:
        """Pixels per latent in each direction."""
        return int(2 ** (len(self.pipeline.vae.config.block_out_channels) - 1))

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of the latents that the model was made for."""
        size = self.config.sample_size
        return (size, size) if isinstance(size, int) else tuple(size)

    @property
    def sample_size(self) -> tuple[int, ...]:
        """Height and width of an image that the model was made for."""
        height, width = self.latent_size
        return height * self.scale_factor, width * self.scale_factor

    @property
    def is_latent(self) -> bool:
        """True."""
        return True

    def shape_of(self, size: tuple[int, ...] | None) -> tuple[int, ...]:
        """Return the shape of the latents of an image, see ``Denoiser.shape_of``."""
        if size is None:
            return self.shape
        if len(size) != 2:
            raise ValueError(f"size must be a height and a width, for images have no frames, got {tuple(size)}")
        step = self.scale_factor * self.patch_size
        if any(pixels % step or pixels < step for pixels in size):
            raise ValueError(f"size must be a height and width that {step} divides, as the model takes, got {size}")
        return (self.shape[0], size[0] // self.scale_factor, size[1] // self.scale_factor)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the latents of an image of ``sample_size``. [C, H, W]"""
        return (int(self.pipeline.vae.config.latent_channels), *self.latent_size)

    def check_image(self, image: Tensor, what: str) -> None:
        """Refuse an image that does not fit the VAE or is not finite; its size may differ from ``sample_size``.

        Args:
            image: One image. [C, H, W]
            what: Names the image in the error.

        Raises:
            ValueError: If the number of channels or the size is wrong, or a pixel is NaN or infinite.
        """
        self._check_channels(image, what)
        try:
            self.shape_of((image.shape[1], image.shape[2]))
        except ValueError as error:
            raise ValueError(f"{what} does not fit: {error}") from None
        check_finite(image, what)

    @property
    def _shift(self) -> float:
        return float(getattr(self.pipeline.vae.config, "shift_factor", None) or 0.0)

    @torch.no_grad()
    def encode_images(self, images: Tensor, ids: Ids) -> Tensor:
        """Return the latents of images, see ``Denoiser.encode_images``."""
        vae = self.pipeline.vae
        posterior = self._posterior(images.to(vae.device, vae.dtype))
        z = posterior.mean.float()
        if self.latents == "sample":
            keys = torch.tensor(
                [to_signed(derive_key(self.seed, "posterior", i)) for i in ids], dtype=torch.int64, device="cpu"
            )
            noise = keyed_noise(keys, 1, tuple(z.shape[1:]), z.device, antithetic=False, per=1)[:, 0, 0]
            z = z + posterior.std.float() * noise
        return self._scaled(z)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return the images of latents, see ``Denoiser.decode``."""
        vae = self.pipeline.vae
        images: Tensor = self._images(self._unscaled(latents.to(vae.device)).to(vae.dtype))
        return images.float().clamp(-1, 1)

    def _posterior(self, images: Tensor) -> Any:
        """What the VAE makes of images: an object with ``mean`` and ``std``, each [num_rows, C, H, W]."""
        encoded = self.pipeline.vae.encode(images)
        # A tiny one, and one that quantises, have no posterior.
        return SimpleNamespace(mean=encoded.latents) if hasattr(encoded, "latents") else encoded.latent_dist

    def _images(self, z: Tensor) -> Tensor:
        """The VAE's images. [num_rows, C, height, width]"""
        images: Tensor = self.pipeline.vae.decode(z).sample
        return images

    def _scaled(self, z: Tensor) -> Tensor:
        """Latents as the network takes them, from those of the VAE."""
        latents: Tensor = (z - self._shift) * self.pipeline.vae.config.scaling_factor
        return latents

    def _unscaled(self, latents: Tensor) -> Tensor:
        """The other way round."""
        z: Tensor = latents / self.pipeline.vae.config.scaling_factor + self._shift
        return z

    def fingerprint(self) -> dict[str, Any]:
        """Return what the latents depend on, see ``Denoiser.fingerprint``."""
        mode = {"latents": self.latents, **({"seed": self.seed} if self.latents == "sample" else {})}
        return {**super().fingerprint(), **mode}
