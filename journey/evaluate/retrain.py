"""Retrained models, each trained once: a folder of weights that is continued after any interruption."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save
from torch import nn
from tqdm.auto import tqdm

from journey.errors import StoreMismatchError
from journey.files.fingerprint import JSONValue, canonical_json, fingerprint_json
from journey.files.publish import publish, remove_leftovers

TrainFunction = Callable[[Sequence[int], int], nn.Module]

_MANIFEST = "retrained.json"


class Run(NamedTuple):
    """One training: on these images, with this seed."""

    indices: tuple[int, ...]
    seed: int


def retrain(
    train_fn: TrainFunction,
    runs: Sequence[Run],
    out: str | Path,
    *,
    fingerprint: JSONValue = None,
    processes: int = 1,
    progress: bool = True,
) -> list[Path]:
    """Train a model for every run, unless the folder has it already.

    Every training uses one thread, so that the weights do not depend on how many run at once.

    Args:
        train_fn: ``train_fn(indices, seed)`` returns the trained network. With several processes it is sent to them,
            so it must be picklable.
        runs: What to train. The same run twice is trained once.
        out: Folder of the weights.
        fingerprint: What determines the models besides indices and seed, as JSON values; by default
            ``train_fn.fingerprint()``.
        processes: How many trainings at once.
        progress: Show a progress bar.

    Returns:
        The safetensors file of each run, in the order of ``runs``.

    Raises:
        ValueError: If ``train_fn`` has no fingerprint and none is given, or ``processes`` is not positive.
        StoreMismatchError: If the folder holds models of another ``train_fn``.
    """
    if processes < 1:
        raise ValueError(f"processes must be positive, got {processes}")
    if fingerprint is None:
        if not hasattr(train_fn, "fingerprint"):
            raise ValueError("fingerprint must say what determines the models, as train_fn has no fingerprint()")
        fingerprint = train_fn.fingerprint()
    folder = Path(out)
    _claim(folder, fingerprint)
    paths = [folder / f"{_name(run)}.safetensors" for run in runs]
    missing = {path: run for path, run in zip(paths, runs, strict=True) if not path.exists()}
    with tqdm(total=len(missing), unit="model", desc="retrain", disable=not progress, dynamic_ncols=True) as bar:
        if processes == 1:
            for path, run in missing.items():
                _train(train_fn, run, path)
                bar.update()
        else:
            # Forked children of a process that has used OpenMP may hang; spawned ones start afresh.
            with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
                futures = [pool.submit(_train, train_fn, run, path) for path, run in missing.items()]
                for future in as_completed(futures):
                    future.result()
                    bar.update()
    return paths


def _claim(folder: Path, fingerprint: JSONValue) -> None:
    """Write down what the folder is for, or refuse one that is for something else."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    path = folder / _MANIFEST
    if not path.exists():
        publish(path, [json.dumps({"train_fn": fingerprint}, indent=1).encode()])
        return
    found = json.loads(path.read_text())["train_fn"]
    if canonical_json(found) != canonical_json(fingerprint):
        names = sorted({*found, *fingerprint}) if isinstance(found, dict) and isinstance(fingerprint, dict) else []
        differing = [name for name in names if found.get(name) != fingerprint.get(name)]  # type: ignore[union-attr]
        raise StoreMismatchError(
            f"{folder} holds models of another train_fn{': other ' + ', '.join(differing) if differing else ''}; "
            "give another folder"
        )


def _name(run: Run) -> str:
    return fingerprint_json({"indices": list(run.indices), "seed": run.seed})[:20]


def _train(train_fn: TrainFunction, run: Run, path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        network = train_fn(run.indices, run.seed)
    finally:
        torch.set_num_threads(threads)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    publish(path, [save(weights)])
