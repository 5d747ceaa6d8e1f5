"""Remove the images that an attribution names, retrain, generate again from the same noise: what changed?

A change means nothing by itself, because any retraining changes a generation. So two controls are always part of it:
removing as many random images, and removing none but training with another seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from journey.evaluate.effects import Distance, Effect, generation_change, pixel_distance
from journey.evaluate.lds import Interval
from journey.evaluate.removal import RANDOM, Removals, remove
from journey.evaluate.retrain import TrainFunction
from journey.files.fingerprint import JSONValue
from journey.models.load import as_denoiser
from journey.ops.keys import derive_key


@dataclass(frozen=True, eq=False)
class Counterfactual:
    """How much changed for every query.

    Intervals are 95 % bootstrap intervals over queries and trainings, the same queries on both sides of a difference.

    Attributes:
        runs: By name of the method or control: the change in each training. [num_trainings, num_queries]
    """

    runs: dict[str, Tensor]

    @property
    def moved(self) -> dict[str, Tensor]:
        """By name: the change of every query, mean over trainings. [num_queries]"""
        return {name: runs.mean(0) for name, runs in self.runs.items()}

    def mean(self, name: str, *, num_bootstrap: int = 1000, seed: int = 0) -> Interval:
        """Return the mean over queries with its interval."""
        point = self.runs[name].double().mean().item()
        return _interval(point, self._resampled(name, num_bootstrap, seed))

    def excess(self, name: str, control: str = RANDOM, *, num_bootstrap: int = 1000, seed: int = 0) -> Interval:
        """Return by how much queries changed more than under a control, or another method, as ``mean``."""
        point = (self.runs[name].double().mean() - self.runs[control].double().mean()).item()
        resampled = self._resampled(name, num_bootstrap, seed) - self._resampled(control, num_bootstrap, seed)
        return _interval(point, resampled)

    def share(self, name: str, control: str = RANDOM) -> float:
        """Return the share of queries that changed more than under a control, or another method."""
        return (self.moved[name] > self.moved[control]).double().mean().item()

    def _resampled(self, name: str, num_bootstrap: int, seed: int) -> Tensor:
        """The mean over queries in every resample; equal seeds resample the same queries. [num_bootstrap]"""
        runs = self.runs[name].double()
        num_runs, num_queries = runs.shape
        generator = torch.Generator("cpu").manual_seed(derive_key(seed, "counterfactual") >> 1)
        queries = torch.randint(
            num_queries, (num_bootstrap, num_queries), generator=generator, dtype=torch.int64, device="cpu"
        )
        generator.manual_seed(derive_key(seed, "counterfactual", name) >> 1)
        drawn = torch.randint(num_runs, (num_bootstrap, num_runs), generator=generator, dtype=torch.int64, device="cpu")
        return runs[drawn].mean(1).gather(1, queries).mean(1)


def measure_effect(removals: Removals, effect: Effect) -> Counterfactual:
    """Measure what every retrained model does to its queries.

    Args:
        removals: The models, from ``remove``.
        effect: What is measured, from ``journey.evaluate.effects`` or any function of that form.

    Returns:
        The change of every query.

    Raises:
        ValueError: If an effect is NaN.
    """
    runs = {}
    for name, trainings in removals.weights.items():
        rows = torch.empty(len(trainings), len(trainings[0]), dtype=torch.float32, device="cpu")
        for row, files in zip(rows, trainings, strict=True):
            for weights in dict.fromkeys(files):
                queries = [q for q, file in enumerate(files) if file == weights]
                row[queries] = effect(weights, queries).to(row)
        if torch.isnan(rows).any():
            raise ValueError(f"the effect must be a number, got NaN for {name!r}")
        runs[name] = rows
    return Counterfactual(runs)


def counterfactual(
    model: Any,
    train_fn: TrainFunction,
    methods: Mapping[str, Tensor],
    num_removed: int,
    out: str | Path,
    *,
    seeds: Sequence[int] = (0,),
    model_seed: int = 0,
    num_controls: int = 4,
    noise_seed: int = 0,
    num_inference_steps: int = 50,
    interval: tuple[int, int] | None = None,
    distance: Distance = pixel_distance,
    fingerprint: JSONValue = None,
    processes: int = 1,
    progress: bool = True,
) -> Counterfactual:
    """Retrain without each query's strongest proponents and generate the query again.

    It is ``measure_effect(remove(...), generation_change(model, ...))``; these apart measure several effects of the
    same models. Query q is the q-th image that ``journey.record(model, seed=noise_seed, ...)`` makes.

    Args:
        model: The attributed model with a deterministic sampler (DDIM), in any form that ``journey.featurize`` takes.
        train_fn: As for ``remove``.
        methods: Scores by name, positive for proponents. Each [num_queries, num_train]
        num_removed: Images that are removed for each query.
        out: Folder of the retrained models; every training is done once.
        seeds: Training seeds whose distances are averaged.
        model_seed: The seed of ``model``'s own training; the control trains on all images with others.
        num_controls: As for ``remove``.
        noise_seed: Names the noise that generations start from, and the random images.
        num_inference_steps: Steps of the sampler.
        interval: ``(high, low)``: use the retrained model only at steps with ``low <= t <= high`` and the attributed
            model at the others, as for an attribution of the step ``high``; everywhere by default.
        distance: Distance of each pair of images, ``pixel_distance`` or ``embedding_distance(...)``.
        fingerprint: As for ``retrain``.
        processes: As for ``retrain``.
        progress: Show progress bars.

    Returns:
        How far the generations of every method and of the two controls moved from those of ``model``.

    Raises:
        ValueError: If shapes disagree, a score is NaN, a number is out of range, or a method is named like a control.
        TypeError: If the sampler is not deterministic.

    Reference:
        Georgiev et al., "The Journey, Not the Destination", 2023, for the interval form; Zheng et al., ICLR 2024.
    """
    effect = generation_change(
        as_denoiser(model),
        noise_seed=noise_seed,
        num_inference_steps=num_inference_steps,
        interval=interval,
        distance=distance,
    )
    removals = remove(
        train_fn,
        methods,
        num_removed,
        out,
        seeds=seeds,
        model_seed=model_seed,
        num_controls=num_controls,
        control_seed=noise_seed,
        fingerprint=fingerprint,
        processes=processes,
        progress=progress,
    )
    return measure_effect(removals, effect)


def _interval(value: float, resampled: Tensor) -> Interval:
    return Interval(value, *(torch.quantile(resampled, q).item() for q in (0.025, 0.975)))
