"""Whatever holds training images, opened as a map-style dataset or a stream."""

from __future__ import annotations

import glob
import os
import sys
import warnings
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from journey.data.folder import ImageFolder
from journey.data.ids import IdOf, Ids, ids_of
from journey.data.items import Dataset, check_dataset
from journey.data.listing import describe_passed_over, list_folder
from journey.data.metadata import METADATA_NAMES
from journey.data.parquet import ParquetFiles
from journey.data.patterns import find_files
from journey.data.picture import Form
from journey.data.stream import IterableStream, Stream, TableStream
from journey.data.tar import TarShards

_KINDS: dict[str, type[ParquetFiles] | type[TarShards]] = {".parquet": ParquetFiles, ".tar": TarShards}


def open_dataset(
    source: Any, *, size: tuple[int, ...] | None, channels: int, id_of: IdOf | None = None
) -> Dataset | Stream:
    """Open what holds training images.

    Args:
        source: A folder of images (see ``ImageFolder``), or one without images but with parquet or tar files; the path
            of such a file, a pattern (``*.parquet``, ``shards-{000..009}.tar``) or a list of these; a table of the
            library ``datasets``, map-style or streaming; a map-style dataset; any other iterable of items, or of pairs
            ``(id, item)``. What was opened already comes back as it is.
        size: Height and width, of videos frames before them, that pictures in files and in tables of ``datasets`` are
            scaled to and cropped to; None keeps them. Items of the caller's own datasets stay as they are.
        channels: 1 (grey) or 3 (RGB), of the same.
        id_of: The column or key that holds the ids, or a function of an item.

    Returns:
        A map-style dataset where the images can be indexed, whose ids ``ids_of`` tells; a stream otherwise.

    Raises:
        NotADirectoryError: If a path leads nowhere.
        FileNotFoundError: If a pattern matches no file.
        TypeError: If the source is nothing of this.
        ValueError: If files are of another or of several kinds, or as ``ImageFolder``, ``ParquetFiles`` or
            ``check_dataset`` say.
    """
    form = Form(size, channels)
    if isinstance(source, str | os.PathLike):
        return _open_path(os.fspath(source), form, id_of)
    if isinstance(source, list | tuple) and source and all(isinstance(path, str | os.PathLike) for path in source):
        return _open_files(find_files(source), form, id_of)
    if isinstance(source, DataLoader):
        raise TypeError("dataset must give single images, got a DataLoader, which gives batches; give its .dataset")
    if _is_of_datasets(source, "IterableDataset"):
        return TableStream(source, id_of, form)
    if _is_of_datasets(source, "Dataset"):
        check_dataset(source)
        return Named(source, id_of, form)
    if isinstance(source, Stream):
        if id_of is not None:
            raise ValueError("id_of must be given where the stream is opened, got one for a stream that is open")
        return source
    if _is_iterable_only(source):
        return IterableStream(source, id_of)
    check_dataset(source)
    return source if id_of is None else Named(source, id_of)


class Named:
    """A map-style dataset with the ids that ``id_of`` tells of its images.

    Args:
        dataset: The dataset.
        id_of: As in ``ids_of``.
        form: What pictures are brought to; None leaves items as they are.
    """

    def __init__(self, dataset: Dataset, id_of: IdOf | None, form: Form | None = None) -> None:
        self._dataset = dataset
        self._id_of = id_of
        self._form = form

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        item = self._dataset[index]
        return item if self._form is None else self._form.bring(item, f"dataset[{index}]")

    @cached_property
    def ids(self) -> Ids:
        """The ids, by position."""
        dataset = self._dataset
        if isinstance(dataset, ImageFolder) and not callable(self._id_of):  # not decoded
            return ids_of([dataset.told(i) for i in range(len(dataset))], self._id_of)
        return ids_of(dataset, self._id_of)


def _open_path(path: str, form: Form, id_of: IdOf | None) -> Dataset | Stream:
    if "://" in path or path.startswith("pipe:"):
        raise ValueError(
            f"dataset must lie on this machine or a mounted disk, got {path}; datasets.load_dataset(..., "
            "streaming=True) reads others"
        )
    if Path(path).is_dir():
        return _open_folder(Path(path), form, id_of)
    if not (Path(path).exists() or Path(path).suffix in _KINDS or glob.has_magic(path) or "{" in path):
        raise NotADirectoryError(
            f"dataset must be a folder of images, got {path}, which is not there; parquet and tar files do too, and "
            "datasets.load_dataset opens what has a name on the Hub"
        )
    return _open_files(find_files([path]), form, id_of)


def _open_folder(root: Path, form: Form, id_of: IdOf | None) -> Dataset | Stream:
    listing = list_folder(root)
    files = [path for path in listing.others if path.suffix in _KINDS and path.name not in METADATA_NAMES]
    if listing.images or not files:
        folder = ImageFolder(root, size=form.size, channels=form.channels)
        return folder if id_of is None else Named(folder, id_of)
    taken = set(files)
    if left_out := describe_passed_over(
        root, listing._replace(others=[path for path in listing.others if path not in taken])
    ):
        warnings.warn(f"dataset folder {root}: {left_out}", stacklevel=4)
    return _open_files(files, form, id_of)


def _open_files(paths: list[Path], form: Form, id_of: IdOf | None) -> Dataset | Stream:
    kinds = sorted({path.suffix for path in paths})
    if len(kinds) > 1 or kinds[0] not in _KINDS or any(path.is_dir() for path in paths):
        shown = ", ".join(map(str, paths[:3])) + (", ..." if len(paths) > 3 else "")
        raise ValueError(f"dataset must be one folder, or files of one kind, .parquet or .tar, got {shown}")
    return _KINDS[kinds[0]](paths, form, id_of)


def _is_of_datasets(source: Any, name: str) -> bool:
    """Whether this is a class of the library ``datasets``, which only who has imported it can have."""
    kind = getattr(sys.modules.get("datasets"), name, None)
    return kind is not None and isinstance(source, kind)


def _is_iterable_only(source: Any) -> bool:
    indexed = hasattr(source, "__len__") and hasattr(source, "__getitem__")
    return isinstance(source, Iterable) and not isinstance(source, Mapping) and not indexed
