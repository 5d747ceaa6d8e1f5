"""What ``metadata.jsonl``, ``metadata.csv`` and ``metadata.parquet`` tell about the images of a folder."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from journey.data.items import LABEL_KEYS
from journey.data.listing import read_text
from journey.data.tables import read_table

METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


def read_metadata(root: Path, files: Sequence[Path], images: Sequence[Path]) -> dict[Path, dict[str, Any]]:
    """Read what metadata files tell, by the rules of the ``imagefolder`` of the Hugging Face library ``datasets``.

    Args:
        root: The folder of the dataset.
        files: Metadata files in it or its subfolders, all of one kind; each names images below its own folder.
        images: The images of the dataset.

    Returns:
        What is told of the images that are named; an empty cell and ``null`` tell nothing.

    Raises:
        ValueError: If there are several kinds of files, a line is damaged, names no image below its folder, or tells
            of an image in other words than another line.
    """
    kinds = sorted({file.suffix for file in files})
    if len(kinds) > 1:
        raise ValueError(f"metadata of {root} must be of one kind, got metadata{' and metadata'.join(kinds)}; keep one")
    known = set(images)
    told: dict[Path, dict[str, Any]] = {}
    places: dict[Path, str] = {}
    for file in files:
        missing = []
        for number, record in _RECORDS[file.suffix](file):
            place = f"line {number} of {file}"
            name = record.pop("file_name")
            path = _named(file.parent, name, known, place)
            if path not in known:
                missing.append(f"{name} in line {number}" + (" (hidden, or no image)" if path.exists() else ""))
            elif told.setdefault(path, record) != record:
                raise ValueError(
                    f"{places[path]} and {place} tell of the same image {path.relative_to(root)} in different words; "
                    "keep one line, several captions as a list"
                )
            places.setdefault(path, place)
        if missing:
            shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
            raise ValueError(
                f"{file.name} of {file.parent} names {len(missing)} images that are not there: {shown}; correct the "
                "lines or take them out"
            )
    return told


def _json_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number and the object of each line; JSON strings may hold other ends of lines than this one."""
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line, object_pairs_hook=_each_key_once)
            if not isinstance(record, dict) or not _is_name(record.get("file_name")):
                raise ValueError(f"got {line[:80]}")
        except (ValueError, RecursionError) as error:
            raise ValueError(f"line {number} of {path} must be a JSON object with file_name: {error}") from error
        yield number, {key: value for key, value in record.items() if value is not None}


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError(f"a key stands twice among {', '.join(key for key, _ in pairs)}")
    return record


def _csv_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number of the first line and the cells of each row; whole numbers under the names of labels are such."""
    rows = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    header: list[str] | None = None
    number = 1
    try:
        for cells in rows:
            number, first = rows.line_num + 1, number
            if not cells:
                continue
            if header is None:
                header = cells
                if "file_name" not in header or len(set(header)) < len(header):
                    raise ValueError(
                        f"line {first} of {path} must name the columns, file_name among them and each once, got "
                        f"{', '.join(header)}"
                    )
                continue
            if len(cells) != len(header):
                raise ValueError(
                    f"line {first} of {path} must have {len(header)} cells as the first, got {len(cells)}; put a "
                    "caption with commas in double quotes"
                )
            record = {key: _cell(key, cell) for key, cell in zip(header, cells, strict=True) if cell}
            if "file_name" not in record:
                raise ValueError(f"line {first} of {path} must have a file_name, got none")
            yield first, record
        if header is None:
            raise ValueError(f"line 1 of {path} must name the columns, file_name among them, got none")
    except csv.Error as error:
        raise ValueError(f"line {number} of {path} is damaged: {error}; a double quote is written twice") from error


def _parquet_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number of each row, from 1, and its cells."""
    for number, record in enumerate(read_table(path).to_pylist(), 1):
        if not _is_name(record.get("file_name")):
            raise ValueError(f"line {number} of {path} must have a file_name, got {record.get('file_name')!r}")
        yield number, {key: value for key, value in record.items() if value is not None}


_RECORDS = {".jsonl": _json_records, ".csv": _csv_records, ".parquet": _parquet_records}


def _cell(key: str, cell: str) -> str | int:
    return int(cell) if key in LABEL_KEYS and re.fullmatch(r"\s*[+-]?[0-9]+\s*", cell) else cell


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and name != ""


def _named(folder: Path, name: str, known: set[Path], place: str) -> Path:
    """Return the path that a line names, with the separators of either system."""
    if (path := folder / name) in known and not Path(name).is_absolute():
        return path
    name = os.path.normpath(name.replace("\\", "/"))
    if name.startswith(("/", "../")) or name == ".." or PureWindowsPath(name).is_absolute():
        raise ValueError(
            f"{place} must name an image below its own folder, got {name}; move the image there or the line to the "
            "metadata of a folder above"
        )
    return folder / name
