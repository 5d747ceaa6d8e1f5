"""Recording how a model makes an image: the latent and the predicted image at every step."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index as as_int
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from journey.data.numbers import as_size, as_tensor
from journey.generation.sampler import Sampler
from journey.generation.trajectory import Trajectory, packed
from journey.models.condition import Condition
from journey.models.denoiser import Denoiser
from journey.models.load import as_denoiser
from journey.ops.keys import derive_key


def record(
    pipeline: Any,
    *,
    seed: int = 0,
    prompt: str | Sequence[str] | None = None,
    class_labels: int | Sequence[int] | None = None,
    condition: Condition | None = None,
    negative_prompt: str | None = None,
    guidance_scale: float | None = None,
    num_images: int = 1,
    num_inference_steps: int = 50,
    steps: Sequence[int] | None = None,
    size: tuple[int, ...] | None = None,
    progress: bool = True,
) -> Trajectory:
    """Sample images with the model's scheduler and keep x_t and the predicted image at chosen steps.

    Args:
        pipeline: The model, as for ``journey.featurize``, with any diffusers scheduler.
        seed: Names the images: image i of a seed is the same for any ``num_images`` and on every device, and begins
            with the same noise for every prompt.
        prompt: For text models: one or several prompts.
        class_labels: For class-conditional models: one or several labels.
        condition: Instead of either, what the network is told, ready-made; one row counts as one prompt.
        negative_prompt: What guidance leads away from; the model's null condition by default.
        guidance_scale: Strength of guidance; by default that of the model's pipeline.
        num_images: Images to make of each prompt or label; those of one prompt follow each other.
        num_inference_steps: Steps of the sampler.
        steps: Which of the sampler's timesteps to keep; all by default.
        size: Height and width of the images in pixels, of a video frames, height and width, of a sound its samples;
            the model's own by default.
        progress: Show a progress bar.

    Returns:
        The recorded trajectory.

    Raises:
        ValueError: If a step is not among the sampler's timesteps, a number is not positive, or arguments exclude each
            other.
        TypeError: If ``size`` is no tuple of positive integers, the model has an unknown form, does not tell the shape
            of its images, or is told what it cannot read.
        RuntimeError: If an image becomes NaN or infinite; names the timestep.

    Reference:
        Ho et al., NeurIPS 2020, Eq. 15, for the predicted image; Georgiev et al., 2023, section 3, for its use.
    """
    denoiser = as_denoiser(pipeline)
    for name, value in (("num_images", num_images), ("num_inference_steps", num_inference_steps)):
        if value < 1:
            raise ValueError(f"{name} must be positive, got {value}")
    told, words = _condition_of(denoiser, prompt, class_labels, condition)
    scale = denoiser.no_guidance if guidance_scale is None else float(guidance_scale)
    if told is not None:
        wanted = denoiser.default_guidance if guidance_scale is None else float(guidance_scale)
        told, scale = denoiser.with_guidance(told.repeat(num_images), wanted)
    if negative_prompt is not None and scale <= denoiser.no_guidance:
        raise ValueError(f"negative_prompt needs classifier-free guidance, got a scale of {scale}")
    negative = None
    if scale > denoiser.no_guidance and told is not None:
        negative = denoiser.null_condition() if negative_prompt is None else denoiser.encode_negative([negative_prompt])
    sampler = Sampler(
        denoiser,
        num_inference_steps,
        condition=told,
        guidance_scale=scale,
        negative=negative,
        shape=denoiser.shape_of(None if size is None else as_size(size, "size")),
    )
    visited = sampler.timesteps
    kept = visited if steps is None else [int(t) for t in steps]
    unknown = [t for t in kept if t not in visited]
    if unknown or not kept:
        raise ValueError(f"steps must be among the sampler's timesteps {visited}, got {unknown or 'none'}")

    ids = list(range(num_images)) * (1 if told is None else len(told) // num_images)
    x = sampler.start([derive_key(seed, "trajectory", i) for i in ids])
    generators = [torch.Generator("cpu").manual_seed(derive_key(seed, "sampler", i)) for i in ids]
    x_t, x0_hat = {}, {}
    for step in tqdm(
        sampler.steps(x, generators=generators),
        total=len(visited),
        unit="step",
        desc="record",
        disable=not progress,
        dynamic_ncols=True,
    ):
        if not step.x0_hat.isfinite().all():
            cure = "check the model's weights, and a float16 model may need bfloat16 or float32"
            raise RuntimeError(f"images became NaN or infinite at timestep {step.timestep}; {cure}")
        if step.timestep in kept:
            # Where a sampler visits a timestep twice (PNDM, Heun), the later visit is on its path.
            x_t[step.timestep], x0_hat[step.timestep] = step.x_t.cpu(), step.x0_hat.cpu()
        x = step.prev
    ordered = [t for t in dict.fromkeys(visited) if t in kept]
    predicted = torch.stack([x0_hat[t] for t in ordered], 1)
    timesteps = torch.tensor(ordered, dtype=torch.int64, device="cpu")
    return Trajectory(
        timesteps=timesteps,
        x_t=torch.stack([x_t[t] for t in ordered], 1),
        x0_hat=predicted,
        images=x.cpu() if denoiser.is_latent else x.cpu().clamp(-1, 1),
        condition=None if told is None else told.to(torch.device("cpu")),
        negative=None if negative is None else negative.to(torch.device("cpu")),
        guidance_scale=scale,
        num_inference_steps=num_inference_steps,
        prompts=tuple(word for word in words for _ in range(num_images)),
        pixels=decode_pixels(denoiser, torch.cat([predicted, x.cpu().unsqueeze(1)], 1)) if denoiser.is_latent else None,
        schedule=denoiser.schedule.fingerprint(),
        levels=denoiser.schedule.levels(timesteps),
    )


def _condition_of(
    denoiser: Denoiser,
    prompt: str | Sequence[str] | None,
    class_labels: int | Sequence[int] | None,
    condition: Condition | None,
) -> tuple[Condition | None, list[str]]:
    """What the network is told, one row per prompt or label, and that in words."""
    given = {"prompt": prompt, "class_labels": class_labels, "condition": condition}
    given_names = [name for name, value in given.items() if value is not None]
    if len(given_names) > 1:
        raise ValueError(
            f"only one of prompt, class_labels and condition may be given, got {' and '.join(given_names)}"
        )
    if prompt is not None:
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        return denoiser.encode_prompt(prompts), prompts
    if class_labels is not None:
        labels = [as_int(label) for label in as_tensor(class_labels).flatten().tolist()]
        return denoiser.encode_labels(labels), [f"class {label}" for label in labels]
    return condition, []


def decode_pixels(denoiser: Denoiser, latents: Tensor) -> Tensor:
    """Decode latents one image at a time.

    Args:
        denoiser: The model.
        latents: float32. [num_queries, num, ...]

    Returns:
        As ``Trajectory.pixels``, on the CPU. [num_queries, num, ...]
    """
    rows = [packed(denoiser.decode(row.unsqueeze(0)).cpu()) for row in latents.flatten(0, 1)]
    pictures: Tensor = torch.cat(rows).unflatten(0, latents.shape[:2])
    return pictures
