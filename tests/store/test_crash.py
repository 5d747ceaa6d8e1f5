"""Whatever happens to the process, the store holds whole shards, and resuming gives the bytes of an undisturbed run."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import store_runs
import torch
from store_runs import NUM_RACERS, contents, make_manifest, make_small_manifest, run

import journey
from journey.errors import StoreMismatchError
from journey.files.publish import is_temporary, publish, remove_leftovers
from journey.store.store import FeatureStore


@pytest.fixture(scope="module")
def remains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the deaths and the race of ``store_runs.py`` leave behind."""
    folder = tmp_path_factory.mktemp("remains")
    environment = {**os.environ, "PYTHONPATH": str(Path(journey.__file__).parents[1])}
    subprocess.run([sys.executable, store_runs.__file__, str(folder)], env=environment, check=True)
    return folder


@pytest.mark.parametrize(("mode", "min_deaths"), [("lines", 60), ("bytes", 20)])
def test_a_run_killed_at_any_moment_resumes_to_the_same_bytes(
    remains: Path, tmp_path: Path, mode: str, min_deaths: int
) -> None:
    expected = contents(run(tmp_path / "expected", make_small_manifest(), 3).path)
    folders = sorted((remains / mode).iterdir())
    left_temporary = 0
    for folder in folders:
        found = contents(folder)
        temporary = {name for name in found if is_temporary(name)}
        left_temporary += bool(temporary)
        torn = [name for name in found.keys() - temporary if found[name] != expected[name]]
        assert not torn, f"{folder.name}: {torn} were published before they were complete"
        run(folder, make_small_manifest(), 3)
        assert contents(folder) == expected, f"killed at {folder.name}: resuming did not give the same bytes"
    assert len(folders) > min_deaths, "the kills missed the run"
    assert left_temporary > len(folders) // 4, "the kills missed the moments of writing"


def fail_in_call(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, failing_call: int, number: int) -> None:
    """Let one call of a function fail, counted from 0."""
    real, calls = getattr(owner, name), 0

    def failing(*args: object) -> object:
        nonlocal calls
        calls += 1
        if calls == failing_call + 1:
            raise OSError(number, os.strerror(number))
        return real(*args)

    monkeypatch.setattr(owner, name, failing)


# Six shards, the part and the manifest, each with one fsync for the file and one for the folder; one more for the
# folder itself.
@pytest.mark.parametrize(
    ("owner", "name", "num_calls"), [(os, "fsync", 1 + 2 * 8), (Path, "replace", 6), (os, "link", 2)]
)
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_run_that_fails_in_any_call_resumes_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: object, name: str, num_calls: int, number: int
) -> None:
    expected = contents(run(tmp_path / "expected").path)
    for failing_call in range(num_calls):
        folder = tmp_path / f"{failing_call}"
        with monkeypatch.context() as patch:
            fail_in_call(patch, owner, name, failing_call, number)
            with pytest.raises(OSError, match="cannot write to this folder") as caught:
                run(folder)
        assert (caught.value.errno, caught.value.filename) == (number, str(folder))
        assert not [entry for entry in contents(folder) if is_temporary(entry)], "left its temporary file behind"
        run(folder)
        assert contents(folder) == expected
    fail_in_call(monkeypatch, owner, name, num_calls, number)
    run(tmp_path / "undisturbed")  # there is no further call that could fail


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    expected = contents(run(tmp_path / "expected").path)
    store = FeatureStore.create_or_resume(tmp_path / "store", make_manifest())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    store.plan([0, 7, 14, 21, 28], 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))  # a shard is larger
    try:
        with pytest.raises(OSError, match="free its space or give another folder") as caught:
            run(store.path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.filename == str(store.path)
    assert sorted(contents(store.path)) == ["manifest.json", "part-000000.safetensors"]
    assert contents(run(store.path).path) == expected


def test_processes_that_write_the_same_shard_at_once_leave_a_whole_one(remains: Path) -> None:
    """That every reader in between found a whole one, too, is asserted where they race."""
    numbers = FeatureStore.open(remains / "race").read_shard("first", store_runs.FIRST).features.unique().tolist()
    assert len(numbers) == 1, "one shard holds the numbers of several writers"
    assert numbers[0] in range(NUM_RACERS)
    assert not [name for name in contents(remains / "race") if is_temporary(name)]


def test_leftovers_of_dead_processes_go_and_files_of_living_ones_stay(tmp_path: Path) -> None:
    dead, living, other = (tmp_path / name for name in (".journey-1-ab.tmp", ".journey-2-cd.tmp", ".journey-notes"))
    for path in (dead, living, other):
        path.write_bytes(b"half")
    with living.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        remove_leftovers(tmp_path)
        assert sorted(contents(tmp_path)) == [living.name, other.name]
    remove_leftovers(tmp_path)
    assert list(contents(tmp_path)) == [other.name]


def test_leftovers_stay_where_locks_do_not_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    (tmp_path / ".journey-1-ab.tmp").write_bytes(b"perhaps half")
    publish(tmp_path / "file", [b"whole"])
    remove_leftovers(tmp_path)
    assert contents(tmp_path) == {".journey-1-ab.tmp": b"perhaps half", "file": b"whole"}


@pytest.mark.parametrize("exclusive", [False, True])
def test_a_temporary_file_that_was_taken_for_a_leftover_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exclusive: bool
) -> None:
    real, thefts = os.fsync, 3

    def stealing(descriptor: int) -> None:
        nonlocal thefts
        for entry in tmp_path.glob(".journey-*"):
            if thefts:
                thefts -= 1
                entry.unlink()
        real(descriptor)

    monkeypatch.setattr(os, "fsync", stealing)
    publish(tmp_path / "file", [b"wh", b"ole"], exclusive=exclusive)
    assert contents(tmp_path) == {"file": b"whole"}
    thefts = 1000
    with pytest.raises(OSError, match="the temporary file was deleted 8 times"):
        publish(tmp_path / "other", [b"whole"], exclusive=exclusive)
    assert contents(tmp_path) == {"file": b"whole"}


@pytest.mark.parametrize("hard_links", [True, False])
def test_exclusive_publishing_never_replaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hard_links: bool) -> None:
    if not hard_links:

        def no_links(*_: object) -> None:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr(os, "link", no_links)
    publish(tmp_path / "file", [b"first"], exclusive=True)
    with pytest.raises(FileExistsError):
        publish(tmp_path / "file", [b"second"], exclusive=True)
    assert contents(tmp_path) == {"file": b"first"}
    publish(tmp_path / "file", [b"third"])
    assert contents(tmp_path) == {"file": b"third"}


@pytest.mark.parametrize("seed", [0, 1])
def test_of_two_runs_that_create_a_store_at_once_only_equal_ones_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    real = os.link
    ours, theirs = make_manifest(fingerprints={"seed": 0}), make_manifest(fingerprints={"seed": seed})

    def other_process_first(source: Path, path: Path) -> None:
        path.write_text(theirs.to_json())
        real(source, path)

    monkeypatch.setattr(os, "link", other_process_first)
    if seed == 0:
        assert FeatureStore.create_or_resume(tmp_path, ours).manifest == theirs
    else:
        with pytest.raises(StoreMismatchError, match=r"fingerprints\.seed: 1 in the store, 0 now"):
            FeatureStore.create_or_resume(tmp_path, ours)
    assert contents(tmp_path) == {"manifest.json": theirs.to_json().encode()}


def test_what_is_published_was_synced_before_it_got_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Order alone protects against a power cut, which no test here can cause."""
    events: list[str] = []
    real_fsync, real_replace = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        target = Path(f"/proc/self/fd/{descriptor}").readlink()
        size = target.stat().st_size
        events.append("sync folder" if target.is_dir() else f"sync {size} bytes")
        real_fsync(descriptor)

    def replace(source: Path, path: Path) -> None:
        events.append(f"name {source.stat().st_size} bytes")
        real_replace(source, path)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    publish(tmp_path / "file", [b"x" * 10, memoryview(torch.ones(5).numpy()).cast("B")])
    assert events == ["sync 30 bytes", "name 30 bytes", "sync folder"]
