"""Files that a ``save`` of this package writes: tensors by name, with a word that says what they are."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from journey.fingerprint import fingerprint_tensors
from journey.publish import publish


def write_tensors(path: str | os.PathLike[str], kind: str, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as one safetensors file, whole or not at all; equal ones give equal bytes.

    Args:
        path: The file.
        kind: What they are, for ``read_tensors``. The only metadata: safetensors writes several entries of it in an
            order that changes from run to run.
        tensors: By name.

    Raises:
        OSError: If the file cannot be written.
    """
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    publish(Path(path), [save(contiguous, metadata={"kind": kind})])


def read_tensors(path: str | os.PathLike[str], kind: str, names: Collection[str] = ()) -> dict[str, Tensor]:
    """Read what ``write_tensors`` wrote.

    Args:
        path: The file.
        kind: What it must hold.
        names: Of tensors that it must hold.

    Returns:
        The tensors by name.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged or holds something else.
    """
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("kind") != kind:
                raise ValueError(f"{os.fspath(path)} holds no saved {kind}")
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 safe_open is no mapping
    except SafetensorError as error:
        raise ValueError(f"{os.fspath(path)} holds no saved {kind}, or is damaged: {error}") from error
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(f"{os.fspath(path)} is damaged or of another version: it lacks {', '.join(missing)} of {kind}")
    return found


def write_hashed(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], *, exclusive: bool = False) -> None:
    """Write tensors with their SHA-256 as one safetensors file, whole or not at all; equal ones give equal bytes.

    Args:
        path: The file.
        tensors: By name.
        exclusive: Refuse to replace an existing file.

    Raises:
        FileExistsError: If ``exclusive`` and the file exists.
        OSError: If the file cannot be written.
    """
    content = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    publish(Path(path), [save(content, metadata={"sha256": fingerprint_tensors(content)})], exclusive=exclusive)


def read_hashed(path: str | os.PathLike[str], writer: str) -> dict[str, Tensor]:
    """Read what ``write_hashed`` wrote.

    Args:
        path: The file.
        writer: What wrote it, for errors.

    Returns:
        The tensors by name, on the CPU.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file holds something else, or is damaged.
    """
    wrong = f"path must be a file that {writer} wrote, got {os.fspath(path)}"
    try:
        with safe_open(path, "pt") as file:
            sha256 = (file.metadata() or {}).get("sha256")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 safe_open is no mapping
    except SafetensorError as error:
        raise ValueError(f"{wrong}, which is damaged") from error
    if sha256 != fingerprint_tensors(tensors):
        raise ValueError(f"{wrong}, of another or no SHA-256")
    return tensors


def read_json(path: Path) -> Any:
    """Read a JSON file; an error names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def check_fields(found: Any, fields: Mapping[str, type | tuple[type, ...]], where: str) -> dict[str, Any]:
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
