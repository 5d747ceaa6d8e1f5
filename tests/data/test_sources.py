"""Everything that may hold training images is opened, and all else refused by name."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_files import encoded, grey_of, write_parquet, write_tar
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset

from journey.data.folder import ImageFolder
from journey.data.ids import ids_of
from journey.data.parquet import ParquetFiles
from journey.data.sources import open_dataset
from journey.data.stream import IterableStream, Stream
from journey.data.tar import TarShards


def opened(source: Any, **options: Any) -> Any:
    return open_dataset(source, **{"size": (2, 3), "channels": 1, **options})


def images(folder: Path, *names: str) -> Path:
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(i, (6, 4)))
    return folder


def contents(dataset: Any) -> list[tuple[int | str, Any]]:
    """The ids and the greys of a dataset whose pictures have the form of ``opened``."""
    items = list(dataset) if isinstance(dataset, Stream) else [*zip(ids_of(dataset), dataset, strict=True)]
    for _, item in items:
        image = item["image"] if isinstance(item, dict) else item
        assert (image.size, image.mode) == ((3, 2), "L")
    return [(name, grey_of(item)) for name, item in items]


def test_a_folder_of_images_is_one_also_beside_other_files(tmp_path: Path) -> None:
    images(tmp_path, "b.png", "a/c.png")
    write_tar(tmp_path / "x.tar", [])
    with pytest.warns(UserWarning, match=r"passed over 1 files .*x\.tar"):
        dataset = opened(str(tmp_path))
    assert isinstance(dataset, ImageFolder)
    assert contents(dataset) == [("a/c.png", 1), ("b.png", 0)]


def test_ids_of_a_folder_may_stand_in_its_metadata(tmp_path: Path) -> None:
    images(tmp_path, "b.png", "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,sku\nb.png,s1\na.png,s2\n")
    assert contents(opened(tmp_path, id_of="sku")) == [("s2", 1), ("s1", 0)]
    (tmp_path / "b.png").write_bytes(b"broken")
    assert ids_of(opened(tmp_path, id_of="sku")) == ["s2", "s1"], "no image is decoded"
    with pytest.raises(ValueError, match="id_of must be one of the columns sku, got 'skew'"):
        ids_of(opened(tmp_path, id_of="skew"))


@pytest.mark.parametrize("form", ["folder", "pattern", "list", "braces"])
@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_files_are_found_as_people_write_them(tmp_path: Path, kind: str, form: str) -> None:
    for i in range(2):
        if kind == "parquet":
            write_parquet(tmp_path / f"data/s{i}.parquet", {"id": [f"k{i}"], "image": [encoded(i, (6, 4))]})
        else:
            write_tar(tmp_path / f"data/s{i}.tar", [(f"k{i}.png", encoded(i, (6, 4)))])
    source: Any = {
        "folder": tmp_path,
        "pattern": f"{tmp_path}/data/*.{kind}",
        "list": [tmp_path / f"data/s{i}.{kind}" for i in range(2)],
        "braces": f"{tmp_path}/data/s{{0..1}}.{kind}",
    }[form]
    dataset = opened(source)
    assert isinstance(dataset, ParquetFiles if kind == "parquet" else TarShards)
    assert contents(dataset) == [("k0", 0), ("k1", 1)]


def test_a_folder_of_files_tells_what_it_passes_over(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", {"image": [encoded(0)]})
    (tmp_path / "README.md").touch()
    with pytest.warns(UserWarning, match=r"passed over 1 files .* \(README\.md\)") as told:
        opened(tmp_path)
    assert len(told) == 1
    write_tar(tmp_path / "b.tar", [])
    with pytest.raises(ValueError, match=r"one kind, \.parquet or \.tar, got .*a\.parquet, .*b\.tar"):
        opened(tmp_path)


def test_a_dataset_of_the_callers_is_taken_as_it_is() -> None:
    pictures = [Image.new("RGB", (6, 4)), torch.zeros(3, 4, 6)]
    assert opened(pictures) is pictures
    array = np.zeros((2, 1, 4, 4), dtype=np.uint8)
    assert opened(array) is array
    named = opened([{"image": 1, "n": 7}, {"image": 2, "n": 8}], id_of="n")
    assert ids_of(named) == [7, 8]
    assert named[1] == {"image": 2, "n": 8}
    assert len(named) == 2


def test_iterables_are_streams() -> None:
    class Numbers(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter([("a", 1), ("b", 2)])

    for source in (Numbers(), iter([("a", 1), ("b", 2)]), (pair for pair in [("a", 1), ("b", 2)])):
        stream = opened(source)
        assert isinstance(stream, IterableStream)
        assert list(stream) == [("a", 1), ("b", 2)]
    assert list(opened(iter([{"n": 5}]), id_of="n")) == [(5, {"n": 5})]


def test_what_is_open_is_opened_as_it_is(tmp_path: Path) -> None:
    stream = opened(iter([("a", 1)]))
    assert opened(stream) is stream
    with pytest.raises(ValueError, match="id_of must be given where the stream is opened"):
        opened(stream, id_of="n")
    folder = opened(images(tmp_path, "a.png"))
    assert opened(folder) is folder


def test_tables_of_datasets_are_told_by_their_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dataset(list[Any]):
        pass

    class Streaming:
        n_shards = 1

        def __iter__(self) -> Any:
            return iter([{"image": Image.new("RGB", (6, 4), (9, 9, 9)), "id": "x"}])

    module = types.ModuleType("datasets")
    module.Dataset, module.IterableDataset = Dataset, Streaming  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    assert contents(opened(Streaming())) == [("x", 9)]
    table = Dataset([{"image": Image.new("RGB", (6, 4), (8, 8, 8)), "id": "y", "n": 3}])
    assert contents(opened(table)) == [("y", 8)]
    assert contents(opened(table, id_of="n")) == [(3, 8)]


@pytest.mark.parametrize(
    ("source", "error", "text"),
    [
        ("absent", NotADirectoryError, "dataset must be a folder of images, got absent, which is not there"),
        ("absent.tar", FileNotFoundError, r"there is no file absent\.tar"),
        ("none-*.parquet", FileNotFoundError, r"there is no file none-\*\.parquet"),
        ("none/*", FileNotFoundError, r"there is no file none/\*"),
        ("none-{a,b}", FileNotFoundError, "there is no file none-a, of none-{a,b}"),
        ("s3://bucket/a.tar", ValueError, "on this machine or a mounted disk, got s3://bucket/a.tar"),
        ("pipe:cat a.tar", ValueError, "on this machine"),
        (["a.png", "b.png"], FileNotFoundError, r"there is no file a\.png"),
        (DataLoader([1]), TypeError, r"got a DataLoader, which gives batches; give its \.dataset"),
        ({"train": [1], "test": [2]}, TypeError, "give one of its parts, 'train', 'test'"),
        (7, TypeError, "must be map-style.*got int"),
        (None, TypeError, "must be map-style.*got NoneType"),
        ([], ValueError, "at least one image"),
    ],
)
def test_all_else_is_refused_by_name(
    source: Any, error: type[Exception], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=text):
        opened(source)


def test_files_of_other_kinds_are_refused_by_name(tmp_path: Path) -> None:
    for name in ("a.zip", "b.pkl"):
        (tmp_path / name).touch()
        with pytest.raises(ValueError, match=rf"files of one kind, \.parquet or \.tar, got .*{name}"):
            opened(tmp_path / name)
    write_tar(tmp_path / "a.tar", [])
    write_parquet(tmp_path / "b.parquet", {"image": [encoded(0)]})
    with pytest.raises(ValueError, match="one folder, or files of one kind"):
        opened([tmp_path / "a.tar", tmp_path / "b.parquet"])
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="one folder, or files of one kind"):
        opened([tmp_path / "folder"])
