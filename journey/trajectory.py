"""Recording how a model makes an image: the latent and the predicted image at every step."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from journey.denoiser import as_denoiser
from journey.keys import derive_key
from journey.sampler import Sampler

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
        pipeline: The model, as for ``journey.featurize``, with any diffusers scheduler.
        seed: Names the images: image i of a seed is the same for any ``num_images`` and on every device.
        num_images: Images to make.
        num_inference_steps: Steps of the sampler.
        steps: Which of the sampler's timesteps to keep; all by default.
        progress: Show a progress bar.

    Returns:
        The recorded trajectory.

    Raises:
        ValueError: If a step is not among the sampler's timesteps, or a number is not positive.
        TypeError: If the model has an unknown form or does not tell the shape of its images.

    Reference:
        Ho et al., NeurIPS 2020, Eq. 15, for the predicted image; Georgiev et al., 2023, section 3, for its use.
    """
    denoiser = as_denoiser(pipeline)
    for name, value in (("num_images", num_images), ("num_inference_steps", num_inference_steps)):
        if value < 1:
            raise ValueError(f"{name} must be positive, got {value}")
    sampler = Sampler(denoiser, num_inference_steps)
    visited = sampler.timesteps
    kept = visited if steps is None else [int(t) for t in steps]
    unknown = [t for t in kept if t not in visited]
    if unknown or not kept:
        raise ValueError(f"steps must be among the sampler's timesteps {visited}, got {unknown or 'none'}")

    x = sampler.start([derive_key(seed, "trajectory", i) for i in range(num_images)])
    generators = [torch.Generator().manual_seed(derive_key(seed, "sampler", i)) for i in range(num_images)]
    x_t, x0_hat = {}, {}
    for step in tqdm(
        sampler.steps(x, generators=generators),
        total=len(visited),
        unit="step",
        desc="record",
        disable=not progress,
        dynamic_ncols=True,
    ):
        if step.timestep in kept:
            # Where a sampler visits a timestep twice (PNDM, Heun), the later visit is on its path.
            x_t[step.timestep], x0_hat[step.timestep] = step.x_t.cpu(), step.x0_hat.cpu()
        x = step.prev
    ordered = [t for t in dict.fromkeys(visited) if t in kept]
    return Trajectory(
        timesteps=torch.tensor(ordered),
        x_t=torch.stack([x_t[t] for t in ordered], 1),
        x0_hat=torch.stack([x0_hat[t] for t in ordered], 1),
        images=x.cpu().clamp(-1, 1),
    )
