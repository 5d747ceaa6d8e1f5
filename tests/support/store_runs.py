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
from journey.store.store import FeatureStore

NUM_RACERS = 3


def make_manifest(**changes: Any) -> Manifest:
    """A store of 5 samples in shards of 2 under 2 checkpoints, with any field changed."""
    fields: dict[str, Any] = {
        "num_samples": 5,
        "shard_size": 2,
        "bins": 2,
        "proj_dim": 3,
        "row": "float32",
        "checkpoints": ["first", "runs/second é"],
        "library_version": "1.2.3",
        "fingerprints": {"weights": {"first": "ab", "runs/second é": "cd"}, "draws": [1, 2.5, None], "seed": 0},
    }
    return Manifest(**{**fields, **changes})


def make_small_manifest() -> Manifest:
    """Three samples in two shards: what is killed a hundred times."""
    return make_manifest(num_samples=3, checkpoints=["only"])


def make_tensors(store: FeatureStore, checkpoint: str, index: int) -> dict[str, Tensor]:
    """What the run computes for a shard: a function of the position alone, as featurizing must be."""
    begin, end = store.shard_range(index)
    bins, proj_dim = store.manifest.bins, store.manifest.proj_dim
    offset = 1000 * list(store.manifest.checkpoints).index(checkpoint)
    positions = torch.arange(begin, end)
    values = (offset + positions)[:, None] + torch.arange(bins) / 8  # [num, bins]
    features = values[:, :, None] * 3 - torch.arange(proj_dim)  # [num, bins, proj_dim]
    norm, noise = values[:, 0].float(), values[:, 0].float() / 4
    return {"features": features.float(), "norm": norm, "noise": noise, "values": values.float(), "ids": positions * 7}


def run(path: Path, manifest: Manifest | None = None) -> FeatureStore:
    """Featurize what is missing."""
    store = FeatureStore.create_or_resume(path, manifest or make_manifest())
    for checkpoint in store.manifest.checkpoints:
        for index in store.missing(checkpoint):
            store.write_shard(checkpoint, index, **make_tensors(store, checkpoint, index))
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
    """Run, and die by SIGKILL before the given line of ``publish.py`` or ``create_or_resume``."""
    lines = 0

    def trace(frame: FrameType, event: str, _: object) -> object:
        nonlocal lines
        code = frame.f_code
        if code.co_filename != publish.__file__ and code.co_name != "create_or_resume":
            return None
        lines += event == "line"
        if lines == deadline:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    run(path, make_small_manifest())


def run_until_byte(path: Path, num_bytes: int) -> None:
    """Run, and die by SIGXFSZ in the write that takes a file beyond ``num_bytes``, with those bytes written."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))
    run(path, make_small_manifest())


def race(path: Path) -> None:
    """Write one shard again and again, each process its own numbers, while all clear away leftovers and one reads."""

    def racer(number: int) -> None:
        for _ in range(10):
            store = FeatureStore.create_or_resume(path, make_manifest())
            tensors = make_tensors(store, "first", 0)
            store.write_shard("first", 0, **{**tensors, "features": torch.full_like(tensors["features"], number)})

    def reader() -> None:
        while True:
            store.read_shard("first", 0)  # raises on a shard that is not whole
            time.sleep(0.001)  # leave the processor to the racers

    store = run(path)
    store.shard_path("first", 1).unlink()  # an incomplete store, so that the racers probe for write access, too
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
