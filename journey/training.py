"""Training of small networks from scratch, in minutes on a CPU: one loop, and the demos' denoisers by it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

EMA_DECAY = 0.995  # averages about the last 200 steps: past the noise of one step, short beside the whole run
WARM_UP = 50  # steps until Adam's second moments mean something
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


def optimize(
    network: nn.Module,
    loss: Callable[[torch.Generator], Tensor],
    *,
    steps: int,
    learning_rate: float,
    seed: int,
    warm_up: int = WARM_UP,
    ema_decay: float = EMA_DECAY,
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Train a network in place, step by step: Adam with a learning rate that rises linearly and falls along a cosine.

    Args:
        network: Changed.
        loss: Makes the loss of a step from the generator of everything random.
        steps: Optimiser steps after which the learning rate is zero.
        learning_rate: The highest rate.
        seed: Seed of the generator. The global random state is neither read nor changed, and equal seeds give bitwise
            equal weights for an equal number of threads.
        warm_up: Steps over which the rate rises.
        ema_decay: Decay of the average, at most; it starts as a plain mean.

    Yields:
        After each step its loss, and the exponential moving average of the parameters, which the next step changes.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters = list(network.parameters())
    average = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    rates = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * step / steps))
    )
    for step in range(steps):
        found = loss(generator)
        optimizer.zero_grad()
        torch.autograd.backward(found)
        optimizer.step()
        rates.step()
        weight = 1 - min(ema_decay, (1 + step) / (_EMA_RAMP + step))
        with torch.no_grad():
            for mean, parameter in zip(average, parameters, strict=True):
                mean.lerp_(parameter, weight)
        yield found.detach(), average


@torch.no_grad()
def set_parameters(network: nn.Module, values: list[Tensor]) -> None:
    """Copy values into the parameters of a network, and put it in eval mode."""
    for parameter, value in zip(network.parameters(), values, strict=True):
        parameter.copy_(value)
    network.eval()


def stratified_timesteps(num_rows: int, num_timesteps: int, generator: torch.Generator) -> Tensor:
    """Draw a timestep from each of equal parts of the range: uniform as a whole, with a calmer gradient. [num_rows]"""
    parts = torch.arange(num_rows) + torch.rand(num_rows, generator=generator)
    return (parts * num_timesteps / num_rows).long().clamp(max=num_timesteps - 1)


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
        chosen = torch.randint(len(images), (batch_size,), generator=generator)
        x0 = images[chosen]  # [batch_size, C, size, size]
        timesteps = stratified_timesteps(batch_size, num_timesteps, generator)
        noise = torch.randn(x0.shape, generator=generator)
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
