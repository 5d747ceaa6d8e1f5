"""Models retrained without the images that attributions name, and the models that such a change is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from journey.evaluate.retrain import Run, TrainFunction, retrain
from journey.files.fingerprint import JSONValue
from journey.ops.keys import derive_key

RANDOM, RESEED = "random removal", "other seed"


@dataclass(frozen=True, eq=False)
class Removals:
    """Retrained models.

    Attributes:
        weights: By name of the method or control: one list for each training, with the weights that each query has
            there. A method has one training per seed and query; a control's trainings serve all queries.
    """

    weights: dict[str, list[list[Path]]]


def remove(
    train_fn: TrainFunction,
    methods: Mapping[str, Tensor],
    num_removed: int,
    out: str | Path,
    *,
    seeds: Sequence[int] = (0,),
    model_seed: int = 0,
    num_controls: int = 4,
    control_seed: int = 0,
    fingerprint: JSONValue = None,
    processes: int = 1,
    progress: bool = True,
) -> Removals:
    """Retrain without each query's strongest proponents, without random images, and from other seeds.

    Args:
        train_fn: As for ``retrain``. ``RemovalTraining`` makes the removal nearly the only change, ``UNetTraining``
            does not.
        methods: Scores by name, positive for proponents; of equal ones the image with the smaller id goes first. Each
            [num_queries, num_train]
        num_removed: Images that are removed for each query.
        out: Folder of the retrained models; every training is done once.
        seeds: Training seeds of the removals.
        model_seed: The seed of the attributed model's own training; the reseed control has others.
        num_controls: Sets of random images, each removed with every seed, and other seeds with all images.
        control_seed: Names the random images.
        fingerprint: As for ``retrain``.
        processes: As for ``retrain``.
        progress: Show a progress bar.

    Returns:
        The retrained models of every method and of the two controls.

    Raises:
        ValueError: If shapes disagree, a score is NaN, a number is out of range, or a method is named like a control.
    """
    if {RANDOM, RESEED} & set(methods):
        raise ValueError(f"methods must not be named {RANDOM!r} or {RESEED!r}, which are controls")
    shapes = {name: tuple(scores.shape) for name, scores in methods.items()}
    if len(set(shapes.values())) != 1:
        raise ValueError(f"methods must hold at least one and all be of one shape, got {shapes}")
    num_queries, num_train = next(iter(shapes.values()))
    if not 0 < num_removed < num_train:
        raise ValueError(f"num_removed must be between 1 and {num_train - 1}, got {num_removed}")
    if num_controls < 1:
        raise ValueError(f"num_controls must be positive, got {num_controls}")
    broken = [name for name, scores in methods.items() if torch.isnan(scores).any()]
    if broken:
        raise ValueError(f"scores have NaN entries: those of {', '.join(broken)}")

    runs: dict[str, list[list[Run]]] = {}
    for name, scores in methods.items():
        strongest = scores.sort(dim=1, descending=True, stable=True).indices[:, :num_removed].tolist()
        runs[name] = [[_without(ids, num_train, seed) for ids in strongest] for seed in seeds]
    generator = torch.Generator("cpu").manual_seed(derive_key(control_seed, "random removal") >> 1)
    sets = [
        torch.randperm(num_train, generator=generator, dtype=torch.int64, device="cpu")[:num_removed].tolist()
        for _ in range(num_controls)
    ]
    runs[RANDOM] = [[_without(ids, num_train, seed)] * num_queries for seed in seeds for ids in sets]
    others = [seed for seed in range(num_controls + 1) if seed != model_seed][:num_controls]
    runs[RESEED] = [[_without([], num_train, seed)] * num_queries for seed in others]

    flat = [run for trainings in runs.values() for queries in trainings for run in queries]
    files = retrain(train_fn, flat, out, fingerprint=fingerprint, processes=processes, progress=progress)
    paths = dict(zip(flat, files, strict=True))
    return Removals(
        {name: [[paths[run] for run in queries] for queries in trainings] for name, trainings in runs.items()}
    )


def _without(removed: Sequence[int], num_train: int, seed: int) -> Run:
    return Run(tuple(i for i in range(num_train) if i not in set(removed)), seed)
