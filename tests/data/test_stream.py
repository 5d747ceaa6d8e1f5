"""Streams: where ids come from, how processes share them, and what is refused."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from image_files import encoded, grey_of
from PIL import Image

from journey.data.picture import Form
from journey.data.stream import Failed, IterableStream, Stream, TableStream


class Again:
    """An iterable that begins anew each time, of unknown length."""

    def __init__(self, *items: Any) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        for item in self.items:
            if isinstance(item, Exception):
                raise item
            yield item


def ids(stream: Stream) -> list[int | str]:
    return [name for name, _ in stream]


IMAGE = torch.zeros(1, 2, 2)


@pytest.mark.parametrize(
    ("items", "id_of", "expected"),
    [
        ([IMAGE, IMAGE], None, [0, 1]),
        ([(IMAGE, "caption"), (IMAGE, "other")], None, [0, 1]),
        ([("a", IMAGE), ("b", IMAGE)], None, ["a", "b"]),
        ([(np.int64(7), IMAGE), (3, IMAGE)], None, [7, 3]),
        ([{"id": 5}, {"id": 4}], None, [5, 4]),
        ([{"__key__": "k"}, {"__key__": "l"}], None, ["k", "l"]),
        ([{"id": 5, "sku": "x"}], "sku", ["x"]),
        ([(9, {"sku": "x"})], "sku", ["x"]),
        ([(9, {"sku": "x"})], lambda item: item["sku"] * 2, ["xx"]),
    ],
)
def test_ids_are_the_callers_or_positions(items: list[Any], id_of: Any, expected: list[Any]) -> None:
    stream = IterableStream(Again(*items), id_of)
    assert ids(stream) == expected
    assert ids(stream) == expected, "it begins anew"
    assert all(type(name) in (int, str) for name in ids(stream))


@pytest.mark.parametrize(
    ("items", "id_of", "error", "text"),
    [
        ([{"id": 1}, {}], None, ValueError, "all have an id or none, .*: got no id for item 1"),
        ([{}, {"id": 1}], None, ValueError, "got 1 for item 1, unlike"),
        ([{"id": 1}, {"id": "1"}], None, TypeError, "got '1' for item 1"),
        ([{"id": 1.5}], None, TypeError, "the id of item 0 must be an integer or a string, got 1.5"),
        ([{"a": 1}], "b", ValueError, "id_of must be one of the keys of item 0 of the stream, a, got 'b'"),
        ([IMAGE], "b", ValueError, "item 0 of the stream must be a dict with the key 'b'"),
        ([IMAGE, OSError("gone")], None, RuntimeError, "dataset failed when asked for item 1 of its stream: gone"),
    ],
)
def test_wrong_streams_are_refused_by_item(items: list[Any], id_of: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        list(IterableStream(Again(*items), id_of))


@given(count=st.integers(0, 20), world_size=st.integers(1, 6))
def test_every_process_takes_every_so_many_eth_item(count: int, world_size: int) -> None:
    stream = IterableStream(Again(*((f"i{i}", i) for i in range(count))))
    parts = [list(stream.split(rank, world_size)) for rank in range(world_size)]
    assert parts == [[(f"i{i}", i) for i in range(rank, count, world_size)] for rank in range(world_size)]


def test_positions_are_no_ids_where_several_processes_read() -> None:
    stream = IterableStream(Again(IMAGE, IMAGE, IMAGE))
    assert ids(stream.split(0, 1)) == [0, 1, 2]
    for rank in (0, 1):
        with pytest.raises(ValueError, match="ids must be the caller's own where several processes read a stream"):
            list(stream.split(rank, 2))


@pytest.mark.parametrize(("rank", "world_size"), [(2, 2), (-1, 2), (0, 0)])
def test_a_rank_that_is_not_there_is_refused(rank: int, world_size: int) -> None:
    with pytest.raises(ValueError, match="rank must be at least 0 and less than world_size"):
        IterableStream(Again()).split(rank, world_size)


def test_a_part_is_not_split_again() -> None:
    with pytest.raises(ValueError, match="one process's part already"):
        IterableStream(Again(("a", 1))).split(0, 2).split(0, 2)


def test_an_iterator_is_read_once() -> None:
    stream = IterableStream(item for item in (IMAGE, IMAGE))
    assert ids(stream) == [0, 1]
    with pytest.raises(ValueError, match="dataset is a generator, which can be read only once, and has been"):
        ids(stream)


def test_pictures_are_brought_to_the_form_and_all_else_is_left() -> None:
    form = Form((2, 3), 1)
    encodings = [encoded(9, (6, 4)), {"bytes": encoded(9, (6, 4)), "path": None}, Image.new("RGB", (6, 4), (9, 9, 9))]
    items = [*encodings, *({"img": image, "text": "x"} for image in encodings), IMAGE, {"image": IMAGE}]
    *pictures, tensor, held = (item for _, item in IterableStream(Again(*items), None, form))
    assert tensor is IMAGE
    assert held["image"] is IMAGE
    for picture in pictures:
        image = picture["img"] if isinstance(picture, dict) else picture
        assert (image.size, image.mode, grey_of(image)) == ((3, 2), "L", 9)
    assert pictures[3]["text"] == "x"
    with pytest.raises(ValueError, match="item 'k' of the stream cannot be read as an image"):
        list(IterableStream(Again(("k", {"image": b"broken"})), None, form))


class Table(Again):
    """The part of ``datasets.IterableDataset`` that is used."""

    n_shards = 4
    _distributed = None


@pytest.mark.parametrize(("world_size", "whole"), [(2, True), (4, True), (3, False), (8, False)])
def test_a_table_is_split_by_shards_only_if_they_share_out(
    world_size: int, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def split_dataset_by_node(table: Table, rank: int, world_size: int) -> Table:
        return Table(*table.items[rank * 8 // world_size : (rank + 1) * 8 // world_size])  # contiguous shards

    module = types.ModuleType("datasets.distributed")
    module.split_dataset_by_node = split_dataset_by_node  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets.distributed", module)
    monkeypatch.setitem(sys.modules, "datasets", types.ModuleType("datasets"))
    stream = TableStream(Table(*({"id": i} for i in range(8))), None, Form(None, 3))
    parts = [ids(stream.split(rank, world_size)) for rank in range(world_size)]
    size = 8 // world_size
    expected = [
        list(range(rank * size, rank * size + size)) if whole else list(range(rank, 8, world_size))
        for rank in range(world_size)
    ]
    assert parts == expected


def test_a_table_that_was_split_is_not_split_again() -> None:
    table = Table({"id": 1})
    table._distributed = object()  # type: ignore[assignment]
    with pytest.raises(ValueError, match="split by split_dataset_by_node already"):
        TableStream(table, None, Form(None, 3)).split(0, 2)


def test_a_failure_names_the_image_and_keeps_its_cause() -> None:
    cause = OSError("no such file")
    error = Failed("k", cause).exception()
    assert str(error) == "image 'k' cannot be read: no such file"
    assert error.__cause__ is cause
