"""What retrained models say about queries: the measured value of every query under every model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from journey.checkpoints import Checkpoint, loaded
from journey.denoiser import as_denoiser
from journey.draws import Draws
from journey.measurements import Measurement, Prediction, TrainingLoss

_ROWS_PER_BATCH = 512


@torch.no_grad()
def measure_responses(
    model: Any,
    checkpoints: Sequence[Checkpoint],
    queries: Tensor,  # [num_queries, C, H, W]
    *,
    draws: Draws,
    measurement: Measurement | None = None,
    progress: bool = True,
) -> Tensor:
    """Measure every query under every set of weights, with the same timesteps and noise for all of them.

    Args:
        model: The network that the weights fit, in any form that ``journey.featurize`` takes.
        checkpoints: The retrained models, as ``retrain`` returns them.
        queries: Images in the model's range. [num_queries, C, H, W]
        draws: Timesteps and noise; query q has those of sample q.
        measurement: What is measured, ``TrainingLoss()`` by default.
        progress: Show a progress bar.

    Returns:
        The mean over the draws of each bin, float32. [num_checkpoints, num_queries, bins]
    """
    denoiser = as_denoiser(model)
    measurement = TrainingLoss() if measurement is None else measurement
    device, ids = denoiser.device, list(range(len(queries)))
    timesteps = draws.timesteps(ids, denoiser.num_train_timesteps)
    x0 = queries.to(device).repeat_interleave(timesteps[0].numel(), 0)
    noise = draws.noise(ids, tuple(queries.shape[1:]), device).flatten(0, 2)
    times = timesteps.flatten().to(device)
    x_t, target = denoiser.add_noise(x0, noise, times), denoiser.target(x0, noise, times)
    rows = []
    for checkpoint in tqdm(checkpoints, unit="model", desc="measure", disable=not progress, dynamic_ncols=True):
        values = []
        with loaded(denoiser.network, checkpoint):
            for first in range(0, len(x0), _ROWS_PER_BATCH):
                some = slice(first, first + _ROWS_PER_BATCH)
                prediction = denoiser.predict(x_t[some], times[some])
                values.append(
                    measurement(
                        Prediction(prediction, target[some], x0[some], x_t[some], noise[some], times[some])
                    ).cpu()
                )
        rows.append(torch.cat(values).view(timesteps.shape).mean(-1))
    return torch.stack(rows)
