"""A featurizing run made of numbers alone, for the tests of the store; run as a script, it is a run that dies.

``python store_runs.py FOLDER`` kills the run once before every line that touches the disk, each time in a folder of
its own under ``FOLDER/lines``; then in the middle of writing, after so many bytes of a file, under ``FOLDER/bytes``;
then lets several processes write the store ``FOLDER/race`` while it reads. All of it happens in forks of this one small
process, which cost milliseconds each.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from journey.files import publish
from journey.store.manifest import Manifest
from journey.store.part import ShardName
from journey.store.store import FeatureStore

NUM_RACERS = 3
FIRST = ShardName("000000", 0)


NUM_SAMPLES, SHARD_SIZE = 5, 2


def make_manifest(**changes: Any) -> Manifest:
    """A store under 2 checkpoints, with any field changed."""
    fields: dict[str, Any] = {
        "bins": 2,
        "proj_dim": 3,
        "row": "float32",
        "checkpoints": ["first", "runs/second é"],
        "library_version": "1.2.3",
        "fingerprints": {"weights": {"first": "ab", "runs/second é": "cd"}, "draws": [1, 2.5, None], "seed": 0},
    }
    return Manifest(**{**fields, **changes})


def make_small_manifest() -> Manifest:
    """What is killed a hundred times, with three samples in two shards."""
    return make_manifest(checkpoints=["only"])


def ids_of(store: FeatureStore, shard: ShardName) -> list[int | str]:
    """The images that a shard is planned to hold."""
    return next(part.ids_of(shard.number) for part in store.parts() if part.name == shard.part)


def make_tensors(store: FeatureStore, checkpoint: str, ids: list[int]) -> dict[str, Tensor]:
    """What the run computes for a shard: a function of the ids alone, as featurizing must be."""
    bins, proj_dim = store.manifest.bins, store.manifest.proj_dim
    offset = 1000 * list(store.manifest.checkpoints).index(checkpoint)
    positions = torch.tensor(ids) // 7
    values = (offset + positions)[:, None] + torch.arange(bins) / 8  # [num, bins]
    features = values[:, :, None] * 3 - torch.arange(proj_dim)  # [num, bins, proj_dim]
    norm, noise = values[:, 0].float(), values[:, 0].float() / 4
    return {"features": features.float(), "norm": norm, "noise": noise, "values": values.float(), "content": positions}


def run(path: Path, manifest: Manifest | None = None, num_samples: int = NUM_SAMPLES) -> FeatureStore:
    """Featurize what is missing."""
    store = FeatureStore.create_or_resume(path, manifest or make_manifest())
    store.plan([7 * i for i in range(num_samples)], SHARD_SIZE)
    for checkpoint in store.manifest.checkpoints:
        for shard in store.missing(checkpoint):
            ids = ids_of(store, shard)
            store.write_shard(checkpoint, shard, ids, **make_tensors(store, checkpoint, ids))
    return store


def contents(path: Path) -> dict[str, bytes]:
    """Every file in a folder with its bytes."""
    return {entry.name: entry.read_bytes() for entry in path.iterdir()}


def fork(child: Callable[[], object]) -> int:
    """Run a function in a child process; return its id."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            child()
            status = 0
        finally:
            os._exit(status)
    return pid


def died_by(pid: int) -> int:
    """Wait for a child; return the signal that ended it, 0 for a normal end."""
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, f"child failed with status {status}"
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def run_until_line(path: Path, deadline: int) -> None:
    """Run, and die by SIGKILL before the given line of ``publish.py``, ``create_or_resume`` or ``plan``."""
    lines = 0

    def trace(frame: FrameType, event: str, _: object) -> object:
        nonlocal lines
        code = frame.f_code
        if code.co_filename != publish.__file__ and code.co_name not in ("create_or_resume", "plan"):
            return None
        lines += event == "line"
        if lines == deadline:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    run(path, make_small_manifest(), 3)


def run_until_byte(path: Path, num_bytes: int) -> None:
    """Run, and die by SIGXFSZ in the write that takes a file beyond ``num_bytes``, with those bytes written."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))
    run(path, make_small_manifest(), 3)


def race(path: Path) -> None:
    """Write one shard again and again, each process its own numbers, while all clear away leftovers and one reads."""

    def racer(number: int) -> None:
        for _ in range(10):
            store = FeatureStore.create_or_resume(path, make_manifest())
            store.plan([7 * i for i in range(NUM_SAMPLES)], SHARD_SIZE)
            tensors = make_tensors(store, "first", [0, 7])
            features = torch.full_like(tensors["features"], number)
            store.write_shard("first", FIRST, [0, 7], **{**tensors, "features": features})

    def reader() -> None:
        while True:
            store.read_shard("first", FIRST)  # raises on a shard that is not whole
            time.sleep(0.001)  # leave the processor to the racers

    store = run(path)
    store.shard_path("first", ShardName("000000", 1)).unlink()  # so that the racers probe for write access, too
    watch = fork(reader)
    pids = [fork(partial(racer, number)) for number in range(NUM_RACERS)]
    assert [died_by(pid) for pid in pids] == [0] * NUM_RACERS
    os.kill(watch, signal.SIGKILL)
    assert died_by(watch) == signal.SIGKILL, "a reader found a shard that is not whole"


def sweep(folder: Path, die: Callable[[Path, int], None], step: int) -> None:
    """Die later and later until a run survives."""
    folder.mkdir()
    moment = 0
    while died_by(fork(partial(die, folder / f"{moment:06d}", moment))):
        moment += step


if __name__ == "__main__":
    torch.set_num_threads(1)  # a fork has no thread pool
    target = Path(sys.argv[1])
    sweep(target / "lines", run_until_line, 1)
    sweep(target / "bytes", run_until_byte, 19)
    race(target / "race")
