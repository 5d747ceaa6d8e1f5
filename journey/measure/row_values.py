"""The measurement of all draws of some images, a slice of rows at a time."""

from __future__ import annotations

from torch import Tensor

from journey.gradients.engine import RowValues
from journey.measure.measurements import Measurement, Prediction
from journey.models.condition import Condition
from journey.models.denoiser import Denoiser


def row_values(
    denoiser: Denoiser,
    measurement: Measurement,
    images: Tensor,
    timesteps: Tensor,
    noise: Tensor,
    condition: Condition | None,
    mask: Tensor | None,
    weights: Tensor | None,
) -> RowValues:
    """Return the measurement of rows of the batch of all draws of all images, which runs the network on them.

    Args:
        denoiser: The model.
        measurement: What is measured.
        images: As for ``journey.Featurizer.features``. [num_samples, C, H, W]
        timesteps: Likewise. [num_samples, bins, num_draws]
        noise: Likewise. [num_samples, bins, num_draws, C, H, W]
        condition: Likewise.
        mask: Likewise. [num_samples, 1, H, W]
        weights: Likewise. [num_samples, bins, num_draws]

    Returns:
        The values; rows are in the order of samples, bins and draws.

    Raises:
        ValueError: If ``condition`` has another number of rows.
    """
    num_samples, num_rows = len(images), timesteps.numel()
    each, device = num_rows // num_samples, denoiser.device
    x0 = images.to(device).repeat_interleave(each, 0)
    times = timesteps.reshape(-1).to(device)
    epsilon = noise.reshape(num_rows, *images.shape[1:]).to(device)
    masks = None if mask is None else _as_rank(mask, x0.dim()).to(device).repeat_interleave(each, 0)
    x_t = denoiser.add_noise(x0, epsilon, times)
    target = denoiser.target(x0, epsilon, times)
    told = None if condition is None else _per_row(condition, num_samples, num_rows).to(device)
    factors = None if weights is None else weights.reshape(num_rows).to(device)

    def values(rows: slice) -> Tensor:
        part = None if masks is None else masks[rows]
        given = None if told is None else told.select(rows)
        prediction = denoiser.predict(x_t[rows], times[rows], given)
        found = measurement(
            Prediction(
                prediction,
                target[rows],
                x0[rows],
                x_t[rows],
                epsilon[rows],
                times[rows],
                denoiser.schedule,
                part,
            )
        )
        return found if factors is None else found * factors[rows]

    return values


def _per_row(condition: Condition, num_samples: int, num_rows: int) -> Condition:
    if len(condition) not in (num_samples, num_rows):
        raise ValueError(
            f"condition must have {num_samples} rows, one per sample, or {num_rows}, one per draw, got {len(condition)}"
        )
    return condition if len(condition) == num_rows else condition.repeat(num_rows // num_samples)


def _as_rank(mask: Tensor, rank: int) -> Tensor:
    """A mask [num_samples, 1, H, W] for every frame of videos, where rows are such. [num_samples, 1, ..., H, W]"""
    return mask.view(len(mask), *(1,) * (rank - 3), *mask.shape[-2:])
