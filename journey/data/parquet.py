"""Images in parquet files, as a map-style dataset."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from journey.data.ids import ID_KEYS, IdOf, Ids, check_ids
from journey.data.items import CAPTION_KEYS, IMAGE_KEYS, LABEL_KEYS
from journey.data.picture import Form
from journey.data.tables import open_parquet, read_table

_ROWS = 16  # that are held in memory at a time


class ParquetFiles:
    """The rows of parquet files, in the order of the files; an item is a dict.

    The image is a column ``image``, ``pixel_values``, ``images`` or ``img`` of encoded files: bytes, or structs
    ``{bytes, path}`` as the library ``datasets`` writes them. Captions, labels and ids are columns by their names, as
    in ``journey.data.items`` and ``journey.data.ids``; other columns are not read, and an empty cell tells nothing.

    Rows are read forwards, a few at a time; a step back reads its row group from the beginning.

    Args:
        paths: The files.
        form: What pictures are brought to.
        id_of: The column of ids, or a function of an item, for which every row is decoded once.

    Raises:
        ImportError: If pyarrow is not installed.
        ValueError: If a file is damaged, has no column of images, or lacks one that others have; there are no rows; or
            the image of an item that is asked for cannot be decoded.
    """

    def __init__(self, paths: Sequence[Path], form: Form, id_of: IdOf | None = None) -> None:
        self.paths = list(paths)
        self._form = form
        self._id_of = id_of
        self._starts: list[int] = []  # the first row of each row group
        self._groups: list[tuple[Path, int, int]] = []  # its file, its number there, its first row there
        self._length = 0
        columns: list[str] | None = None
        for path in self.paths:
            file = open_parquet(path)
            found = _columns(file.schema_arrow, path, id_of)
            if columns is not None and found != columns:
                raise ValueError(
                    f"{path} and {self.paths[0]} must have the same columns of images, captions, labels and ids, got "
                    f"{', '.join(found)} and {', '.join(columns)}"
                )
            columns = found
            first = self._length
            for group in range(file.num_row_groups):
                self._starts.append(self._length)
                self._groups.append((path, group, self._length - first))
                self._length += file.metadata.row_group(group).num_rows
        if not self._length:
            raise ValueError(f"dataset must hold at least one image, got {len(self.paths)} parquet files without rows")
        self._columns = columns or []
        self._image = next(key for key in IMAGE_KEYS if key in self._columns)
        self._reader: _Reader | None = None

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self._length:
            raise IndexError(f"index must be at least 0 and less than {self._length}, got {index}")
        group = bisect_right(self._starts, index) - 1
        path, number, first = self._groups[group]
        row = index - self._starts[group]
        if self._reader is None or not self._reader.reaches(path, number, row):
            self._reader = _Reader(path, number, self._columns)
        what = f"row {first + row} of {path}"
        try:
            told = self._reader.row(row)
        except OSError as error:
            raise ValueError(f"{what} cannot be read: {error}; write the file again") from error
        image = told[self._image]
        data = image.get("bytes") if isinstance(image, dict) else image
        if data is None:
            raise ValueError(f"{what} must hold an encoded image in its column {self._image}, got {image}")
        told = {key: value for key, value in told.items() if value is not None}
        return {**told, self._image: self._form.read(data, what)}

    @cached_property
    def ids(self) -> Ids:
        """The column of ids, or the numbers of the rows if there is none; no image is decoded for it."""
        if callable(self._id_of):
            return check_ids([self._id_of(self[i]) for i in range(len(self))])
        key = self._id_of or next((key for key in ID_KEYS if key in self._columns), None)
        if key is None:
            return list(range(len(self)))
        values = [value for path in self.paths for value in read_table(path, [key]).column(0).to_pylist()]
        return check_ids(values, f"ids in the column {key!r} of {self.paths[0]}" + (", ..." if self.paths[1:] else ""))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None}


class _Reader:
    """Reads one row group forwards, in the process that made it."""

    def __init__(self, path: Path, group: int, columns: list[str]) -> None:
        file = open_parquet(path)
        self._place = (os.getpid(), path, group)
        self._batches: Iterator[Any] = file.iter_batches(_ROWS, [group], columns, use_threads=False)
        self._start, self._batch = 0, next(self._batches)

    def reaches(self, path: Path, group: int, row: int) -> bool:
        return (os.getpid(), path, group) == self._place and row >= self._start

    def row(self, row: int) -> dict[str, Any]:
        while row >= self._start + self._batch.num_rows:
            self._start += self._batch.num_rows
            self._batch = next(self._batches)
        found: dict[str, Any] = self._batch.slice(row - self._start, 1).to_pylist()[0]
        return found


def _columns(schema: Any, path: Path, id_of: IdOf | None) -> list[str]:
    """The columns that are read: the image, what is told of it, and all for a function ``id_of``."""
    import pyarrow.types as kinds

    names = schema.names
    image = next((key for key in IMAGE_KEYS if key in names), None)
    if image is None:
        raise ValueError(f"{path} must have a column of images, {', '.join(IMAGE_KEYS)}, got {', '.join(names)}")
    kind = schema.field(image).type
    if kinds.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (kinds.is_binary(kind) or kinds.is_large_binary(kind)):
        raise ValueError(
            f"{path} must hold encoded images, bytes or structs with bytes, in its column {image}, got {kind}"
        )
    if isinstance(id_of, str) and id_of not in names:
        raise ValueError(f"id_of must be one of the columns {', '.join(names)} of {path}, got {id_of!r}")
    told = {*CAPTION_KEYS, *LABEL_KEYS, *ID_KEYS, id_of}
    return [name for name in names if name == image or (name not in IMAGE_KEYS and (callable(id_of) or name in told))]
