"""What retrained models say about queries: the measured value of every query under every model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from journey.data.items import Dataset
from journey.generation.trajectory import Trajectory
from journey.measure.batch import measure_values
from journey.measure.draws import Draws
from journey.measure.measurements import Measurement, TrainingLoss
from journey.models.checkpoints import Checkpoint, loaded
from journey.models.condition import Encoded
from journey.models.encoding import encode_all
from journey.models.load import as_denoiser


def measure_responses(
    model: Any,
    checkpoints: Sequence[Checkpoint],
    queries: Dataset | Tensor | Trajectory | Encoded,
    *,
    draws: Draws,
    measurement: Measurement | None = None,
    progress: bool = True,
) -> Tensor:
    """Measure every query under every set of weights, with the same timesteps and noise for all of them.

    Args:
        model: The network that the weights fit, in any form that ``journey.featurize`` takes.
        checkpoints: The retrained models, as ``retrain`` returns them.
        queries: Images, with captions or labels where the model reads them, in the forms of training images; or
            generations, whose finished images are measured under what they were made with; or samples that are encoded
            already.
        draws: Timesteps and noise; query q has those of sample q.
        measurement: What is measured, ``TrainingLoss()`` by default.
        progress: Show a progress bar.

    Returns:
        The mean over the draws of each bin, float32. [num_checkpoints, num_queries, bins]
    """
    denoiser = as_denoiser(model)
    measurement = TrainingLoss() if measurement is None else measurement
    samples = queries.finished if isinstance(queries, Trajectory) else encode_all(denoiser, queries, name="queries")
    rows = []
    for checkpoint in tqdm(checkpoints, unit="model", desc="measure", disable=not progress, dynamic_ncols=True):
        with loaded(denoiser.network, checkpoint):
            rows.append(measure_values(denoiser, samples, draws=draws, measurement=measurement))
    return torch.stack(rows)
