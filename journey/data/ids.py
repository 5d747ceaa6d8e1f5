"""Stable ids of images: the caller's, or positions in the dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from journey.data.items import Dataset

# All of a dataset's are of one kind: integers of 64 bits, or strings.
Ids: TypeAlias = "Sequence[int | str]"
# The column that holds the ids, or a function of an item.
IdOf: TypeAlias = "str | Callable[[Any], int | str]"

ID_KEYS = ("id", "__key__", "file_name")
_MOST_BYTES = 1024


def ids_of(dataset: Dataset, id_of: IdOf | None = None) -> list[int | str]:
    """Return the id of every image of a map-style dataset.

    Args:
        dataset: One with an attribute ``ids`` tells them itself. A list of dicts and a table of the library
            ``datasets`` have them in a column ``id``, ``__key__`` or ``file_name``. All others are counted.
        id_of: The column instead, or a function of an item, for which every item is read once.

    Returns:
        The ids, by position.

    Raises:
        ValueError: If two images have one id, or there is no such column.
        TypeError: If an id is neither an integer nor a string, or there are both.
    """
    if callable(id_of):
        return check_ids([id_of(dataset[i]) for i in range(len(dataset))])
    if id_of is None and hasattr(dataset, "ids"):
        found = check_ids(dataset.ids)
        if len(found) != len(dataset):
            raise ValueError(f"dataset.ids must name each of its {len(dataset)} images, got {len(found)}")
        return found
    columns = getattr(dataset, "column_names", None)
    if isinstance(columns, Sequence) and hasattr(dataset, "select_columns"):  # not decoded
        key = _key(columns, id_of)
        if key is None:
            return list(range(len(dataset)))
        plain: Any = dataset.with_format(None) if hasattr(dataset, "with_format") else dataset  # no transform, tensors
        return check_ids(plain.select_columns([key])[:][key])
    if isinstance(dataset, list | tuple) and all(isinstance(item, Mapping) for item in dataset):
        key = _key(list(dict.fromkeys(name for item in dataset for name in item)), id_of)
        if key is None:
            return list(range(len(dataset)))
        return check_ids([_of_item(item, key, f"dataset[{i}]") for i, item in enumerate(dataset)])
    if id_of is not None:
        return check_ids([_of_item(dataset[i], id_of, f"dataset[{i}]") for i in range(len(dataset))])
    return list(range(len(dataset)))


def check_ids(ids: Iterable[Any], name: str = "ids") -> list[int | str]:
    """Return ids as plain integers or strings, or refuse them.

    Args:
        ids: Of all images.
        name: What they are called in errors.

    Returns:
        The ids.

    Raises:
        ValueError: If two are equal, a string is empty, longer than 1,024 bytes, not UTF-8 or holds NUL, or an integer
            has more than 64 bits.
        TypeError: If one is neither an integer nor a string, or there are both.
    """
    if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
        raise TypeError(f"{name} must be a list of integers or strings, got {ids!r:.60}")
    found = [check_id(i, name) for i in ids]
    if len({type(i) for i in found}) > 1:
        odd = next(i for i in found if type(i) is not type(found[0]))
        raise TypeError(f"{name} must be all integers or all strings, got {found[0]!r} and {odd!r}")
    if len(set(found)) < len(found):
        seen: set[int | str] = set()
        twice = next(i for i in found if i in seen or seen.add(i))  # type: ignore[func-returns-value]
        raise ValueError(f"{name} must name every image once, got {twice!r} for two or more")
    return found


def positions_of(ids: Sequence[int | str]) -> dict[int | str, int]:
    """Return the position of each id."""
    found: Iterable[int | str] = ids
    return {i: position for position, i in enumerate(found)}


def check_id(given: Any, name: str = "id") -> int | str:
    """Return one id as a plain integer or string, or refuse it; see ``check_ids``."""
    if isinstance(given, str):
        try:
            size = len(given.encode())
        except UnicodeEncodeError:
            raise ValueError(f"{name} must be UTF-8, got {given!r}") from None
        if not 1 <= size <= _MOST_BYTES:
            raise ValueError(f"{name} must have 1 to {_MOST_BYTES} bytes, got {size}: {given[:40]!r}")
        if "\0" in given:  # numpy drops it from the end of a string
            raise ValueError(f"{name} must not hold the character NUL, got {given[:40]!r}")
        return str(given)
    if isinstance(given, int | np.integer) and not isinstance(given, bool):
        if not -(2**63) <= int(given) < 2**63:
            raise ValueError(f"{name} must fit in 64 bits, got {given}")
        return int(given)
    raise TypeError(f"{name} must be an integer or a string, got {given!r} ({type(given).__name__})")


def _key(columns: Sequence[str], id_of: IdOf | None) -> str | None:
    if id_of is not None:
        if id_of not in columns:
            raise ValueError(f"id_of must be one of the columns {', '.join(map(str, columns))}, got {id_of!r}")
        return id_of  # type: ignore[return-value]
    return next((key for key in ID_KEYS if key in columns), None)


def _of_item(item: Any, key: IdOf, name: str) -> Any:
    if not isinstance(item, Mapping) or key not in item:
        raise ValueError(f"{name} must be a dict with the key {key!r}, by which images are named")
    return item[key]
