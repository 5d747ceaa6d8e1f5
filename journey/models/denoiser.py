"""One view of a diffusion model for everything that measures or samples it; here of unconditional ones in pixels."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from journey.data.ids import Ids
from journey.data.items import channels_are_last, check_finite, image_of
from journey.files.fingerprint import fingerprint_tensors
from journey.models.condition import Condition, Encoded
from journey.models.guidance import Guidance
from journey.models.network import check_network, compute_dtype, sample_of, unwrapped
from journey.models.schedulers import as_schedule
from journey.models.schedules import Schedule

if TYPE_CHECKING:
    from typing_extensions import Self


class Denoiser(Guidance):
    """A denoising network with the schedule it was trained for, unconditional and in pixels.

    Other families of models are subclasses in ``journey.models``.

    Args:
        network: Called as ``network(x_t, time)``; returns the prediction or an object with ``.sample``. In eval mode.
            Taken out of ``torch.compile(network)`` and of ``DataParallel``, which would come between its layers and
            their gradients.
        scheduler: A diffusers scheduler, see ``journey.models.schedulers.as_schedule``.

    Raises:
        ValueError: If the network or a dropout in it is in train mode, some of its layers are compiled, or the
            prediction type is unknown.
        TypeError: If the scheduler has no known schedule.
    """

    def __init__(self, network: nn.Module, scheduler: Any) -> None:
        network = unwrapped(network)
        check_network(network)
        self.network = network
        self.scheduler = scheduler
        self.schedule: Schedule = self.schedule_of(scheduler)

    def schedule_of(self, scheduler: Any) -> Schedule:
        """Return the schedule that the network was trained with; raises what ``as_schedule`` does."""
        return as_schedule(scheduler)

    def around(self, network: nn.Module) -> Self:
        """Return the model around another network of the same architecture, to train it.

        The parts that encode images and text stay behind: it is small, and can be sent to another process.

        Args:
            network: The other network.

        Returns:
            The model, which predicts and encodes nothing.
        """
        other = copy(self)
        other.network = network
        return other

    @property
    def num_train_timesteps(self) -> int:
        """Number of timesteps of the schedule; timesteps are 0 ... num_train_timesteps - 1."""
        return self.schedule.num_train_timesteps

    @property
    def boundaries(self) -> tuple[int, ...]:
        """Timesteps at which another network takes over, ascending; none of a model that is one network."""
        return ()

    @property
    def prediction_type(self) -> str:
        """What the network predicts, see ``journey.models.schedules.Schedule``."""
        return self.schedule.prediction_type

    @property
    def device(self) -> torch.device:
        """Where the network's parameters are."""
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the network's layers compute in, see ``journey.models.network.compute_dtype``."""
        return compute_dtype(self.network)

    @property
    def in_channels(self) -> int | None:
        """Channels of an image, where the network's config tells."""
        return getattr(getattr(self.network, "config", None), "in_channels", None)

    @property
    def sample_size(self) -> tuple[int, ...] | None:
        """Height and width of an image, of a video frames before them, where the network's config tells."""
        size = getattr(getattr(self.network, "config", None), "sample_size", None)
        return (size, size) if isinstance(size, int) else tuple(size) if size is not None else None

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of what the network denoises, an image or its latents, where the model tells. [C, H, W]"""
        if self.in_channels is None or self.sample_size is None:
            return None
        return (self.in_channels, *self.sample_size)

    def predict(self, x_t: Tensor, timesteps: Tensor, condition: Condition | None = None) -> Tensor:
        """Return the network's prediction in float32.

        Args:
            x_t: Noised images. [num_rows, C, H, W]
            timesteps: One per row, int64. [num_rows]
            condition: What the network is told, one row per image.

        Returns:
            The prediction, in the sense of ``prediction_type``. [num_rows, C, H, W]
        """
        return self.predict_at(x_t, self.schedule.network_time(timesteps), condition)

    def predict_at(self, x_t: Tensor, times: Tensor, condition: Condition | None = None) -> Tensor:
        """Return the prediction for times as the scheduler counts them, which may lie between timesteps.

        Args:
            x_t: Noised images. [num_rows, C, H, W]
            times: One per row. [num_rows]
            condition: As for ``predict``.

        Returns:
            The prediction, float32. [num_rows, C, H, W]

        Raises:
            ValueError: If the network's answer has other rows, or more entries.
        """
        found = self._call(x_t.to(self.dtype), times, condition)
        # Fewer entries may be what a measurement of the caller's own is about.
        if len(found) != len(x_t) or found.numel() > x_t.numel():
            raise ValueError(
                f"network must return what has the shape of its input {list(x_t.shape)}, got {list(found.shape)}; one "
                "that predicts a variance too needs a Denoiser of your own that leaves it away"
            )
        return found.float()

    def _call(self, x_t: Tensor, times: Tensor, condition: Condition | None) -> Tensor:
        """Run the network. [num_rows, C, H, W]"""
        if condition is not None:
            raise ValueError(f"condition must be None for an unconditional model, got {', '.join(condition.tensors)}")
        return sample_of(self.network(x_t, times))

    def _told(self, condition: Condition | None) -> Condition:
        """The condition on the model's device, for a network that cannot do without."""
        if condition is None:
            raise ValueError(
                f"{type(self).__name__} must be told something: give prompt, class_labels or condition, got None"
            )
        return condition.to(self.device)

    def encode_labels(self, labels: list[int]) -> Condition:
        """Return the condition of some class labels, one row each.

        Raises:
            TypeError: If the model has no classes.
        """
        raise TypeError(f"class_labels must be None for {type(self).__name__}, which has no classes, got {labels[:1]}")

    @property
    def frozen(self) -> dict[str, nn.Module]:
        """The parts that run once per image and are not measured, by name."""
        return {}

    def encode(self, items: list[Any], ids: Ids, names: list[str] | None = None) -> Encoded:
        """Return samples as the network takes them; the frozen parts run here and nowhere else.

        Args:
            items: What the dataset gave.
            ids: Their ids, by which what is random in an encoding is keyed.
            names: What they are called in errors, ``dataset[i]`` by default.

        Returns:
            The samples.

        Raises:
            ValueError: If an image does not fit the model or is not finite, or a caption or label is missing.
            TypeError: If an item has an unknown form.
        """
        names = [f"dataset[{i}]" for i in ids] if names is None else names
        images = [image_of(item, name) for item, name in zip(items, names, strict=True)]
        for image, name in zip(images, names, strict=True):
            self.check_image(image, name)
            if image.shape != images[0].shape:
                raise ValueError(f"{name} must be {list(images[0].shape)} as {names[0]}, got {list(image.shape)}")
        x0 = self.encode_images(torch.stack(images), ids)
        return Encoded(x0, *self.encode_conditions(items, names))

    def encode_images(self, images: Tensor, ids: Ids) -> Tensor:
        """Return images as the network denoises them, float32: themselves, or their latents. [num_samples, C, H, W]"""
        return images

    def encode_conditions(self, items: list[Any], names: list[str]) -> tuple[Condition | None, list[int]]:
        """Return what the network is told with some items, one row per caption, and how many rows each item has."""
        return None, [1] * len(items)

    def describe(self, item: Any, name: str) -> Any:
        """Return what an item tells the network, as a JSON value, by which items are told apart."""
        return None

    def shape_of(self, size: tuple[int, ...] | None) -> tuple[int, ...]:
        """Return the shape of what the network denoises for images of some size, by default the model's. [C, H, W]

        Args:
            size: Height and width of an image in pixels.

        Returns:
            The shape.

        Raises:
            TypeError: If it needs the model's own shape, which the model does not tell.
            ValueError: If the model cannot make images of that size.
        """
        if self.shape is None:
            raise TypeError(
                f"model must tell in_channels and sample_size in its config, {type(self.network).__name__} does not; "
                "network.config = types.SimpleNamespace(in_channels=3, sample_size=32) would"
            )
        if size is not None and len(size) != len(self.shape) - 1:
            raise ValueError(
                f"size must be {len(self.shape) - 1} numbers, as the model's images have, got {tuple(size)}"
            )
        levels = len(getattr(self.network.config, "down_block_types", ())) if _halves_exactly(self.network) else 1
        step = 2 ** (levels - 1)
        if size is not None and any(pixels % step for pixels in size):
            raise ValueError(f"size must be a height and width that {step} divides, as the model takes, got {size}")
        return self.shape if size is None else (self.shape[0], *size)

    @property
    def is_latent(self) -> bool:
        """Whether the network denoises latents instead of images."""
        return False

    def decode(self, x0: Tensor) -> Tensor:
        """Return images in [-1, 1] from what the network denoises, float32. [num_rows, C, H, W]"""
        return x0.clamp(-1, 1)

    def fingerprint(self) -> dict[str, Any]:
        """Return what encoded samples depend on besides the dataset, as JSON values; empty where nothing is encoded."""
        return {name: fingerprint_tensors(part.state_dict()) for name, part in self.frozen.items()}

    def set_timesteps(self, scheduler: Any, num_inference_steps: int, shape: tuple[int, ...]) -> None:
        """Prepare a scheduler for sampling as the model's pipeline does.

        Args:
            scheduler: Changed.
            num_inference_steps: Steps of the sampler.
            shape: Shape of one image in the model's space, on which some schedules depend. [C, H, W]
        """
        scheduler.set_timesteps(num_inference_steps)

    def add_noise(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return ``x_t = signal_t x0 + sigma_t noise``. [num_rows, C, H, W]"""
        return self.schedule.add_noise(x0, noise, timesteps)

    def target(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return what the network was trained to predict. [num_rows, C, H, W]"""
        return self.schedule.target(x0, noise, timesteps)

    def check_image(self, image: Tensor, what: str) -> None:
        """Refuse an image that does not fit the network or is not finite.

        Args:
            image: One image. [C, H, W]
            what: Names the image in the error, such as ``"dataset[7]"``.

        Raises:
            ValueError: If the number of channels or the size is wrong, or a pixel is NaN or infinite.
        """
        self._check_channels(image, what)
        if self.sample_size is not None and tuple(image.shape[1:]) != self.sample_size:
            raise ValueError(
                f"{what} must be {self.sample_size} pixels, as the model takes, got {tuple(image.shape[1:])}"
            )
        check_finite(image, what)

    def _check_channels(self, image: Tensor, what: str) -> None:
        if image.dim() != 3:
            raise ValueError(f"{what} must be an image [C, H, W], got {list(image.shape)}")
        if self.in_channels is not None and image.shape[0] != self.in_channels:
            cure = "; images are [C, H, W], permute(2, 0, 1) makes them so" if channels_are_last(image) else ""
            raise ValueError(
                f"{what} must have {self.in_channels} channels, as the model takes, got {list(image.shape)}{cure}"
            )


def _halves_exactly(network: nn.Module) -> bool:
    """Whether a network cannot enlarge to odd sizes what it halved, as diffusers' conditional one can."""
    return any(kind.__name__ == "UNet2DModel" for kind in type(network).__mro__)
