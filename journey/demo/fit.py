"""Training of the demos' denoisers from scratch, in minutes on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from journey.evaluate.optimize import optimize, set_parameters, stratified_timesteps

# What the network is told about the chosen images, as its named arguments, one row per image.
Tell: TypeAlias = Callable[[Tensor, torch.Generator], Mapping[str, Tensor]]


def make_scheduler() -> Any:
    """Return the demos' ``DDPMScheduler``: velocity under a cosine schedule.

    At images as small as these a linear schedule is pure noise half of the time.
    """
    from diffusers import DDPMScheduler

    untyped: Any = DDPMScheduler  # diffusers carries no types
    return untyped(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")


def fit(
    model: nn.Module,
    images: Tensor,  # [num_samples, C, size, size]
    *,
    tell: Tell | None = None,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    progress: bool,
) -> None:
    """Train a network in place to predict the velocity of noised images under ``make_scheduler()``.

    Minimises ``mean((v - model(x_t, t, **told))**2)`` as ``optimize`` does. In the end the network holds the moving
    average of its weights and is in eval mode.

    Args:
        model: Called as ``model(x_t, timesteps, **told).sample``. Changed.
        images: The training images in [-1, 1], float32. [num_samples, C, size, size]
        tell: Makes what the network is told about a batch, from the batch's positions in ``images`` and the generator
            of everything random; None for an unconditional network.
        steps: Optimiser steps.
        batch_size: Images per step, drawn with replacement.
        learning_rate: The highest rate.
        seed: Seed of batches, timesteps and noise.
        progress: Show a progress bar with the loss.

    Raises:
        ValueError: If ``images`` is empty, or ``steps``, ``batch_size`` or ``learning_rate`` is not positive.
    """
    if len(images) == 0:
        raise ValueError("dataset is empty: training needs at least one image")
    for name, value in (("steps", steps), ("batch_size", batch_size), ("learning_rate", learning_rate)):
        if value <= 0:
            raise ValueError(f"{name} must be positive, got {value}")

    noise_scheduler = make_scheduler()
    num_timesteps = noise_scheduler.config["num_train_timesteps"]

    def loss(generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(images), (batch_size,), generator=generator, dtype=torch.int64, device="cpu")
        x0 = images[chosen]  # [batch_size, C, size, size]
        timesteps = stratified_timesteps(batch_size, num_timesteps, generator)
        noise = torch.randn(x0.shape, generator=generator, dtype=torch.float32, device="cpu")
        told = {} if tell is None else tell(chosen, generator)
        velocity = noise_scheduler.get_velocity(x0, noise, timesteps)
        predicted = model(noise_scheduler.add_noise(x0, noise, timesteps), timesteps, **told).sample
        return F.mse_loss(predicted, velocity)

    model.train()
    trained = optimize(model, loss, steps=steps, learning_rate=learning_rate, seed=seed)
    bar = tqdm(trained, total=steps, desc="train", unit="step", disable=not progress)
    for step, (found, average) in enumerate(bar, 1):
        if step % 20 == 1:
            bar.set_postfix(loss=f"{found.item():.4f}")
        if step == steps:
            set_parameters(model, average)
