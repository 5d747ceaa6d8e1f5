"""Files that a ``save`` of this package writes: tensors by name, with a word that says what they are."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


def write_tensors(path: str | os.PathLike[str], kind: str, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as one safetensors file; equal ones give equal bytes.

    Args:
        path: The file.
        kind: What they are, for ``read_tensors``. The only metadata: safetensors writes several entries of it in an
            order that changes from run to run.
        tensors: By name.
    """
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"kind": kind})


def read_tensors(path: str | os.PathLike[str], kind: str) -> dict[str, Tensor]:
    """Read what ``write_tensors`` wrote.

    Args:
        path: The file.
        kind: What it must hold.

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
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 safe_open is no mapping
    except SafetensorError as error:
        raise ValueError(f"{os.fspath(path)} holds no saved {kind}, or is damaged: {error}") from error


def read_json(path: Path) -> Any:
    """Read a JSON file; an error names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
