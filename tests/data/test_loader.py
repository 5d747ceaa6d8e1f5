"""Workers read ahead: the same items in the same order, whatever fails, stops or dies."""

from __future__ import annotations

import gc
import io
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import encoded, grey_of, write_parquet, write_tar
from PIL import Image

from journey.data import loader
from journey.data.loader import read_batches, read_stream
from journey.data.picture import Form
from journey.data.sources import open_dataset
from journey.data.stream import Failed, IterableStream, Stream
from journey.data.tar import TarShards

WORKERS = [0, 1, 2]


class Items:
    """A dataset that answers by a function, which no other process could import."""

    def __init__(self, count: int, item: Any) -> None:
        self.count, self.item = count, item

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.item(index)


def children() -> set[int]:
    """The processes that this one has started and that run."""
    return {worker.pid for worker in multiprocessing.active_children() if worker.pid is not None}


def runs(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    before = children()
    yield
    deadline = time.monotonic() + 20
    while (left := children() - before) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left, "a worker was left running"


@settings(max_examples=10, deadline=None)
@given(batches=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4), max_size=6), workers=st.integers(0, 2))
def test_batches_come_in_their_order_with_their_items(batches: list[list[int]], workers: int) -> None:
    dataset = Items(10, lambda i: {"image": i, "text": str(i)})
    found = list(read_batches(dataset, iter(batches), workers))
    assert found == [(batch, [{"image": i, "text": str(i)} for i in batch]) for batch in batches]


@settings(max_examples=10, deadline=None)
@given(count=st.integers(0, 9), batch_size=st.integers(1, 4), workers=st.integers(0, 2), shared=st.booleans())
def test_a_stream_comes_in_its_order(count: int, batch_size: int, workers: int, shared: bool) -> None:
    stream = IterableStream([(f"i{i}", i) for i in range(count)])
    stream.many_readers = shared
    pairs = [(f"i{i}", i) for i in range(count)]
    found = list(read_stream(stream, batch_size, workers))
    assert found == [pairs[i : i + batch_size] for i in range(0, count, batch_size)]


@pytest.mark.parametrize("workers", WORKERS)
def test_batches_are_pulled_only_a_few_ahead(workers: int) -> None:
    pulled = []

    def claims() -> Iterator[list[int]]:
        for i in range(100):
            pulled.append(i)
            yield [i]

    read = read_batches(Items(100, lambda i: i), claims(), workers)
    assert pulled == []
    for i in range(3):
        assert next(read) == ([i], [i])
        assert len(pulled) <= i + 1 + 2 * workers
    read.close()
    assert len(pulled) <= 3 + 2 * workers


@pytest.mark.parametrize("workers", WORKERS)
def test_items_of_every_kind_arrive_as_they_were(workers: int) -> None:
    base = torch.arange(600, dtype=torch.float32).reshape(100, 6)
    items: list[Any] = [
        base[50, 1:3],
        base.T[2:4, ::7],
        torch.tensor(3, dtype=torch.int64),
        torch.zeros(0, 3, dtype=torch.bfloat16),
        torch.tensor([1.5, -2], dtype=torch.bfloat16),
        torch.tensor([True, False], dtype=torch.bool),
        np.arange(4, dtype=np.uint8)[::-1],
        (torch.ones(2, dtype=torch.float16), "caption", 7),
        {"image": torch.ones(1, dtype=torch.uint8), "text": ["a", "b"]},
    ]
    ((_, found),) = read_batches(items, [range(len(items))], workers)
    for item, given_back in zip(items[:6], found[:6], strict=True):
        assert given_back.dtype == item.dtype
        assert torch.equal(given_back, item)
    assert np.array_equal(found[6], items[6])
    assert torch.equal(found[7][0], items[7][0])
    assert found[7][1:] == ("caption", 7)
    assert torch.equal(found[8]["image"], items[8]["image"])
    assert found[8]["text"] == ["a", "b"]


def test_a_view_does_not_take_its_storage_along() -> None:
    base = torch.zeros(1_000_000, dtype=torch.float32)
    assert len(loader._dumps(base[:10])) < 1000


def test_tensors_do_not_go_through_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_share_filename_cpu_", "_share_fd_cpu_"):
        share = getattr(torch.UntypedStorage, name)

        def noted(*arguments: Any, share: Any = share) -> Any:
            (tmp_path / "shared").touch()
            return share(*arguments)

        monkeypatch.setattr(torch.UntypedStorage, name, noted)
    dataset = Items(3, lambda i: {"image": torch.full((3, 3000, 3000), i, dtype=torch.float32)})
    for (i,), (item,) in read_batches(dataset, ([i] for i in range(3)), 2):  # 103 MiB each
        assert item["image"].shape == (3, 3000, 3000)
        assert item["image"][2, 2999, 2999] == i
    assert not (tmp_path / "shared").exists(), "containers have 64 MiB of shared memory"


class UnreadableError(Exception):
    """An error that cannot be unpickled, as those of many libraries."""

    def __init__(self, path: str, line: int) -> None:
        super().__init__(f"{path}:{line}")


@pytest.mark.parametrize("workers", WORKERS)
def test_an_item_that_fails_arrives_as_its_error_and_the_others_come(workers: int, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:500])

    def item(i: int) -> Any:
        if i == 1:
            raise ValueError("broken")
        if i == 2:
            raise UnreadableError("file", 7)
        return Image.open(tmp_path / "cut.jpg").copy if i == 3 and workers else i

    ((_, found),) = read_batches(Items(5, item), [range(5)], workers)
    assert (found[0], found[4]) == (0, 4)
    assert (found[1].where, type(found[1].error), str(found[1].error)) == (1, ValueError, "broken")
    assert found[2].where == 2
    assert "file:7" in str(found[2].error)
    if workers:
        assert isinstance(found[3], Failed)
        assert str(found[3].exception()).startswith("image 3 cannot be read: ")


def test_an_item_that_cannot_be_sent_says_so() -> None:
    ((_, (found,)),) = read_batches(Items(1, lambda i: lambda: i), [[0]], 1)
    with pytest.raises(ValueError, match=r"image 0 cannot be read: it cannot be sent from one process.*take workers=0"):
        raise found.exception()


def test_a_pil_image_that_turns_out_to_be_cut_when_sent_fails_by_its_own_error(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(file, format="JPEG")
    (tmp_path / "cut.jpg").write_bytes(file.getvalue()[:-200])
    ((_, (found,)),) = read_batches(Items(1, lambda _: Image.open(tmp_path / "cut.jpg")), [[0]], 1)
    assert isinstance(found, Failed)
    assert "truncated" in str(found.error)


@pytest.mark.parametrize("workers", WORKERS)
def test_a_shard_gives_its_good_images_and_names_the_others(workers: int, tmp_path: Path) -> None:
    members = [(f"{i}.png", encoded(i) if i != 2 else b"broken") for i in range(6)]
    first = write_tar(tmp_path / "a.tar", members)
    first.write_bytes(first.read_bytes()[: 5 * 1024 + 520])  # in the sixth
    second = write_tar(tmp_path / "b.tar", [("last.png", encoded(9))])
    found = [pair for batch in read_stream(TarShards([first, second], Form(None, 3)), 2, workers) for pair in batch]
    assert [name for name, _ in found] == ["0", "1", "2", "3", str(first), "last"]
    assert [isinstance(item, Failed) for _, item in found] == [False, False, True, False, True, False]
    assert [grey_of(found[i][1]) for i in (0, 1, 3, 5)] == [0, 1, 3, 9]
    assert "2 in" in str(found[2][1].error)
    assert "a.tar is damaged after '3'" in str(found[4][1].error)


@pytest.mark.parametrize("workers", WORKERS)
def test_a_stream_that_fails_gives_what_came_before_and_then_its_error(workers: int) -> None:
    def items() -> Iterator[Any]:
        yield from [("a", 1), ("b", 2), ("c", 3)]
        raise OSError("the connection is lost")

    read = read_stream(IterableStream(items()), 2, workers)
    assert next(read) == [("a", 1), ("b", 2)]
    assert next(read) == [("c", 3)]
    with pytest.raises(RuntimeError, match="item 3 of its stream: the connection is lost"):
        next(read)


@pytest.mark.parametrize("workers", WORKERS)
def test_an_iterator_is_read_once_whoever_reads_it(workers: int) -> None:
    stream = IterableStream(iter([("a", 1)]))
    assert list(read_stream(stream, 2, workers)) == [[("a", 1)]]
    with pytest.raises(ValueError, match="can be read only once"):
        list(read_stream(stream, 2, workers))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_consumer_may_stop_early(workers: int) -> None:
    endless = IterableStream(("x" * 10, torch.zeros(500_000, dtype=torch.float32)) for _ in iter(int, 1))
    read = read_stream(endless, 2, workers)
    next(read)
    read.close()
    for _ in read_batches(Items(50, lambda i: bytes(1_000_000)), ([i] for i in range(50)), workers):
        break
    read_and_fail = read_batches(Items(50, lambda i: bytes(1_000_000)), ([i] for i in range(50)), workers)
    with pytest.raises(KeyError):
        any(items["absent"] for _, items in ((batch, {}) for batch, _ in read_and_fail))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_is_killed_is_an_error(workers: int) -> None:
    def item(i: int) -> int:
        if i == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return i

    read = read_batches(Items(9, item), ([i] for i in range(9)), workers)
    with pytest.raises(RuntimeError, match=r"ended from outside .*fewer workers|DataLoader worker .* killed by signal"):
        list(read)


def test_a_worker_that_is_killed_while_it_sends_is_an_error() -> None:
    read = read_batches(Items(9, lambda i: bytes(30_000_000)), ([i] for i in range(9)), 2)
    next(read)
    with pytest.raises(RuntimeError, match=r"ended from outside|DataLoader worker .* killed by signal"):  # noqa: PT012
        time.sleep(0.5)  # the pipe is full
        os.kill(min(children()), signal.SIGKILL)
        list(read)


def test_workers_use_one_thread_and_leave_the_generators_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    ((_, (threads,)),) = read_batches(Items(1, lambda _: torch.get_num_threads()), [[0]], 1)
    assert threads == 1
    assert torch.equal(torch.get_rng_state(), state)


def test_workers_do_not_use_the_default_device() -> None:
    torch.set_default_device("meta")
    try:
        ((_, (item,)),) = read_batches(Items(1, lambda _: torch.zeros(1, dtype=torch.float32).device.type), [[0]], 1)
    finally:
        torch.set_default_device("cpu")
    assert item == "cpu"


def test_a_dataset_on_another_device_is_refused() -> None:
    with pytest.raises(ValueError, match="workers must be 0 for a dataset on meta"):
        list(read_batches(torch.zeros(3, 1, 2, 2, dtype=torch.float32, device="meta"), [[0]], 1))


def test_a_dataset_that_cannot_be_pickled_needs_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Items(2, lambda i: i)
    assert list(read_batches(dataset, [[0, 1]], 1)) == [([0, 1], [0, 1])]
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    with pytest.raises(ValueError, match="workers must be 0 where processes cannot be forked, got 1"):
        list(read_batches(dataset, [[0, 1]], 1))
    assert list(read_batches(dataset, [[0, 1]], 0)) == [([0, 1], [0, 1])]


def test_no_file_is_left_open() -> None:
    def count() -> int:
        gc.collect()  # of what other tests left
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    before, deadline = count(), time.monotonic() + 20
    for _ in range(5):
        next(read_batches(Items(9, lambda i: i), ([i] for i in range(9)), 2))
    while count() > before + 2 and time.monotonic() < deadline:
        time.sleep(0.05)  # queues of torch close theirs in threads
    assert count() <= before + 2


def test_parquet_is_read_by_workers_after_this_process_read_it(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"image": [encoded(i) for i in range(60)]}, rows_per_group=25)
    dataset: Any = open_dataset(path, size=None, channels=3)
    assert grey_of(dataset[20]) == 20
    found = read_batches(dataset, ([i, i + 1] for i in range(0, 60, 2)), 2)
    assert [grey_of(item) for _, items in found for item in items] == list(range(60))
    assert grey_of(dataset[21]) == 21


def test_a_reader_may_be_in_another_thread() -> None:
    found: list[Any] = []
    thread = threading.Thread(
        target=lambda: found.extend(read_batches(Items(3, lambda i: i), ([i] for i in range(3)), 1))
    )
    thread.start()
    thread.join(60)
    assert found == [([i], [i]) for i in range(3)]


def test_wrong_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="workers must be an integer of at least 0, got -1"):
        list(read_batches([1], [[0]], -1))
    stream: Stream = IterableStream([("a", 1)])
    with pytest.raises(ValueError, match="batch_size must be a positive integer, got 0"):
        list(read_stream(stream, 0, 0))


def test_a_process_that_ends_leaves_no_worker(tmp_path: Path) -> None:
    script = (
        "import multiprocessing, sys\n"
        "from journey.data.loader import read_batches\n"
        "for batch, items in read_batches(list(range(99)), ([i] for i in range(99)), 2):\n"
        "    print(*(worker.pid for worker in multiprocessing.active_children()), flush=True)\n"
        "    sys.exit(3)\n"
    )
    command = [sys.executable, "-c", script]
    # Not in this folder, whose package may not be built.
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 3, done.stderr
    workers = [int(pid) for pid in done.stdout.split()]
    assert len(workers) == 2
    deadline = time.monotonic() + 20
    while any(map(runs, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(runs, workers))
