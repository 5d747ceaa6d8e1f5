"""Recording how a model makes an image: the latent and the predicted image at every step."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from journey.denoiser import as_denoiser
from journey.draws import keyed_noise
from journey.keys import derive_key, to_signed

_TENSORS = ("timesteps", "x_t", "x0_hat", "images")


@dataclass(frozen=True)
class Trajectory:
    """The recorded steps of some generated images, on the CPU, in the model's range [-1, 1].

    Attributes:
        timesteps: The recorded timesteps, descending as they were sampled, int64. [num_steps]
        x_t: The latents before each step, float32. [num_queries, num_steps, C, H, W]
        x0_hat: The image predicted from each, float32. [num_queries, num_steps, C, H, W]
        images: The images at the end, float32. [num_queries, C, H, W]
    """

    timesteps: Tensor
    x_t: Tensor
    x0_hat: Tensor
    images: Tensor

    def __post_init__(self) -> None:
        """Check that the shapes agree."""
        expected = (self.images.shape[0], len(self.timesteps), *self.images.shape[1:])
        for name in ("x_t", "x0_hat"):
            if tuple(getattr(self, name).shape) != expected:
                raise ValueError(
                    f"{name} must be [num_queries, num_steps, C, H, W] = {list(expected)}, "
                    f"got {list(getattr(self, name).shape)}"
                )

    @property
    def num_queries(self) -> int:
        """Number of generated images."""
        return len(self.images)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the trajectory as one safetensors file."""
        save_file({name: getattr(self, name).contiguous() for name in _TENSORS}, path, metadata={"kind": "trajectory"})

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Trajectory:
        """Read what ``save`` wrote.

        Args:
            path: The file.

        Returns:
            The trajectory.

        Raises:
            ValueError: If the file holds something else.
        """
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("kind") != "trajectory":
                raise ValueError(f"{os.fspath(path)} is not a saved trajectory")
            return Trajectory(**{name: file.get_tensor(name) for name in _TENSORS})


def record(
    pipeline: Any,
    *,
    seed: int = 0,
    num_images: int = 1,
    num_inference_steps: int = 50,
    steps: Sequence[int] | None = None,
    progress: bool = True,
) -> Trajectory:
    """Sample images with the model's scheduler and keep x_t and the predicted image at chosen steps.

    Args:
        pipeline: The model, as for ``journey.featurize``, with a scheduler whose steps give ``pred_original_sample``
            (DDPM, DDIM).
        seed: Names the images: image i of a seed is the same for any ``num_images`` and on every device.
        num_images: Images to make.
        num_inference_steps: Steps of the sampler.
        steps: Which of the sampler's timesteps to keep; all by default.
        progress: Show a progress bar.

    Returns:
        The recorded trajectory.

    Raises:
        ValueError: If a step is not among the sampler's timesteps, or a number is not positive.
        TypeError: If the model has an unknown form or the scheduler gives no predicted image.

    Reference:
        Ho et al., NeurIPS 2020, Eq. 15, for the predicted image; Georgiev et al., 2023, section 3, for its use.
    """
    denoiser = as_denoiser(pipeline)
    if denoiser.in_channels is None or denoiser.sample_size is None:
        raise TypeError(
            f"model must tell in_channels and sample_size in its config, {type(denoiser.network).__name__} does not"
        )
    for name, value in (("num_images", num_images), ("num_inference_steps", num_inference_steps)):
        if value < 1:
            raise ValueError(f"{name} must be positive, got {value}")
    scheduler = type(denoiser.scheduler).from_config(denoiser.scheduler.config)
    scheduler.set_timesteps(num_inference_steps)
    visited = [int(t) for t in scheduler.timesteps]
    kept = visited if steps is None else [int(t) for t in steps]
    unknown = [t for t in kept if t not in visited]
    if unknown or not kept:
        raise ValueError(f"steps must be among the sampler's timesteps {visited}, got {unknown or 'none'}")

    shape = (denoiser.in_channels, *denoiser.sample_size)
    keys = [to_signed(derive_key(seed, "trajectory", i)) for i in range(num_images)]
    start = keyed_noise(torch.tensor(keys), 1, shape, denoiser.device, antithetic=False, per=1)
    x = start[:, 0, 0] * scheduler.init_noise_sigma
    # The sampler's own noise: one CPU generator per image, so that neither the device nor the batch matters.
    generators = [torch.Generator().manual_seed(derive_key(seed, "sampler", i)) for i in range(num_images)]
    own_noise = {"generator": generators} if "generator" in signature(scheduler.step).parameters else {}
    x_t, x0_hat = {}, {}
    with torch.no_grad():
        for t in tqdm(visited, unit="step", desc="record", disable=not progress, dynamic_ncols=True):
            prediction = denoiser.predict(
                scheduler.scale_model_input(x, t), torch.full((num_images,), t, device=x.device)
            )
            step = scheduler.step(prediction, t, x, **own_noise)
            if getattr(step, "pred_original_sample", None) is None:
                raise TypeError(
                    f"the scheduler must give pred_original_sample (DDPM, DDIM), {type(scheduler).__name__} does not"
                )
            if t in kept:
                x_t[t], x0_hat[t] = x.cpu(), step.pred_original_sample.cpu()
            x = step.prev_sample
    ordered = [t for t in visited if t in kept]
    return Trajectory(
        timesteps=torch.tensor(ordered),
        x_t=torch.stack([x_t[t] for t in ordered], 1),
        x0_hat=torch.stack([x0_hat[t] for t in ordered], 1),
        images=x.cpu().clamp(-1, 1),
    )
