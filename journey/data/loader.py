"""Reading ahead: worker processes decode images while the network computes."""

from __future__ import annotations

import io
import mmap
import multiprocessing
import os
import pickle
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import count
from operator import getitem
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from journey.data.items import Dataset
from journey.data.stream import Failed, Record, Stream
from journey.errors import check_count

_AHEAD = 2  # batches that each worker makes ahead


def read_batches(
    dataset: Dataset, batches: Iterable[Sequence[int]], workers: int
) -> Iterator[tuple[Sequence[int], list[Any]]]:
    """Read batches of a map-style dataset, in their order, ahead of who consumes them.

    Args:
        dataset: The dataset. Its items are made in the workers.
        batches: The positions of each batch. It is advanced in this process, at most ``2 * workers`` batches ahead of
            the consumer, or none without workers.
        workers: Processes that read; 0 reads in this one.

    Yields:
        Each batch with its items; ``Failed`` stands in the place of one that could not be read.

    Raises:
        ValueError: If ``workers`` is negative, or not 0 where processes cannot be forked or the dataset is a tensor on
            a GPU, which they cannot reach.
        RuntimeError: If a worker was killed.
    """
    if workers == 0:
        for batch in batches:
            yield batch, [_attempt(partial(getitem, dataset, i), i) for i in batch]
        return
    pulled: deque[Sequence[int]] = deque()

    def remember() -> Iterator[Sequence[int]]:
        for batch in batches:
            pulled.append(batch)
            yield batch

    if isinstance(dataset, Tensor) and dataset.device.type != "cpu":
        raise ValueError(f"workers must be 0 for a dataset on {dataset.device}, which they cannot reach, got {workers}")
    for pairs in _run(partial(_Items, dataset), workers, batch_sampler=enumerate(remember())):
        yield pulled.popleft(), [item for _, item in pairs]


def read_stream(stream: Stream, batch_size: int, workers: int) -> Iterator[list[tuple[int | str, Any]]]:
    """Read a stream, in its order, ahead of who consumes it.

    Args:
        stream: The stream. An iterable is read and decoded by one worker, however many there are; tar files are read by
            each, and decoded by one.
        batch_size: Items of a batch; the last may have fewer.
        workers: Processes that read; 0 reads in this one.

    Yields:
        Pairs ``(id, item)``; ``Failed`` stands in the place of an item that could not be read, with what names it in
        the place of the id.

    Raises:
        ValueError: As ``read_batches``, or if ``batch_size`` is no positive integer, or the stream is refused.
        RuntimeError: If a worker was killed, or the stream itself failed.
    """
    check_count("batch_size", batch_size)
    stream.begin()
    if workers == 0:
        for part in _parts(stream, batch_size):
            if isinstance(part, Exception):
                raise part
            yield [_open(record) for record in part]
        return
    readers = workers if stream.many_readers else min(workers, 1)
    yield from _run(partial(_Batches, stream, batch_size), readers, batch_size=None)


class _Sent(NamedTuple):
    """What a worker tells of a batch that it left in a slot."""

    sizes: list[int]  # bytes of each item
    ended: bool = False  # whether it is the error that ended the stream


class _Slots:
    """Files in memory in which workers leave batches: those of a pipe would wait for the worker, busy with the next.

    They are inherited by fork and need no room in /dev/shm. No two batches that are under way have one slot.
    """

    def __init__(self, count: int) -> None:
        self._files = [os.memfd_create("journey") for _ in range(count)]

    def put(self, number: int, items: Sequence[bytes], ended: bool = False) -> _Sent:
        file, end = self._files[number % len(self._files)], 0
        for item in items:
            rest = memoryview(item)
            while rest:
                written = os.pwrite(file, rest, end)
                rest, end = rest[written:], end + written
        return _Sent([len(item) for item in items], ended)

    def take(self, number: int, sent: _Sent) -> list[tuple[int | str, Any]]:
        file, found, end = self._files[number % len(self._files)], [], 0
        if sent.sizes:
            with mmap.mmap(file, sum(sent.sizes), prot=mmap.PROT_READ) as left, memoryview(left) as view:
                for size in sent.sizes:
                    with view[end : end + size] as item:
                        found.append(pickle.loads(item))
                    end += size
            os.ftruncate(file, 0)
        if sent.ended:
            raise found[0][1].error
        return found

    def __del__(self) -> None:
        for file in self._files:
            os.close(file)


def _run(make: Callable[[_Slots], Any], workers: int, **order: Any) -> Iterator[list[tuple[int | str, Any]]]:
    """Give the batches that the workers send. They are ended when the consumer stops."""
    check_count("workers", workers, least=0)
    if "fork" not in multiprocessing.get_all_start_methods():
        raise ValueError(f"workers must be 0 where processes cannot be forked, got {workers}")
    slots = _Slots(_AHEAD * workers + 2)
    loader: DataLoader[Any] = DataLoader(
        make(slots),
        num_workers=workers,
        prefetch_factor=_AHEAD,
        collate_fn=_as_it_is,
        multiprocessing_context="fork",  # so a dataset need not be picklable
        generator=torch.Generator(device="cpu").manual_seed(0),  # else it takes numbers from torch's own
        **order,
    )
    with torch.device("cpu"):  # whatever the default device is, also in the workers
        iterator = iter(loader)
    try:
        for number in count():
            try:
                sent = next(iterator)
            except StopIteration:
                return
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                raise RuntimeError(
                    f"a process that reads the dataset was ended from outside ({error}), for lack of memory for "
                    "instance; run again, with fewer workers"
                ) from error
            yield slots.take(number, sent)
    finally:
        del iterator  # ends the workers


def _as_it_is(sent: Any) -> Any:
    return sent


class _Items:
    """What a worker runs for a map-style dataset."""

    def __init__(self, dataset: Dataset, slots: _Slots) -> None:
        self._dataset = dataset
        self._slots = slots

    def __getitems__(self, numbered: tuple[int, Sequence[int]]) -> _Sent:
        number, batch = numbered
        items = [_pack(i, _attempt(partial(getitem, self._dataset, i), i)) for i in batch]
        return self._slots.put(number, items)


class _Batches(IterableDataset[Any]):
    """What a worker runs for a stream: it decodes every ``num_workers``-th batch, in which order torch takes them."""

    def __init__(self, stream: Stream, batch_size: int, slots: _Slots) -> None:
        self._stream = stream
        self._batch_size = batch_size
        self._slots = slots

    def __iter__(self) -> Iterator[_Sent]:
        info: Any = get_worker_info()
        for number, part in enumerate(_parts(self._stream, self._batch_size)):
            if number % info.num_workers != info.id:
                continue
            if isinstance(part, Exception):
                yield self._slots.put(number, [_pack(number, Failed(number, part))], ended=True)
            else:
                yield self._slots.put(number, [_pack(*_open(record)) for record in part])


def _parts(stream: Stream, batch_size: int) -> Iterator[list[Record | Failed] | Exception]:
    """The batches of a stream, not decoded, and then the error that ended it, if there was one."""
    part: list[Record | Failed] = []
    failure: Exception | None = None
    try:
        for record in stream.records():
            part.append(record)
            if len(part) == batch_size:
                yield part
                part = []
    except Exception as error:
        failure = error
    if part:
        yield part
    if failure is not None:
        yield failure


def _attempt(read: Callable[[], Any], where: int | str) -> Any:
    try:
        return read()
    except Exception as error:
        return Failed(where, error)


def _open(record: Record | Failed) -> tuple[int | str, Any]:
    if isinstance(record, Failed):
        return record.where, record
    return record.id, _attempt(record.load, record.id)


class _Pickler(pickle.Pickler):
    """Sends tensors as bytes: shared memory is small in containers, and a view would take its whole storage along."""

    def reducer_override(self, value: Any) -> Any:
        if type(value) is not Tensor or value.device.type != "cpu" or value.layout is not torch.strided:
            return NotImplemented
        flat = value.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
        return _tensor, (flat.view(torch.uint8).numpy().tobytes(), value.dtype, tuple(value.shape))


def _tensor(data: bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if not data:
        return torch.empty(shape, dtype=dtype, device="cpu")
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape)


def _pack(where: int | str, item: Any) -> bytes:
    """Pickle what a worker sends; where that fails, why."""
    if not isinstance(item, Failed):
        try:
            return _dumps((where, item))
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            text = f"it cannot be sent from one process to another: {error}; take workers=0"
            item = Failed(where, TypeError(text))
        except Exception as error:  # a PIL image that is decoded only now
            item = Failed(where, error)
    try:
        pickle.loads(packed := _dumps((where, item)))  # some errors can be pickled, and not be read again
    except Exception:
        packed = _dumps((where, Failed(where, RuntimeError(f"{type(item.error).__name__}: {item.error}"))))
    return packed


def _dumps(sent: Any) -> bytes:
    file = io.BytesIO()
    _Pickler(file).dump(sent)
    return file.getvalue()
