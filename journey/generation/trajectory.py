"""The recorded steps of generated images: the latent and the predicted image at each."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from journey.files.paths import GivenPath
from journey.files.tensors import Fields, check_fields, read_tensors, write_tensors
from journey.generation.sampler import Sampler
from journey.models.condition import Condition, Encoded
from journey.models.load import as_denoiser
from journey.models.schedules import Schedule, nearest_levels

_TENSORS = ("timesteps", "x_t", "x0_hat", "images")
_SETTINGS: Fields = {
    "guidance_scale": (int, float),
    "num_inference_steps": (int, type(None)),
    "prompts": list,
    "schedule": (str, type(None)),
}
# Signal and noise of one timestep that two schedules may differ by and still mean the same.
_SAME_LEVEL = 1e-4


@dataclass(frozen=True)
class Trajectory:
    """The recorded steps of some generated images, on the CPU, in the space that the network denoises.

    That is the images themselves in [-1, 1], or the latents of an autoencoder; then ``pixels`` has the decoded images,
    so that pictures need no model. A video is [C, F, H, W] as latents and [F, 3, height, width] in pixels, a sound
    [C, T] as both.

    Attributes:
        timesteps: The recorded timesteps, descending as they were sampled, int64. [num_steps]
        x_t: The latents before each step, as the network saw them, float32. [num_queries, num_steps, C, ...]
        x0_hat: The image predicted from each, float32. [num_queries, num_steps, C, ...]
        images: The images at the end, float32. [num_queries, C, ...]
        condition: What the network was told, one row per image; None for an unconditional model.
        negative: What guidance led away from, one row for all images; None without guidance.
        guidance_scale: The strength of classifier-free guidance.
        num_inference_steps: Steps of the sampler; None for as many as were recorded.
        prompts: What was asked for, in words, one per image; empty for an unconditional model.
        pixels: Of latent models, every ``x0_hat`` and then the image, decoded, uint8; of sounds int16.
            [num_queries, num_steps + 1, 3, height, width], [..., F, 3, height, width] or [..., C, T]
        schedule: Fingerprint of the noise schedule whose timesteps these are; None for a trajectory of the caller's
            own, whose timesteps are taken to be those of the model that they are used with.
        levels: Factors of image and noise that each timestep means there, float32; None likewise. [num_steps, 2]
    """

    timesteps: Tensor
    x_t: Tensor
    x0_hat: Tensor
    images: Tensor
    condition: Condition | None = None
    negative: Condition | None = None
    guidance_scale: float = 1.0
    num_inference_steps: int | None = None
    prompts: tuple[str, ...] = ()
    pixels: Tensor | None = None
    schedule: str | None = None
    levels: Tensor | None = None

    def __post_init__(self) -> None:
        """Check that the shapes agree."""
        expected = (self.images.shape[0], len(self.timesteps), *self.images.shape[1:])
        for name in ("x_t", "x0_hat"):
            if tuple(getattr(self, name).shape) != expected:
                raise ValueError(
                    f"{name} must be [num_queries, num_steps, C, ...] = {list(expected)}, "
                    f"got {list(getattr(self, name).shape)}"
                )
        for name, found in (("condition", self.condition), ("prompts", self.prompts or None)):
            if found is not None and len(found) != expected[0]:
                raise ValueError(f"{name} must have one row for each of {expected[0]} images, got {len(found)}")
        if self.pixels is not None and tuple(self.pixels.shape[:2]) != (expected[0], expected[1] + 1):
            raise ValueError(
                f"pixels must be [num_queries, num_steps + 1, ...] = [{expected[0]}, {expected[1] + 1}, ...], "
                f"got {list(self.pixels.shape)}"
            )

    def check_schedule(self, schedule: Schedule) -> None:
        """Refuse a noise schedule under which the recorded timesteps mean other noise, or do not exist.

        Args:
            schedule: That of the model, or the features, that the trajectory is used with.

        Raises:
            ValueError: If the trajectory is of another schedule; names a timestep and what it means in both.
        """
        last, num = int(self.timesteps.max()), schedule.num_train_timesteps
        cure = "trajectory.on(model) counts its steps in the timesteps of the features' model that have the same noise"
        if last >= num:
            raise ValueError(
                f"trajectory must be of the features' noise schedule, which has {num} timesteps, got timestep {last}; "
                f"{cure}"
            )
        if self.levels is None or self.schedule == schedule.fingerprint():
            return
        here = schedule.levels(self.timesteps)
        apart = (self.levels - here).abs().amax(1)
        worst = int(apart.argmax())
        if apart[worst] > _SAME_LEVEL:
            pairs = (levels[worst].tolist() for levels in (self.levels, here))
            then, now = (f"{signal:.3g} of the image and {sigma:.3g} of the noise" for signal, sigma in pairs)
            raise ValueError(
                "trajectory must be of the features' noise schedule, got one of another: timestep "
                f"{int(self.timesteps[worst])} means {then} where it was recorded, and {now} here; {cure}"
            )

    def on(self, model: Any) -> Trajectory:
        """Return the trajectory in the timesteps of another model, to be scored with features of that one.

        A distilled network (turbo, Lightning, an LCM-LoRA) makes images in a few steps of a schedule of its own, and
        has no denoising loss; the model that it was distilled from has. Each step becomes the timestep with the same
        ratio of noise to image there. Predicted images stay as they are, latents are scaled to the model's own.

        Args:
            model: As for ``record``; it must denoise the same space, images or latents of the same autoencoder.

        Returns:
            The trajectory.

        Raises:
            ValueError: If the model denoises something of another shape, has no timestep of the same noise as a step,
                or one for two of them.
        """
        denoiser = as_denoiser(model)
        channels = None if denoiser.shape is None else denoiser.shape[0]
        if channels not in (None, self.images.shape[1]):
            raise ValueError(
                f"model must denoise what the trajectory is of, {self.images.shape[1]} channels, got one of {channels}"
            )
        if self.levels is None:
            raise ValueError("trajectory must say what noise its steps mean (levels), got none, as one of your own has")
        indices = nearest_levels(denoiser.schedule, self.levels, self.timesteps.tolist())
        timesteps = torch.tensor(indices, dtype=torch.int64, device="cpu")
        levels = denoiser.schedule.levels(timesteps)
        scales = (levels.norm(dim=1) / self.levels.norm(dim=1)).view(-1, *(1,) * (self.images.dim() - 1))
        fingerprint = denoiser.schedule.fingerprint()
        return replace(self, timesteps=timesteps, x_t=self.x_t * scales, schedule=fingerprint, levels=levels)

    @property
    def num_queries(self) -> int:
        """Number of generated images."""
        return len(self.images)

    def spread(self, count: int) -> list[int]:
        """Return some of the recorded timesteps, evenly spread: the middles of equal parts of the steps.

        Args:
            count: How many, at most.

        Returns:
            The timesteps, in their order.

        Raises:
            ValueError: If ``count`` is not positive.
        """
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        total = len(self.timesteps)
        count = min(count, total)
        return [int(self.timesteps[(2 * i + 1) * total // (2 * count)]) for i in range(count)]

    @property
    def finished(self) -> Encoded:
        """The images at the end as samples, with what the network was told."""
        return Encoded.single(self.images, self.condition)

    @property
    def image_pixels(self) -> Tensor:
        """The images at the end as pictures, videos or sounds in [-1, 1]. [num_queries, ...]"""
        return self.images if self.pixels is None else _unpacked(self.pixels[:, -1])

    @property
    def x0_pixels(self) -> Tensor:
        """The predicted images as pictures, videos or sounds in [-1, 1]. [num_queries, num_steps, ...]"""
        return torch.stack([self.predicted(step) for step in range(len(self.timesteps))], 1)

    def predicted(self, step: int) -> Tensor:
        """Return the images predicted at one recorded step, as ``x0_pixels`` has them. [num_queries, ...]"""
        return self.x0_hat[:, step] if self.pixels is None else _unpacked(self.pixels[:, step])

    @property
    def x_t_pixels(self) -> Tensor:
        """The noised images as pictures; of latents, which are none, the first three channels over three deviations.

        Latents of a sound are a grey picture, channels by positions. [num_queries, num_steps, ...]
        """
        if self.pixels is None:
            return self.x_t
        if self.x_t.dim() == 4:
            return self.x_t.unsqueeze(2) / 3
        shown = self.x_t[:, :, :3] / 3
        return shown if shown.dim() == 5 else shown.transpose(2, 3)

    def sampler(self, model: Any, query: int = 0, *, stochastic: bool = False) -> Sampler:
        """Return a sampler for other ends of one image: the same steps, condition and guidance.

        Args:
            model: The model, as for ``record``.
            query: Which image.
            stochastic: See ``journey.generation.sampler.Sampler``.

        Returns:
            The sampler; ``x_t[query, i]`` goes into its ``steps``.

        Raises:
            ValueError: If the model has another noise schedule than the trajectory.
        """
        denoiser = as_denoiser(model)
        self.check_schedule(denoiser.schedule)
        return Sampler(
            denoiser,
            self.num_inference_steps or len(self.timesteps),
            condition=None if self.condition is None else self.condition.select([query]),
            guidance_scale=self.guidance_scale,
            negative=self.negative,
            shape=tuple(self.images.shape[1:]),
            stochastic=stochastic,
        )

    def save(self, path: GivenPath) -> None:
        """Write the trajectory as one safetensors file; equal trajectories give equal bytes."""
        tensors = {name: getattr(self, name) for name in _TENSORS}
        for name, told in (("condition", self.condition), ("negative", self.negative)):
            tensors |= {} if told is None else {f"{name}.{key}": tensor for key, tensor in told.tensors.items()}
        if self.pixels is not None:
            tensors["pixels"] = self.pixels
        if self.levels is not None:
            tensors["levels"] = self.levels
        settings = {
            "guidance_scale": self.guidance_scale,
            "num_inference_steps": self.num_inference_steps,
            "prompts": self.prompts,
            "schedule": self.schedule,
        }
        tensors["settings"] = torch.frombuffer(bytearray(json.dumps(settings).encode()), dtype=torch.uint8)
        write_tensors(path, "trajectory", tensors)

    @staticmethod
    def load(path: GivenPath) -> Trajectory:
        """Read what ``save`` wrote.

        Args:
            path: The file.

        Returns:
            The trajectory.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is damaged, holds something else or is of an older version.
        """
        saved = read_tensors(path, "trajectory", (*_TENSORS, "settings"))
        try:
            settings = check_fields(json.loads(bytes(saved["settings"].tolist())), _SETTINGS, "settings")
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}; record it again") from error

        def told(name: str) -> Condition | None:
            rows = {key.partition(".")[2]: t for key, t in saved.items() if key.startswith(f"{name}.")}
            return Condition(rows) if rows else None

        return Trajectory(
            **{name: saved[name] for name in _TENSORS},
            condition=told("condition"),
            negative=told("negative"),
            guidance_scale=settings["guidance_scale"],
            num_inference_steps=settings["num_inference_steps"],
            prompts=tuple(settings["prompts"]),
            pixels=saved.get("pixels"),
            schedule=settings["schedule"],
            levels=saved.get("levels"),
        )


def packed(pictures: Tensor) -> Tensor:
    """Return pictures or videos [..., 3, height, width] in [-1, 1] with 8 bits, sounds [num, C, T] with 16."""
    if pictures.dim() == 3:
        return (pictures * 32767).round().to(torch.int16)
    return (pictures + 1).mul(127.5).round().to(torch.uint8)


def _unpacked(pixels: Tensor) -> Tensor:
    """What ``packed`` was made of, float32."""
    return pixels.float() / 32767 if pixels.dtype == torch.int16 else pixels.float() / 127.5 - 1
