"""Streams: images that come one after the other, each with its id, read and split without an index."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from journey.data.ids import ID_KEYS, IdOf, check_id
from journey.data.picture import Form


class Record(NamedTuple):
    """One image of a stream, not decoded yet."""

    id: int | str
    load: Callable[[], Any]  # returns the item


class Failed(NamedTuple):
    """What stands in the place of an item that could not be read."""

    where: int | str  # its id in a stream, its position in a map-style dataset
    error: Exception

    def exception(self) -> ValueError:
        """The error to raise for it, which names the image; its cause is the error of the reading."""
        named = ValueError(f"image {self.where!r} cannot be read: {self.error}")
        named.__cause__ = self.error
        return named


class Stream(ABC):
    """Images that come one after the other; iterating gives ``(id, item)``.

    An id is the caller's own, or, where no item has one, the position in the stream, counted from 0. Ids are not
    compared with each other: who stores what comes refuses the second of two.

    Args:
        id_of: The key that holds the ids, or a function of an item.
    """

    # Whether several worker processes may each read the stream and decode a part: so where reading costs little.
    many_readers = False

    def __init__(self, id_of: IdOf | None) -> None:
        self._id_of = id_of
        self._world_size = 1
        self._offset, self._step = 0, 1
        self._known: Collection[int | str] = ()

    @property
    def once(self) -> bool:
        """Whether it can be read only once."""
        return False

    def without(self, ids: Collection[int | str]) -> Stream:
        """Return the stream without some images, which are not decoded."""
        rest = copy.copy(self)
        rest._known = ids
        return rest

    @abstractmethod
    def _read(self) -> Iterator[Any]:
        """Give what is read, from the beginning, in an order that never changes; ``Failed`` for what was not."""

    @abstractmethod
    def _open(self, read: Any, position: int) -> tuple[Any, Callable[[], Any]] | Failed:
        """Return the id of what was read, or None, and what makes the item of it."""

    def begin(self) -> None:
        """Note in this process that the stream is going to be read, here or in a worker."""
        return

    def __iter__(self) -> Iterator[tuple[int | str, Any]]:
        self.begin()
        for record in self.records():
            if isinstance(record, Failed):
                raise record.exception()
            yield record.id, record.load()

    def records(self) -> Iterator[Record | Failed]:
        """Read this process's part of the stream and decode nothing; ``begin`` comes before.

        Yields:
            One record for each image. What could not be read comes as ``Failed``.

        Raises:
            ValueError: If only some items have an id, or none where the stream was split.
            TypeError: If an id is neither an integer nor a string, or there are both.
        """
        kind: type | None = None
        seen = set[int | str]()
        for position, read in enumerate(self._read()):
            if isinstance(read, Failed):
                yield read
                continue
            if position % self._step != self._offset:
                continue
            opened = self._open(read, position)
            if isinstance(opened, Failed):
                yield opened
                continue
            given, load = opened
            found = None if given is None else check_id(given, f"the id of item {position}")
            if kind is None:
                kind = type(found)
                if found is None and self._world_size > 1:
                    raise ValueError(
                        "ids must be the caller's own where several processes read a stream, got items without one; "
                        f"give dicts with a key {', '.join(ID_KEYS)}, pairs (id, item), or id_of="
                    )
            if type(found) is not kind:
                raise (ValueError if type(None) in (kind, type(found)) else TypeError)(
                    f"items of a stream must all have an id or none, all integers or all strings: got "
                    f"{'no id' if found is None else repr(found)} for item {position}, unlike those before it"
                )
            name = position if found is None else found
            if name in seen:
                raise ValueError(f"ids must name every image once, got {name!r} for two or more of the stream")
            seen.add(name)
            if name not in self._known:
                yield Record(name, load)

    def split(self, rank: int, world_size: int) -> Stream:
        """Return the part that one of several processes reads; together the parts are the stream.

        Args:
            rank: Of the process, from 0.
            world_size: The number of processes.

        Returns:
            Whole shards, if there are enough for all processes; else every ``world_size``-th item.

        Raises:
            ValueError: If there is no such rank, or the stream is a part already.
        """
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be at least 0 and less than world_size={world_size}, got {rank}")
        if self._world_size > 1:
            raise ValueError("the stream is one process's part already; split the whole stream")
        part = copy.copy(self)
        part._world_size = world_size
        if world_size > 1:
            part._deal(rank, world_size)
        return part

    def _deal(self, rank: int, world_size: int) -> None:
        """Keep this rank's part."""
        self._offset, self._step = rank, world_size


class IterableStream(Stream):
    """An iterable of items or of pairs ``(id, item)`` as a stream.

    Args:
        source: The iterable. Each process is given the whole of it. An iterator, such as a generator, can be read
            only once.
        id_of: As in ``Stream``; it wins over the id of a pair.
        form: What pictures are brought to; None leaves items as they are.
    """

    _cure = ""

    def __init__(self, source: Iterable[Any], id_of: IdOf | None = None, form: Form | None = None) -> None:
        super().__init__(id_of)
        self._source = source
        self._form = form
        self._begun = False

    @property
    def once(self) -> bool:
        """Whether it can be read only once: if it is an iterator, such as a generator."""
        return isinstance(self._source, Iterator)

    def begin(self) -> None:
        """Refuse to read an iterator twice, of which only the rest would come.

        Raises:
            ValueError: If it was read before.
        """
        if self._begun and isinstance(self._source, Iterator):
            raise ValueError(
                f"dataset is a {type(self._source).__name__}, which can be read only once, and has been; give an "
                "object whose iter() begins anew"
            )
        self._begun = True

    def _read(self) -> Iterator[Any]:
        number = 0
        try:
            for item in self._source:
                yield item
                number += 1
        except Exception as error:
            text = f"dataset failed when asked for item {number} of its stream: {error}{self._cure}"
            raise RuntimeError(text) from error

    def _open(self, read: Any, position: int) -> tuple[Any, Callable[[], Any]]:
        found, item = read if _is_pair(read) else (None, read)
        if self._id_of is not None or found is None:
            found = id_in(item, self._id_of, f"item {position} of the stream")
        if self._form is None:
            return found, partial(_same, item)
        return found, partial(self._form.bring, item, f"item {position if found is None else found!r} of the stream")


class TableStream(IterableStream):
    """A ``datasets.IterableDataset`` as a stream."""

    _cure = "; if it is an image that is damaged, dataset.decode(False) lets it fail alone"

    def _deal(self, rank: int, world_size: int) -> None:
        table: Any = self._source
        if getattr(table, "_distributed", None) is not None:
            raise ValueError("dataset was split by split_dataset_by_node already; give the whole one, we split it")
        if table.n_shards % world_size == 0:
            from datasets.distributed import split_dataset_by_node

            self._source = split_dataset_by_node(table, rank=rank, world_size=world_size)
        else:  # then datasets would give every process everything to read, too, and parts of other sizes
            super()._deal(rank, world_size)


def id_in(item: Any, id_of: IdOf | None, what: str) -> Any:
    """Return the id that an item holds.

    Args:
        item: The item.
        id_of: The key that holds it, or a function of the item; None looks for those of ``ID_KEYS``.
        what: Names the item in errors.

    Returns:
        The id, unchecked; None if ``id_of`` is None and the item has none.

    Raises:
        ValueError: If it has no such key.
    """
    if callable(id_of):
        return id_of(item)
    if not isinstance(item, Mapping):
        if id_of is not None:
            raise ValueError(f"{what} must be a dict with the key {id_of!r}, by which images are named")
        return None
    if id_of is None:
        return next((item[key] for key in ID_KEYS if key in item), None)
    if id_of not in item:
        raise ValueError(f"id_of must be one of the keys of {what}, {', '.join(map(str, item))}, got {id_of!r}")
    return item[id_of]


def _is_pair(item: Any) -> bool:
    """Whether this is ``(id, item)``; of ``(image, caption)`` the first is no id."""
    return isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str | int | np.integer)


def _same(item: Any) -> Any:
    return item
