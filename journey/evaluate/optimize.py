"""The loop that trains a small network from scratch, in minutes on a CPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

EMA_DECAY = 0.995  # averages about the last 200 steps: past the noise of one step, short beside the whole run
WARM_UP = 50  # steps until Adam's second moments mean something
_EMA_RAMP = 10  # the average starts as a plain mean, so that the random initial weights are forgotten early


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
    generator = torch.Generator("cpu").manual_seed(seed)
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
    parts = torch.arange(num_rows, dtype=torch.int64, device="cpu") + torch.rand(
        num_rows, generator=generator, dtype=torch.float32, device="cpu"
    )
    return (parts * num_timesteps / num_rows).long().clamp(max=num_timesteps - 1)
