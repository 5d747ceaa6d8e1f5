"""One engine for attribution methods: what is measured, at which draws, projected how, and compared with which kernel.

Published methods are configurations of it (``journey.methods``). Features of all images are held in memory, which is
for comparing methods on data of moderate size; ``journey.featurize`` keeps them on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from journey.data.items import Dataset
from journey.generation.noised import noised_trajectory
from journey.generation.trajectory import Trajectory
from journey.measure.draws import Draws, StratifiedDraws
from journey.measure.featurizer import Featurizer
from journey.measure.measurements import Measurement, TrainingLoss
from journey.methods.in_memory import DrawFeatures, PerDraw, normalized
from journey.methods.preconditioners import Gram, Preconditioner
from journey.models.checkpoints import Checkpoint, loaded
from journey.models.condition import Encoded
from journey.models.denoiser import Denoiser
from journey.models.encoding import choose_captions, encode_all
from journey.models.load import as_denoiser
from journey.projectors.base import Projector
from journey.projectors.random import CountSketch
from journey.scores.queries import check_query_noise
from journey.scores.scores import Scores

MakeProjector = Callable[[Denoiser, Encoded], Projector]
Adjust = Callable[[Tensor, "Scored"], Tensor]


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


class Scored(NamedTuple):
    """What scores were made from, for a method that changes them at the end.

    Attributes:
        method: The method.
        denoiser: The model, under the weights that were measured.
        samples: The training images as it takes them.
        measured: Their features and those of the queries.
    """

    method: Method
    denoiser: Denoiser
    samples: Encoded
    measured: Measured


@dataclass(frozen=True)
class Method:
    """An attribution method.

    Attributes:
        name: What it is called.
        reference: Where it is published.
        measurement: What is differentiated.
        draws: Timesteps and noise of training images, and of queries that are images; these continue the ids of the
            training images, so that keyed draws of the two are independent and shared draws are shared.
        projector: Maps gradients to features; or a function ``projector(denoiser, samples)`` of the model under its
            current weights and the training images as it takes them that returns it, for one that is made or fitted
            for them.
        per_draw: ``"mean"``: the gradient of the mean over draws. ``"normalized"``: the mean of every draw's feature
            divided by its norm. ``"concatenated"``: these side by side, so that only equal draws are compared.
        at_steps: Queries are the images predicted along a trajectory, noised again to each step; otherwise they are
            finished images.
        query_draws: Noises per query and step where ``at_steps``.
        preconditioner: The kernel.
        cosine: Divide features by their norm before they are compared.
        adjust: Changes the scores at the end: ``adjust(scores, scored)``.

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
        dataset: Dataset | Tensor,
        queries: Trajectory | Dataset | Tensor,
        *,
        steps: Sequence[int] | None = None,
        noise: Tensor | None = None,  # [num_queries, num_steps, num_draws, C, H, W]
        checkpoints: Sequence[Checkpoint] | None = None,
        batch_size: int | None = None,
        progress: bool = True,
    ) -> Scores:
        """Score every training image for every query.

        The frozen parts of a model (VAE, text encoders) run once per image and caption.

        Args:
            model: The model, as for ``journey.featurize``.
            dataset: The training images, a map-style dataset, with captions or labels where the model reads them.
            queries: Recorded generations, measured with what they were made with; or images in the same forms as the
                training images, with captions or labels of their own. A method that asks ``at_steps`` sees images
                through ``noised_trajectory``; another one sees only the finished images of generations.
            steps: Timesteps, of those recorded, for a method that asks ``at_steps``.
            noise: The caller's own noises for these instead, as when comparing with another implementation.
                [num_queries, num_steps, num_draws, C, H, W]
            checkpoints: Weights whose scores are averaged; the model's own by default.
            batch_size: Images that are measured at once, each with all its draws; by default as many as make 128 rows.
                Changes scores only by rounding.
            progress: Show progress bars.

        Returns:
            Scores; positive is a proponent. A method that does not ask ``at_steps`` has one step, named 0.

        Raises:
            ValueError: If a step was not recorded, an image does not fit the model, a caption or label is missing,
                ``noise`` has another shape or is given to a method that does not ask ``at_steps``, or a number is not
                positive.
            TypeError: If the model or an image has an unknown form.
        """
        denoiser = as_denoiser(model)
        weights = [None] if checkpoints is None else list(checkpoints)
        if not weights:
            raise ValueError("checkpoints must name at least one set of weights, got none")
        samples = encode_all(denoiser, dataset)
        asked = _encode_queries(denoiser, samples, queries)
        total, dampings, timesteps = None, [], torch.zeros(1, dtype=torch.int64, device="cpu")
        method = self if len(weights) > 1 else self.change(preconditioner=self.preconditioner.alone())
        for checkpoint in weights:
            with loaded(denoiser.network, checkpoint):
                measured, timesteps = self.measure(
                    denoiser, samples, asked, steps=steps, noise=noise, batch_size=batch_size, progress=progress
                )
                scores, damping = method.compare(denoiser, samples, measured)
            total = scores if total is None else total + scores
            dampings.append(damping)
        assert total is not None
        damping = sum(dampings) / len(dampings)
        return Scores((total / len(dampings)).float().cpu(), timesteps, list(range(len(samples))), damping)

    def measure(
        self,
        denoiser: Denoiser,
        dataset: Dataset | Tensor | Encoded,
        queries: Trajectory | Dataset | Tensor | Encoded,
        *,
        steps: Sequence[int] | None = None,
        noise: Tensor | None = None,
        batch_size: int | None = None,
        progress: bool = True,
    ) -> tuple[Measured, Tensor]:
        """Measure training images and queries under the denoiser's current weights.

        Args:
            denoiser: The model.
            dataset: As for ``run``, or encoded already.
            queries: As for ``run``, or images encoded already.
            steps: As for ``run``.
            noise: As for ``run``.
            batch_size: As for ``run``.
            progress: Show progress bars.

        Returns:
            What was measured, and the timesteps of its steps. [num_steps]

        Raises:
            ValueError: As ``run``.
            TypeError: As ``run``.
        """
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be positive, got {batch_size}")
        if noise is not None and not self.at_steps:
            raise ValueError(f"noise is for methods that ask at_steps; {self.name} takes it from its draws")
        samples = encode_all(denoiser, dataset)
        asked = _encode_queries(denoiser, samples, queries)
        projector = self.projector
        if not isinstance(projector, Projector):
            projector = projector(denoiser, samples)
        featurizer = Featurizer(denoiser, measurement=self.measurement, projector=projector)
        measuring = DrawFeatures(featurizer, self.per_draw, self.name, batch_size, progress)
        train, values = measuring.of_samples(samples, self.draws)
        if self.at_steps:
            trajectory, chosen = _along_steps(denoiser, len(samples), asked, steps)
            num_draws, shape = self.query_draws, tuple(trajectory.images.shape[1:])
            if noise is not None:
                num_draws = check_query_noise(noise, trajectory.num_queries, chosen, shape)
            query = measuring.of_steps(trajectory, chosen, num_draws, noise)
        else:
            chosen, finished = [0], asked.finished if isinstance(asked, Trajectory) else asked
            query = measuring.of_samples(finished, self.draws, len(samples))[0].unsqueeze(1)
        blocks = list(getattr(projector, "blocks", [])) or [train.shape[1]]
        return Measured(train.cpu(), values.cpu(), query.cpu(), blocks), torch.tensor(
            chosen, dtype=torch.int64, device="cpu"
        )

    def compare(
        self, denoiser: Denoiser, dataset: Dataset | Tensor | Encoded, measured: Measured
    ) -> tuple[Tensor, float]:
        """Turn features into scores.

        Args:
            denoiser: The model, for methods whose scores need more of it.
            dataset: As for ``measure``, likewise.
            measured: From ``measure``.

        Returns:
            Scores, float64 [num_queries, num_steps, num_train], and the relative damping that was used.
        """
        query, train = measured.query, measured.train
        if self.cosine:
            query, train = normalized(query), normalized(train)
        flat, damping = self.preconditioner.scores(query.flatten(0, 1), train, measured.values, measured.blocks)
        if self.adjust is not None:
            flat = self.adjust(flat, Scored(self, denoiser, encode_all(denoiser, dataset), measured))
        return flat.view(*query.shape[:2], -1), damping


def _encode_queries(
    denoiser: Denoiser, samples: Encoded, queries: Trajectory | Dataset | Tensor | Encoded
) -> Trajectory | Encoded:
    """The generations, or the images as the network takes them, with ids that continue those of the training images."""
    if isinstance(queries, Trajectory):
        return queries
    return encode_all(denoiser, queries, first_id=len(samples), name="queries")


def _along_steps(
    denoiser: Denoiser, first_id: int, queries: Trajectory | Encoded, steps: Sequence[int] | None
) -> tuple[Trajectory, list[int]]:
    """The generations that are asked about, or what stands in for them, and the steps that are."""
    if isinstance(queries, Encoded):
        ids = range(first_id, first_id + len(queries))
        told = queries.conditions(choose_captions(0, ids, queries.counts, 1))
        queries = noised_trajectory(denoiser, queries.x0, steps, condition=told)
    queries.check_schedule(denoiser.schedule)
    recorded = queries.timesteps.tolist()
    chosen = recorded if steps is None else [int(t) for t in steps]
    unknown = [t for t in chosen if t not in recorded]
    if unknown or not chosen:
        raise ValueError(f"steps must be among the recorded timesteps {recorded}, got {unknown or 'none'}")
    return queries, chosen
