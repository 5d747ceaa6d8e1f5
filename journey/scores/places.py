"""Which query and which step is meant, and the scores of one step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from journey.data.ids import Ids, positions_of


def place_of(query: int, step: int | None, num_queries: int, timesteps: list[int]) -> tuple[int, int]:
    """Return the positions of a query and of a step; None is the only one.

    Raises:
        ValueError: If there is none.
    """
    if not 0 <= query < num_queries:
        raise ValueError(f"query must be between 0 and {num_queries - 1}, got {query}")
    if (step is None and len(timesteps) > 1) or (step is not None and step not in timesteps):
        raise ValueError(f"step must be one of the timesteps {timesteps}, got {step}")
    return query, 0 if step is None else timesteps.index(step)


def one_step(
    values: Tensor,
    timesteps: list[int],
    train_ids: Ids,
    step: int | Literal["mean"] | None,
    ids: Sequence[int | str] | None = None,
) -> Tensor:
    """Return the scores of one step, whose columns are the dataset's images in their order.

    Args:
        values: Scores. [num_queries, num_steps, num_train]
        timesteps: The steps.
        train_ids: Id of each column.
        step: One of the timesteps, ``"mean"`` of all, or None for the only one.
        ids: Of the dataset's images, in their order, as ``journey.data.ids.ids_of`` tells them: a store has an order
            of its own. By default 0, 1, ...

    Returns:
        float32. [num_queries, num_train]

    Raises:
        ValueError: If there is no such step, or none is named and there are several, or the columns are not those of
            the whole dataset.
    """
    order = range(len(train_ids)) if ids is None else ids
    places = positions_of(train_ids)
    if len(order) != len(places) or set(order) != set(places):
        raise ValueError(
            "columns must be all images of the dataset, by whose positions other libraries name them: give their ids, "
            f"ids=journey.data.ids.ids_of(dataset); got train_ids {train_ids[:5]} ..., ids {list(order[:5])} ..."
        )
    if step == "mean":
        chosen = values.mean(1)
    elif step is None and len(timesteps) == 1:
        chosen = values[:, 0]
    elif step in timesteps:
        chosen = values[:, timesteps.index(step)]
    else:
        raise ValueError(f'step must be one of the timesteps {timesteps} or "mean", got {step}')
    return chosen[:, [places[i] for i in order]]
