"""Remove the images that an attribution names, retrain, generate again from the same noise: what changed?

A change means nothing by itself, because any retraining changes a generation. So two controls are always part of it:
removing as many random images, and removing none but training with another seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from journey.checkpoints import loaded
from journey.denoiser import Denoiser, as_denoiser
from journey.draws import keyed_noise
from journey.evaluate.lds import Interval
from journey.evaluate.retrain import Run, TrainFunction, retrain
from journey.fingerprint import JSONValue
from journey.keys import derive_key, to_signed

RANDOM, RESEED = "random removal", "other seed"

Distance = Callable[[Tensor, Tensor], Tensor]


def pixel_distance(first: Tensor, second: Tensor) -> Tensor:
    """Euclidean distance of each pair of images. [num_queries]"""
    distance: Tensor = (first - second).flatten(1).norm(dim=1)
    return distance


def embedding_distance(embed: Callable[[Tensor], Tensor]) -> Distance:
    """Return the distance 1 - cosine of embeddings, such as those of CLIP or DINO.

    Args:
        embed: Maps images to embeddings. [num, C, H, W] to [num, ...]

    Returns:
        A distance as ``counterfactual`` takes.
    """

    def distance(first: Tensor, second: Tensor) -> Tensor:
        a, b = embed(first).flatten(1), embed(second).flatten(1)
        return 1 - torch.nn.functional.cosine_similarity(a, b, dim=1)

    return distance


@dataclass(frozen=True, eq=False)
class Counterfactual:
    """How far generations moved.

    Attributes:
        moved: By name of the method or control: distance of every query, mean over retraining seeds. [num_queries]
    """

    moved: dict[str, Tensor]

    def mean(self, name: str, *, num_bootstrap: int = 1000, seed: int = 0) -> Interval:
        """Return the mean over queries with its 95 % bootstrap interval over queries."""
        return _bootstrap_mean(self.moved[name], num_bootstrap, seed)

    def excess(self, name: str, control: str = RANDOM, *, num_bootstrap: int = 1000, seed: int = 0) -> Interval:
        """Return by how much generations moved more than under a control, query by query, as ``mean``."""
        return _bootstrap_mean(self.moved[name] - self.moved[control], num_bootstrap, seed)


def counterfactual(
    model: Any,
    train_fn: TrainFunction,
    methods: Mapping[str, Tensor],
    num_removed: int,
    out: str | Path,
    *,
    seeds: Sequence[int] = (0,),
    model_seed: int = 0,
    noise_seed: int = 0,
    num_inference_steps: int = 50,
    interval: tuple[int, int] | None = None,
    distance: Distance = pixel_distance,
    fingerprint: JSONValue = None,
    processes: int = 1,
    progress: bool = True,
) -> Counterfactual:
    """Retrain without each query's strongest proponents and generate the query again.

    Query q is the q-th image that ``journey.record(model, seed=noise_seed, ...)`` makes.

    Args:
        model: The attributed model with a deterministic sampler (DDIM), in any form that ``journey.featurize`` takes.
        train_fn: As for ``retrain``.
        methods: Scores by name, positive for proponents. Each [num_queries, num_train]
        num_removed: Images that are removed for each query.
        out: Folder of the retrained models; every training is done once.
        seeds: Training seeds whose distances are averaged.
        model_seed: The seed of ``model``'s own training; the control trains on all images with others.
        noise_seed: Names the noise that generations start from.
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
        ValueError: If shapes disagree, the number is out of range, or a method is named like a control.
        TypeError: If the sampler is not deterministic.

    Reference:
        Georgiev et al., "The Journey, Not the Destination", 2023, for the interval form; Zheng et al., ICLR 2024.
    """
    if {RANDOM, RESEED} & set(methods):
        raise ValueError(f"methods must not be named {RANDOM!r} or {RESEED!r}, which are controls")
    shapes = {name: tuple(scores.shape) for name, scores in methods.items()}
    if len(set(shapes.values())) != 1:
        raise ValueError(f"methods must hold at least one and all be of one shape, got {shapes}")
    num_queries, num_train = next(iter(shapes.values()))
    if not 0 < num_removed < num_train:
        raise ValueError(f"num_removed must be between 1 and {num_train - 1}, got {num_removed}")
    denoiser = as_denoiser(model)

    removed = {name: scores.topk(num_removed, dim=1).indices.tolist() for name, scores in methods.items()}
    generator = torch.Generator().manual_seed(derive_key(noise_seed, "random removal") >> 1)
    removed[RANDOM] = [
        torch.randperm(num_train, generator=generator)[:num_removed].tolist() for _ in range(num_queries)
    ]
    runs: dict[tuple[str, int], list[Run]] = {}
    for seed in seeds:
        for name, queries in removed.items():
            runs[name, seed] = [Run(_without(num_train, set(ids)), seed) for ids in queries]
        other = seed if seed != model_seed else max(*seeds, model_seed) + 1
        runs[RESEED, seed] = [Run(tuple(range(num_train)), other)] * num_queries
    flat = [run for some in runs.values() for run in some]
    files = retrain(train_fn, flat, out, fingerprint=fingerprint, processes=processes, progress=progress)
    paths = dict(zip(flat, files, strict=True))
    before = generate(denoiser, range(num_queries), seed=noise_seed, num_inference_steps=num_inference_steps)
    moved: dict[str, Tensor] = {}
    for (name, _), some in runs.items():
        after = [
            generate(
                denoiser,
                [q],
                seed=noise_seed,
                num_inference_steps=num_inference_steps,
                swapped=paths[run],
                interval=interval,
            )
            for q, run in enumerate(some)
        ]
        moved[name] = moved.get(name, 0) + distance(before, torch.cat(after)) / len(seeds)
    return Counterfactual(moved)


@torch.no_grad()
def generate(
    denoiser: Denoiser,
    queries: Sequence[int],
    *,
    seed: int,
    num_inference_steps: int,
    swapped: Path | None = None,
    interval: tuple[int, int] | None = None,
) -> Tensor:
    """Sample the images that ``journey.record`` makes, with other weights for a part of the way.

    Args:
        denoiser: The model.
        queries: Which images of the seed.
        seed: Names the images.
        num_inference_steps: Steps of the sampler.
        swapped: Weights to use instead of the model's own.
        interval: ``(high, low)``: use them only at these steps; at all by default.

    Returns:
        Images in [-1, 1], on the CPU. [num_queries, C, H, W]

    Raises:
        TypeError: If the sampler draws noise of its own: generations could not be compared.
    """
    scheduler = type(denoiser.scheduler).from_config(denoiser.scheduler.config)
    if "DDIM" not in type(scheduler).__name__:
        raise TypeError(f"the sampler must be deterministic (DDIMScheduler), got {type(scheduler).__name__}")
    scheduler.set_timesteps(num_inference_steps)
    high, low = (denoiser.num_train_timesteps, 0) if interval is None else interval
    keys = torch.tensor([to_signed(derive_key(seed, "trajectory", int(q))) for q in queries])
    assert denoiser.in_channels is not None
    assert denoiser.sample_size is not None
    shape = (denoiser.in_channels, *denoiser.sample_size)
    x: Tensor = keyed_noise(keys, 1, shape, denoiser.device, antithetic=False, per=1)[:, 0, 0]
    x = x * scheduler.init_noise_sigma
    for t in scheduler.timesteps.tolist():
        with loaded(denoiser.network, swapped if low <= t <= high else None):
            times = torch.full((len(x),), t, device=x.device)
            prediction = denoiser.predict(scheduler.scale_model_input(x, t), times)
        x = scheduler.step(prediction, t, x).prev_sample
    return x.cpu().clamp(-1, 1)


def _without(num_train: int, removed: set[int]) -> tuple[int, ...]:
    return tuple(i for i in range(num_train) if i not in removed)


def _bootstrap_mean(values: Tensor, num_bootstrap: int, seed: int) -> Interval:
    generator = torch.Generator().manual_seed(derive_key(seed, "counterfactual") >> 1)
    drawn = torch.randint(len(values), (num_bootstrap, len(values)), generator=generator)
    means = values.double()[drawn].mean(1)
    return Interval(values.double().mean().item(), *(torch.quantile(means, q).item() for q in (0.025, 0.975)))
