"""Random gradients whose second moment is the curvature of the training loss: what curvature is fitted to.

The loss is a mean square over the D entries of the network's output f, whose Hessian is ``2 / D I``, so its generalised
Gauss-Newton matrix is ``G = E[J^T (2 / D) J]`` with ``J = df / dθ``: the images' targets do not enter. The gradient of
``sqrt(2 / D) <u, f>`` with ``E[u u^T] = I`` has the second moment G.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from journey.gradients.engine import GradientEngine, RowValues
from journey.gradients.rules import Contribution
from journey.measure.draws import Draws
from journey.models.condition import Condition
from journey.models.denoiser import Denoiser
from journey.ops.keys import derive_key, to_signed
from journey.ops.noise import keyed_noise
from journey.projectors.base import ParameterSlot

Receive = Callable[[ParameterSlot, list[Contribution], int], None]


@dataclass(frozen=True)
class PseudoGradients:
    """The pseudo-gradients of images, draw after draw.

    Args:
        denoiser: The model.
        images: In the space that the network denoises, float32. [num_samples, C, H, W]
        draws: Timesteps and noise; bins count alike.
        condition: What the network is told, one row per image.
        exact: Go through all unit vectors u in place of one random u for each draw.
        seed: Names the random ones.
        numbers: Name the draws of each image; 0, 1, ... by default.

    Raises:
        ValueError: If there are no images, or ``condition`` has another number of rows.
    """

    denoiser: Denoiser
    images: Tensor
    draws: Draws
    condition: Condition | None
    exact: bool
    seed: int
    numbers: Sequence[int] | None = None

    def __post_init__(self) -> None:
        """Check that there is a row of the condition for each image."""
        if not len(self.images):
            raise ValueError("images must not be empty")
        if self.condition is not None and len(self.condition) != len(self.images):
            raise ValueError(
                f"condition must have a row for each of the {len(self.images)} images, got {len(self.condition)}"
            )

    @property
    def num_rows(self) -> int:
        """Images times their draws."""
        return len(self.images) * self.draws.bins * self.draws.num_draws

    @property
    def num_gradients(self) -> int:
        """Backward passes of one row each that it takes to go through all."""
        return self.num_rows * (prod(self.shape) if self.exact else 1)

    def for_each_parameter(self, engine: GradientEngine, rows_per_batch: int, receive: Receive, bar: tqdm[Any]) -> None:
        """Go through all rows, batch after batch, and hand on what each parameter's gradients are made of.

        Args:
            engine: Captures the gradients of the denoiser's network.
            rows_per_batch: Rows that go through the network at once.
            receive: Takes a parameter, its contributions (``GradientEngine.for_each_parameter``) and the number of
                rows, each of which is a group of its own; with ``exact`` every row again for each entry of the output.
            bar: Is told of every gradient.
        """
        for rows in torch.arange(self.num_rows, dtype=torch.int64, device="cpu").split(rows_per_batch):
            for values in self.pseudo_losses(rows):
                _for_each_parameter(engine, values, len(rows), receive)
                bar.update(len(rows))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of an image."""
        return tuple(self.images.shape[1:])

    def first_row(self) -> RowValues:
        """The pseudo-loss of one row: what it costs to go through the network."""
        return next(self.pseudo_losses(torch.arange(1, dtype=torch.int64, device="cpu")))

    def pseudo_losses(self, rows: Tensor) -> Iterator[RowValues]:
        """Yield ``sqrt(2 / D) <u, prediction>`` of some rows, for one random u or for each unit vector."""
        denoiser, device, shape = self.denoiser, self.denoiser.device, self.shape
        per_image = self.draws.bins * self.draws.num_draws
        first, end = int(rows[0]) // per_image, int(rows[-1]) // per_image + 1
        ids = list(range(first, end)) if self.numbers is None else list(self.numbers[first:end])
        here = (rows - first * per_image).to(device)  # among all draws of these images
        timesteps = self.draws.timesteps(ids, denoiser.num_train_timesteps)
        times = timesteps.flatten().to(device)[here]
        counts = self.draws.row_weights(timesteps, denoiser.num_train_timesteps)
        noise = self.draws.noise(ids, shape, device).flatten(0, 2)[here]
        x0 = self.images[rows // per_image].to(device)
        x_t = denoiser.add_noise(x0, noise, times)
        told = None if self.condition is None else self.condition.select(rows // per_image).to(device)
        size = prod(shape)
        scale = torch.full((len(rows),), 2 / size, device=device, dtype=torch.float32)
        if counts is not None:
            scale *= counts.flatten().to(device)[here]

        def along(directions: Tensor) -> RowValues:
            def values(part: slice) -> Tensor:
                prediction = denoiser.predict(x_t[part], times[part], None if told is None else told.select(part))
                return scale[part].sqrt() * (directions[part] * prediction.flatten(1)).sum(1)

            return values

        if self.exact:
            for unit in torch.eye(size, device=device, dtype=torch.float32):
                yield along(unit.expand(len(rows), size))
        else:
            keys = torch.tensor(
                [to_signed(derive_key(self.seed, "pseudo-gradient", i)) for i in ids], dtype=torch.int64, device="cpu"
            )
            drawn = keyed_noise(keys, per_image, shape, device, antithetic=False, per=per_image)
            yield along(drawn.flatten(0, 2).flatten(1)[here])


def _for_each_parameter(engine: GradientEngine, values: RowValues, num_rows: int, receive: Receive) -> None:
    engine.for_each_parameter(
        values,
        num_rows=num_rows,
        num_groups=num_rows,
        receive=lambda slot, contributions: receive(slot, contributions, num_rows),
    )
