"""One engine for attribution methods: what is measured, at which draws, projected how, and compared with which kernel.

Published methods are configurations of it (``journey.presets``). Features of all images are held in memory, which is
for comparing methods on data of moderate size; ``journey.featurize`` keeps them on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from journey.checkpoints import Checkpoint, loaded
from journey.condition import Condition
from journey.datasets import Dataset
from journey.denoiser import Denoiser, as_denoiser
from journey.draws import Draws, StratifiedDraws, query_noise
from journey.encoding import encode_all
from journey.featurizer import Featurizer
from journey.measurements import Measurement, TrainingLoss
from journey.noised import noised_trajectory
from journey.preconditioners import Gram, Preconditioner
from journey.projectors import CountSketch, Projector
from journey.queries import check_query_noise
from journey.scores import Scores
from journey.trajectory import Trajectory

# Rows (samples x draws) that go through the denoiser at once.
_ROWS_PER_BATCH = 128

PerDraw = Literal["mean", "normalized", "concatenated"]
MakeProjector = Callable[[Denoiser, Tensor, Condition | None], Projector]
Adjust = Callable[["Method", Denoiser, Tensor, "Measured", Tensor], Tensor]


class Measured(NamedTuple):
    """Features of training images and queries under one set of weights.

    Attributes:
        train: float32. [num_train, proj_dim]
        values: What was measured for the training images, mean over draws, float32. [num_train]
        query: float32. [num_queries, num_steps, proj_dim]
        blocks: Lengths of the features' parts.
    """

    train: Tensor
    values: Tensor
    query: Tensor
    blocks: list[int]


@dataclass(frozen=True)
class Method:
    """An attribution method.

    Attributes:
        name: What it is called.
        reference: Where it is published.
        measurement: What is differentiated.
        draws: Timesteps and noise of training images, and of queries that are images; these continue the ids of the
            training images, so that keyed draws of the two are independent and shared draws are shared.
        projector: Maps gradients to features; or a function ``projector(denoiser, images, condition)`` of the model
            under its current weights, the training images and what the network is told with them that returns it, for
            one that is made or fitted for them.
        per_draw: ``"mean"``: the gradient of the mean over draws. ``"normalized"``: the mean of every draw's feature
            divided by its norm. ``"concatenated"``: these side by side, so that only equal draws are compared.
        at_steps: Queries are the images predicted along a trajectory, noised again to each step; otherwise they are
            finished images.
        query_draws: Noises per query and step where ``at_steps``.
        preconditioner: The kernel.
        cosine: Divide features by their norm before they are compared.
        adjust: Changes the scores at the end: ``adjust(method, denoiser, images, measured, scores)``.

    Raises:
        ValueError: If draws are kept apart although queries are asked at a single step.
    """

    name: str
    reference: str
    measurement: Measurement = TrainingLoss()  # noqa: RUF009 - has no state
    draws: Draws = StratifiedDraws()  # noqa: RUF009 - frozen
    projector: Projector | MakeProjector = CountSketch()  # noqa: RUF009 - frozen
    per_draw: PerDraw = "mean"
    at_steps: bool = False
    query_draws: int = 20
    preconditioner: Preconditioner = Gram()  # noqa: RUF009 - frozen
    cosine: bool = False
    adjust: Adjust | None = None

    def __post_init__(self) -> None:
        """Check that the choices go together."""
        if self.at_steps and self.per_draw == "concatenated":
            raise ValueError(
                'per_draw must not be "concatenated" where at_steps: a query has one step, not every draw\'s'
            )

    def change(self, **fields: Any) -> Method:
        """Return the method with other fields, such as another projector."""
        return replace(self, **fields)

    def run(
        self,
        model: Any,
        dataset: Dataset,
        queries: Tensor | Trajectory,
        *,
        steps: Sequence[int] | None = None,
        noise: Tensor | None = None,  # [num_queries, num_steps, num_draws, C, H, W]
        checkpoints: Sequence[Checkpoint] | None = None,
        progress: bool = True,
    ) -> Scores:
        """Score every training image for every query.

        Args:
            model: The model, as for ``journey.featurize``.
            dataset: The training images.
            queries: Recorded generations, or images [num_queries, C, H, W]. A method that asks ``at_steps`` sees
                images through ``noised_trajectory``; another one sees only the finished images of generations.
            steps: Timesteps, of those recorded, for a method that asks ``at_steps``.
            noise: The caller's own noises for these instead, as when comparing with another implementation.
                [num_queries, num_steps, num_draws, C, H, W]
            checkpoints: Weights whose scores are averaged; the model's own by default.
            progress: Show progress bars.

        Returns:
            Scores; positive is a proponent. A method that does not ask ``at_steps`` has one step, named 0.

        Raises:
            ValueError: If a step was not recorded, an image does not fit the model, or ``noise`` has another shape or
                is given to a method that does not ask ``at_steps``.
            TypeError: If the model denoises latents.
        """
        denoiser = as_denoiser(model)
        if denoiser.is_latent:
            raise TypeError(
                f"model must denoise images, got {type(denoiser).__name__}, which denoises latents; use "
                "journey.featurize and journey.score for it"
            )
        images, condition = encode_all(denoiser, dataset, self.draws)
        total, dampings, timesteps = None, [], torch.zeros(1, dtype=torch.int64)
        weights = [None] if checkpoints is None else list(checkpoints)
        method = self if len(weights) > 1 else self.change(preconditioner=self.preconditioner.alone())
        for checkpoint in weights:
            with loaded(denoiser.network, checkpoint):
                measured, timesteps = self.measure(
                    denoiser, images, queries, steps=steps, noise=noise, condition=condition, progress=progress
                )
                scores, damping = method.compare(denoiser, images, measured)
            total = scores if total is None else total + scores
            dampings.append(damping)
        assert total is not None
        damping = sum(dampings) / len(dampings)
        return Scores((total / len(dampings)).float().cpu(), timesteps, list(range(len(images))), damping)

    def measure(
        self,
        denoiser: Denoiser,
        images: Tensor,
        queries: Tensor | Trajectory,
        *,
        steps: Sequence[int] | None = None,
        noise: Tensor | None = None,
        condition: Condition | None = None,
        progress: bool = True,
    ) -> tuple[Measured, Tensor]:
        """Measure training images and queries under the denoiser's current weights.

        Args:
            denoiser: The model.
            images: The training images. [num_train, C, H, W]
            queries: As for ``run``.
            steps: As for ``run``.
            noise: As for ``run``.
            condition: What the network is told with the training images, one row for each, or for each of its draws;
                with generations it is told what they were made with.
            progress: Show progress bars.

        Returns:
            What was measured, and the timesteps of its steps. [num_steps]

        Raises:
            ValueError: As ``run``.
        """
        projector = self.projector
        if not isinstance(projector, Projector):
            projector = projector(denoiser, images, condition)
        featurizer = Featurizer(denoiser, measurement=self.measurement, projector=projector)
        num_train, timesteps = len(images), torch.zeros(1, dtype=torch.int64)
        train, values = self._measure(featurizer, images, range(num_train), condition, progress)
        if self.at_steps:
            query, timesteps = self._measure_steps(featurizer, queries, steps, noise, progress)
        else:
            if noise is not None:
                raise ValueError(f"noise is for methods that ask at_steps; {self.name} takes it from its draws")
            finished = queries.images if isinstance(queries, Trajectory) else queries
            ids = range(num_train, num_train + len(finished))
            told = queries.condition if isinstance(queries, Trajectory) else None
            query = self._measure(featurizer, finished, ids, told, progress)[0].unsqueeze(1)
        blocks = list(getattr(projector, "blocks", [])) or [train.shape[1]]
        return Measured(train.cpu(), values.cpu(), query.cpu(), blocks), timesteps

    def compare(self, denoiser: Denoiser, images: Tensor, measured: Measured) -> tuple[Tensor, float]:
        """Turn features into scores.

        Args:
            denoiser: The model, for methods whose scores need more of it.
            images: The training images. [num_train, C, H, W]
            measured: From ``measure``.

        Returns:
            Scores, float64 [num_queries, num_steps, num_train], and the relative damping that was used.
        """
        query, train = measured.query, measured.train
        if self.cosine:
            query, train = _unit(query), _unit(train)
        flat, damping = self.preconditioner.scores(query.flatten(0, 1), train, measured.values, measured.blocks)
        if self.adjust is not None:
            flat = self.adjust(self, denoiser, images, measured, flat)
        return flat.view(*query.shape[:2], -1), damping

    def _measure(
        self, featurizer: Featurizer, images: Tensor, ids: Sequence[int], condition: Condition | None, progress: bool
    ) -> tuple[Tensor, Tensor]:
        """Features [num_samples, proj_dim] and mean values [num_samples]."""
        denoiser, draws = featurizer.denoiser, self.draws
        weights = draws.weights(denoiser.num_train_timesteps).float().to(denoiser.device)
        size = max(1, _ROWS_PER_BATCH // (draws.bins * draws.num_draws))
        rows, values = [], []
        for first in tqdm(range(0, len(ids), size), unit="batch", desc=self.name, disable=not progress):
            some, batch = list(ids[first : first + size]), images[first : first + size]
            timesteps = draws.timesteps(some, denoiser.num_train_timesteps)
            noise = draws.noise(some, tuple(batch.shape[1:]), denoiser.device)
            told = condition and condition.part(first, len(some), len(ids))
            counts = draws.row_weights(timesteps, denoiser.num_train_timesteps)
            found, measured = self._per_draw(featurizer, batch, timesteps, noise, some, told, counts)
            if self.per_draw == "concatenated":
                rows.append(found.flatten(1))
            else:
                rows.append(torch.einsum("nbk,b->nk", found, weights))
            values.append(measured @ weights)
        return torch.cat(rows), torch.cat(values)

    def _per_draw(
        self,
        featurizer: Featurizer,
        images: Tensor,
        timesteps: Tensor,
        noise: Tensor,
        ids: list[int],
        condition: Condition | None,
        counts: Tensor | None = None,  # as ``Draws.row_weights``
    ) -> tuple[Tensor, Tensor]:
        """Features, combined over the draws of each bin unless they are kept apart, and mean values."""
        if self.per_draw == "mean":
            return featurizer.features(images, timesteps, noise, condition=condition, weights=counts, ids=ids)
        if counts is not None and self.per_draw == "concatenated":
            raise ValueError("draws must all count alike where they are kept apart, got importance draws")
        num_samples, bins, num_draws = timesteps.shape
        # Each draw a bin of its own: its feature is its own gradient.
        apart, values = featurizer.features(
            images, timesteps.view(num_samples, -1, 1), noise.flatten(1, 2).unsqueeze(2), condition=condition, ids=ids
        )
        apart = _unit(apart).view(num_samples, bins, num_draws, -1)
        values = values.view(num_samples, bins, num_draws)
        if counts is not None:
            apart, values = apart * counts.to(apart).unsqueeze(-1), values * counts.to(values)
        values = values.mean(2)
        return (apart if self.per_draw == "concatenated" else apart.mean(2)), values

    def _measure_steps(
        self,
        featurizer: Featurizer,
        queries: Tensor | Trajectory,
        steps: Sequence[int] | None,
        given: Tensor | None,
        progress: bool,
    ) -> tuple[Tensor, Tensor]:
        """Features of predicted images at each step [num_queries, num_steps, proj_dim], and the steps."""
        denoiser, rows = featurizer.denoiser, []
        if not isinstance(queries, Trajectory):
            queries = noised_trajectory(denoiser, queries, steps)
        recorded = queries.timesteps.tolist()
        chosen = recorded if steps is None else [int(t) for t in steps]
        if unknown := [t for t in chosen if t not in recorded]:
            raise ValueError(f"steps must be among the recorded timesteps {recorded}, got {unknown}")
        shape, device = tuple(queries.images.shape[1:]), denoiser.device
        num_draws = self.query_draws if given is None else check_query_noise(given, len(queries.images), chosen, shape)
        size = max(1, _ROWS_PER_BATCH // num_draws)
        for step, t in enumerate(tqdm(chosen, unit="step", desc=f"{self.name}, queries", disable=not progress)):
            images, found = queries.x0_hat[:, recorded.index(t)], []
            for first in range(0, len(images), size):
                ids = list(range(first, min(first + size, len(images))))
                noise = given[ids, step] if given is not None else query_noise(0, ids, t, num_draws, shape, device)
                timesteps = torch.full((len(ids), 1, num_draws), t)
                told = queries.condition and queries.condition.part(first, len(ids), len(images))
                features = self._per_draw(featurizer, images[ids], timesteps, noise.unsqueeze(1), ids, told)[0]
                found.append(features.flatten(1))
            rows.append(torch.cat(found))
        return torch.stack(rows, 1), torch.tensor(chosen)


def _unit(features: Tensor) -> Tensor:
    """Divide by the norm; a zero stays zero."""
    norm = features.norm(dim=-1, keepdim=True)
    return features / torch.where(norm > 0, norm, 1.0)
