"""Parquet files of encoded images, as bytes or as the library ``datasets`` writes them."""

from __future__ import annotations

import pickle
import random
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from image_files import encoded, grey_of, write_parquet

from journey.data.ids import ids_of
from journey.data.parquet import ParquetFiles
from journey.data.picture import Form

FORM = Form(None, 3)


@pytest.mark.parametrize("struct", [False, True])
def test_rows_are_images_with_what_is_told_of_them(tmp_path: Path, struct: bool) -> None:
    files: list[Any] = [encoded(10), encoded(20)]
    if struct:
        files = [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(files)]
    columns = {"image": files, "text": ["a", None], "label": [3, 4], "id": ["x", "y"], "other": [b"0", b"1"]}
    dataset = ParquetFiles([write_parquet(tmp_path / "a.parquet", columns)], FORM)
    assert len(dataset) == 2
    assert ids_of(dataset) == ["x", "y"]
    assert [grey_of(dataset[i]) for i in range(2)] == [10, 20]
    assert {**dataset[0], "image": 0} == {"image": 0, "text": "a", "label": 3, "id": "x"}
    assert {**dataset[1], "image": 0} == {"image": 0, "label": 4, "id": "y"}, "an empty cell tells nothing"


def test_any_order_gives_the_row_of_its_number(tmp_path: Path) -> None:
    paths = [
        write_parquet(tmp_path / f"{f}.parquet", {"image": [encoded(60 * f + i) for i in range(60)]}, rows_per_group=25)
        for f in range(3)
    ]
    dataset = ParquetFiles(paths, FORM)
    order = [*range(180), *random.Random(0).sample(range(180), 180)]
    assert [grey_of(dataset[i]) for i in order] == order
    assert ids_of(dataset) == list(range(180))
    assert grey_of(pickle.loads(pickle.dumps(dataset))[179]) == 179
    with pytest.raises(IndexError, match="less than 180, got 180"):
        dataset[180]


def test_pictures_are_brought_to_the_form(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"img": [encoded(7, (30, 20))]})
    image = ParquetFiles([path], Form((8, 12), 1))[0]["img"]
    assert (image.size, image.mode) == ((12, 8), "L")


def test_ids_may_be_another_column_or_a_function(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"image": [encoded(1), encoded(2)], "sku": [8, 9], "id": ["a", "a"]})
    assert ParquetFiles([path], FORM, "sku").ids == [8, 9]
    assert ParquetFiles([path], FORM, lambda item: item["sku"] * 100 + grey_of(item)).ids == [801, 902]
    with pytest.raises(ValueError, match=r"ids in the column 'id' of .*a\.parquet must name every image once, got 'a'"):
        _ = ParquetFiles([path], FORM).ids
    with pytest.raises(ValueError, match=r"id_of must be one of the columns image, sku, id of .*, got 'skew'"):
        ParquetFiles([path], FORM, "skew")


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ({"picture": [b"x"]}, r"a\.parquet must have a column of images, image, .*, got picture"),
        ({"image": ["a.png"]}, r"a\.parquet must hold encoded images, .* in its column image, got string"),
        ({"image": [{"path": "a.png"}]}, r"a\.parquet must hold encoded images, .*, got struct"),
    ],
)
def test_files_without_images_are_refused_by_name(tmp_path: Path, columns: dict[str, list[Any]], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        ParquetFiles([write_parquet(tmp_path / "a.parquet", columns)], FORM)


def test_a_row_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    files: list[Any] = [
        {"bytes": encoded(1), "path": ""},
        {"bytes": b"broken", "path": ""},
        {"bytes": None, "path": "c"},
    ]
    paths = [write_parquet(tmp_path / f"{i}.parquet", {"image": files}, rows_per_group=2) for i in range(2)]
    dataset = ParquetFiles(paths, FORM)
    assert grey_of(dataset[3]) == 1
    with pytest.raises(ValueError, match=r"row 1 of .*1\.parquet cannot be read as an image"):
        dataset[4]
    with pytest.raises(ValueError, match=r"row 2 of .*1\.parquet must hold an encoded image in its column image"):
        dataset[5]


def test_damaged_empty_and_different_files_are_named(tmp_path: Path) -> None:
    good = write_parquet(tmp_path / "good.parquet", {"image": [encoded(1)], "text": ["a"]})
    bad = tmp_path / "bad.parquet"
    bad.write_bytes(good.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"bad\.parquet cannot be read as parquet"):
        ParquetFiles([good, bad], FORM)
    other = write_parquet(tmp_path / "other.parquet", {"image": [encoded(1)]})
    with pytest.raises(
        ValueError, match=r"other\.parquet and .*good\.parquet must have the same columns .* got image and"
    ):
        ParquetFiles([good, other], FORM)
    with pytest.raises(ValueError, match="at least one image"):
        ParquetFiles([write_parquet(tmp_path / "none.parquet", {"image": pyarrow.array([], pyarrow.binary())})], FORM)


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"image": [encoded(1)]})
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        ImportError, match=r'a\.parquet is read with pyarrow; pip install "journey-attribution\[data\]"'
    ):
        ParquetFiles([path], FORM)
