"""Scores as the two-dimensional tables that other libraries' metrics take."""

from __future__ import annotations

from typing import Literal

from torch import Tensor


def one_step(values: Tensor, timesteps: list[int], train_ids: list[int], step: int | Literal["mean"] | None) -> Tensor:
    """Return the scores of one step, whose columns are the dataset's images in their order.

    Args:
        values: Scores. [num_queries, num_steps, num_train]
        timesteps: The steps.
        train_ids: Dataset index of each column.
        step: One of the timesteps, ``"mean"`` of all, or None for the only one.

    Returns:
        float32. [num_queries, num_train]

    Raises:
        ValueError: If there is no such step, or none is named and there are several, or columns are not the whole
            dataset in its order.
    """
    if train_ids != list(range(len(train_ids))):
        raise ValueError(
            "columns must be the images 0, 1, ... of the dataset, by whose positions other libraries name them, "
            f"got train_ids {train_ids[:5]} ..."
        )
    if step == "mean":
        return values.mean(1)
    if step is None and len(timesteps) == 1:
        return values[:, 0].clone()
    if step not in timesteps:
        raise ValueError(f'step must be one of the timesteps {timesteps} or "mean", got {step}')
    return values[:, timesteps.index(step)].clone()
