"""The demos' training: a denoiser of small images, from scratch, in minutes on a CPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

_EMA_DECAY = 0.995  # averages about the last 200 steps: past the noise of one step, short beside the whole run
_WARM_UP = 50  # steps until Adam's second moments mean something
_EMA_RAMP = 10  # the average starts as a plain mean, so that the random initial weights are forgotten early

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

    Minimises ``mean((v - model(x_t, t, **told))**2)`` with Adam and a learning rate that rises over the first steps and
    falls to zero along a cosine. In the end the network holds the exponential moving average of its weights and is in
    eval mode.

    Args:
        model: Called as ``model(x_t, timesteps, **told).sample``. Changed.
        images: The training images in [-1, 1], float32. [num_samples, C, size, size]
        tell: Makes what the network is told about a batch, from the batch's positions in ``images`` and the generator
            of everything random; None for an unconditional network.
        steps: Optimiser steps.
        batch_size: Images per step, drawn with replacement.
        learning_rate: The highest rate.
        seed: Seed of batches, timesteps and noise. The global random state is neither read nor changed, and equal seeds
            give bitwise equal weights for an equal number of threads.
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
    generator = torch.Generator().manual_seed(seed)
    parameters = list(model.parameters())
    average = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    rates = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / _WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / steps))
    )

    model.train()
    bar = tqdm(range(steps), desc="train", unit="step", disable=not progress)
    for step in bar:
        chosen = torch.randint(len(images), (batch_size,), generator=generator)
        x0 = images[chosen]  # [batch_size, C, size, size]
        # One timestep from each of batch_size equal parts of the range: uniform as a whole, with a calmer gradient.
        parts = torch.arange(batch_size) + torch.rand(batch_size, generator=generator)
        timesteps = (parts * num_timesteps / batch_size).long().clamp(max=num_timesteps - 1)
        noise = torch.randn(x0.shape, generator=generator)
        told = {} if tell is None else tell(chosen, generator)
        velocity = noise_scheduler.get_velocity(x0, noise, timesteps)
        predicted = model(noise_scheduler.add_noise(x0, noise, timesteps), timesteps, **told).sample
        loss = F.mse_loss(predicted, velocity)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        rates.step()
        weight = 1 - min(_EMA_DECAY, (1 + step) / (_EMA_RAMP + step))
        with torch.no_grad():
            for mean, parameter in zip(average, parameters, strict=True):
                mean.lerp_(parameter, weight)
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.4f}")

    with torch.no_grad():
        for parameter, mean in zip(parameters, average, strict=True):
            parameter.copy_(mean)
    model.eval()
