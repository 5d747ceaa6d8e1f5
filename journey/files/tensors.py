"""Files that a ``save`` of this package writes: tensors by name, with a word that says what they are."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from journey.files.copies import local_copy
from journey.files.fingerprint import fingerprint_tensors
from journey.files.paths import GivenPath, Location, as_path, read_bytes
from journey.files.publish import publish

# The type, or types, of each field of a JSON object.
Fields: TypeAlias = Mapping[str, type | tuple[type, ...]]


def write_tensors(path: GivenPath, kind: str, tensors: Mapping[str, Tensor], *, exclusive: bool = False) -> None:
    """Write tensors with their SHA-256 as one safetensors file, whole or not at all; equal ones give equal bytes.

    Args:
        path: The file.
        kind: What they are, for ``read_tensors``.
        tensors: By name.
        exclusive: Refuse to replace an existing file.

    Raises:
        FileExistsError: If ``exclusive`` and the file exists.
        OSError: If the file cannot be written.
    """
    publish(as_path(path), [tensor_bytes(kind, tensors)], exclusive=exclusive)


def tensor_bytes(kind: str, tensors: Mapping[str, Tensor]) -> bytes:
    """Return the file that ``write_tensors`` writes."""
    content = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    # One entry of metadata only: safetensors writes several in an order that changes from run to run.
    text = json.dumps({"kind": kind, "sha256": fingerprint_tensors(content)})
    return save(content, metadata={"saved": text})


def read_tensors(path: GivenPath, kind: str, names: Collection[str] = ()) -> dict[str, Tensor]:
    """Read what ``write_tensors`` wrote.

    Args:
        path: The file.
        kind: What it must hold.
        names: Of tensors that it must hold.

    Returns:
        The tensors by name, on the CPU.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged or holds something else.
    """
    where = as_path(path)
    if isinstance(where, Path) and where.is_dir():
        raise ValueError(f"{where} must be a file that holds saved {kind}, got a folder")
    try:
        with local_copy(where) as copy, safe_open(copy, "pt") as file:
            told = json.loads((file.metadata() or {}).get("saved", "{}"))
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 safe_open is no mapping
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{where} holds no saved {kind}, or is damaged: {error}") from error
    if not isinstance(told, dict) or told.get("kind") != kind:
        raise ValueError(f"{where} holds no saved {kind}")
    if told.get("sha256") != fingerprint_tensors(found):
        raise ValueError(f"{where} is damaged: its tensors do not have the SHA-256 that it says")
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(f"{where} is damaged or of another version: it lacks {', '.join(missing)} of {kind}")
    return found


def read_json(path: Location) -> Any:
    """Read a JSON file; an error names it."""
    try:
        return json.loads(read_bytes(path).decode())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def check_fields(found: Any, fields: Fields, where: str) -> dict[str, Any]:
    """Refuse a JSON object without some fields, or with others in their place.

    Args:
        found: What was read.
        fields: The type, or types, that each field must have.
        where: Names the object in the error: its file, and its place there.

    Returns:
        The object.

    Raises:
        ValueError: If it is no object, or a field is missing or of another type.
    """
    if not isinstance(found, dict):
        raise ValueError(f"{where} is damaged: it must be an object with {', '.join(fields)}, got {found!r:.60}")
    for name, kind in fields.items():
        if name not in found:
            raise ValueError(f"{where} is damaged or of another version: it lacks {name}")
        if not isinstance(found[name], kind):
            raise ValueError(f"{where} is damaged: {name} cannot be {found[name]!r:.60}")
    return found
