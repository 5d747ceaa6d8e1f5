"""A featurizing run that is killed at any moment continues to the bytes of a run that was not.

Run as a script (``python test_resume.py FOLDER``) this file is the run that dies: it forks, kills the fork after a
random number of shards and a random time, and starts again, until nothing is missing. Forks share the imports, which
cost more than the run.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from models import Images, SmallDenoiser, make_images, make_scheduler
from torch import Tensor

import journey
from journey.files.publish import is_temporary
from journey.store.part import ShardName
from journey.store.store import FeatureStore

NUM_KILLED = 24  # images of the run that dies
NUM_SHARDS = NUM_KILLED  # of two images, under each of two checkpoints


def run(out: Path, dataset: Images | None = None) -> journey.Features:
    """The run: shards of two images, two checkpoints, a batch larger than the shard; 12 images unless given."""
    return journey.featurize(
        (SmallDenoiser(), make_scheduler()),
        Images(make_images(12)) if dataset is None else dataset,
        out,
        checkpoints=[SmallDenoiser(1), SmallDenoiser(2)],
        projector=journey.CountSketch(64),
        draws=journey.StratifiedDraws(num_draws=2, bins=2),
        shard_size=2,
        batch_size=3,
        progress=False,
    )


class SlowImages(Images):
    """A dataset that takes its time, so that a kill hits the run wherever a disk is fast."""

    def __getitem__(self, index: int) -> Tensor:
        time.sleep(0.002)
        return super().__getitem__(index)


def shards(path: Path) -> set[str]:
    """Names of the finished shards."""
    return {entry.name for entry in path.glob("rows-*.safetensors")} if path.exists() else set()


def contents(path: Path) -> dict[str, bytes]:
    """Every file in a folder with its bytes."""
    return {str(entry.relative_to(path)): entry.read_bytes() for entry in path.rglob("*") if entry.is_file()}


def die_again_and_again(folder: Path) -> None:
    """Start the run until it is complete; kill it each time after up to four new shards and a few milliseconds."""
    chance = random.Random(0)
    store, log = folder / "killed", folder / "deaths"
    while len(shards(store)) < NUM_SHARDS:
        pid = os.fork()
        if pid == 0:
            run(store, SlowImages(make_images(NUM_KILLED)))
            os._exit(0)
        enough = len(shards(store)) + chance.randrange(5)
        while len(shards(store)) < enough and os.waitpid(pid, os.WNOHANG) == (0, 0):
            time.sleep(0.0005)
        time.sleep(chance.uniform(0, 0.01))
        try:
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            return
        if os.WIFSIGNALED(status):
            with log.open("a") as file:
                file.write(" ".join(sorted(shards(store))) + "\n")


def test_a_run_that_is_killed_again_and_again_gives_the_bytes_of_one_that_is_not(tmp_path: Path) -> None:
    folders = [str(Path(journey.__file__).parents[1]), str(Path(__file__).parents[1] / "support")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    subprocess.run([sys.executable, __file__, str(tmp_path)], env=environment, check=True, timeout=300)
    deaths = (tmp_path / "deaths").read_text().splitlines()
    assert len(deaths) >= 4, "the kills missed the run"
    assert len(set(deaths)) >= 3, "the run always died at the same shard"
    torch.set_num_threads(1)  # as the script: the number of threads may change a sum's last bit
    try:
        dataset = Images(make_images(NUM_KILLED))
        expected = contents(run(tmp_path / "expected", dataset).store.path)
        found = contents(tmp_path / "killed")
        torn = [name for name in found if not is_temporary(name) and found[name] != expected[name]]
        assert not torn, f"{torn} differ from the files of an uninterrupted run"
        run(tmp_path / "killed", dataset)
    finally:
        torch.set_num_threads(2)
    assert contents(tmp_path / "killed") == expected


class Interrupted(Exception):  # noqa: N818
    """What happens at an image."""


class Interrupting(Images):
    """A dataset that counts which images are read after ``armed``, and breaks at one of them."""

    def __init__(self, images: Tensor, breaks_at: int | None = None) -> None:
        super().__init__(images)
        self.breaks_at = breaks_at
        self.reads: list[int] = []

    def __getitem__(self, index: int) -> Tensor:
        self.reads.append(index)
        # Each image is read once before the work begins, and once for the fit; the third time it is measured.
        if index == self.breaks_at and self.reads.count(index) > 2:
            raise Interrupted
        return super().__getitem__(index)


@pytest.mark.parametrize("breaks_at", [0, 5, 11])
def test_finished_shards_are_not_computed_again(tmp_path: Path, breaks_at: int) -> None:
    images = make_images(12)
    with pytest.raises(ValueError, match=rf"dataset\[{breaks_at}\] cannot be read: Interrupted"):
        run(tmp_path / "f", Interrupting(images, breaks_at))
    finished = breaks_at // 2
    assert len(shards(tmp_path / "f")) == 2 * finished  # under two checkpoints
    again = Interrupting(images)
    run(tmp_path / "f", again)
    assert again.reads[12:] == list(range(2 * finished, 12))
    assert contents(tmp_path / "f") == contents(run(tmp_path / "g").store.path)


def test_a_complete_run_measures_nothing(tmp_path: Path) -> None:
    run(tmp_path / "f")
    before, dataset = contents(tmp_path / "f"), Interrupting(make_images(12))
    features = run(tmp_path / "f", dataset)
    assert len(dataset.reads) == 12, "images are read once before the work begins, and not to be measured"
    assert contents(tmp_path / "f") == before
    assert features.store.is_complete


def test_a_shard_that_was_lost_is_computed_again(tmp_path: Path) -> None:
    store = run(tmp_path / "f").store
    before = contents(tmp_path / "f")
    store.shard_path("1", ShardName("000000", 3)).unlink()
    dataset = Interrupting(make_images(12))
    run(tmp_path / "f", dataset)
    assert dataset.reads[12:] == [6, 7]
    assert contents(tmp_path / "f") == before
    assert FeatureStore.open(tmp_path / "f").is_complete


if __name__ == "__main__":
    torch.set_num_threads(1)  # a fork has no thread pool
    die_again_and_again(Path(sys.argv[1]))
