"""The file format of one shard: safetensors whose every byte is determined by what it holds.

The safetensors package can read the files; it does not write them, because the order in which it writes metadata
changes from process to process. The format is small: eight bytes with the length of the header (little-endian), a
JSON header, then the tensors' bytes without gaps. The header here has one spelling, and its metadata carry

* ``sha256``: SHA-256 of the tensors' bytes, that is of everything after the header;
* ``manifest``: the checksum of the store's manifest;
* ``checkpoint``, ``begin``, ``end``: the checkpoint's name and the range of dataset positions.

A reader knows the header that a shard must have, down to the byte, except for the SHA-256; so together the two checks
cover every bit of the file, and a shard that was renamed or copied from another store is caught as well.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from journey.errors import CorruptShardError
from journey.files.publish import publish

_CURE = "Delete this file and run featurize again with the same arguments; it recomputes only this shard."
_DTYPES = {torch.float32: ("F32", 4), torch.int64: ("I64", 8)}


@dataclass(frozen=True)
class Shard:
    """The features of a range of samples under one checkpoint.

    Attributes:
        checkpoint: Name of the checkpoint.
        begin: First dataset position.
        end: One past the last dataset position.
        features: Projected gradients, float32. [end - begin, bins, proj_dim]
        values: The measurement's values, float32. [end - begin, bins]
        ids: Ids of the samples, int64. [end - begin]
    """

    checkpoint: str
    begin: int
    end: int
    features: Tensor  # [end - begin, bins, proj_dim]
    values: Tensor  # [end - begin, bins]
    ids: Tensor  # [end - begin]


@dataclass(frozen=True)
class ShardFormat:
    """The one header and size that a shard file of a store must have."""

    manifest_checksum: str
    checkpoint: str
    begin: int
    end: int
    bins: int
    proj_dim: int

    @property
    def tensors(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Names, dtypes and shapes in the order of the file; int64 first keeps all of them aligned."""
        num = self.end - self.begin
        return {
            "ids": (torch.int64, (num,)),
            "features": (torch.float32, (num, self.bins, self.proj_dim)),
            "values": (torch.float32, (num, self.bins)),
        }

    def header(self, sha256: str) -> bytes:
        """Spell the start of the file up to the first tensor; its length does not depend on ``sha256``."""
        metadata = {
            "begin": str(self.begin),
            "checkpoint": self.checkpoint,
            "end": str(self.end),
            "manifest": self.manifest_checksum,
            "sha256": sha256,
        }
        document: dict[str, object] = {"__metadata__": metadata}
        offset = 0
        for name, (dtype, shape) in self.tensors.items():
            code, itemsize = _DTYPES[dtype]
            num_bytes = itemsize * torch.Size(shape).numel()
            document[name] = {"dtype": code, "shape": shape, "data_offsets": [offset, offset + num_bytes]}
            offset += num_bytes
        text = json.dumps(document, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the format's own padding: tensors start at a multiple of 8
        return len(text).to_bytes(8, "little") + text

    @property
    def num_bytes(self) -> int:
        """Size of the file."""
        data = sum(_DTYPES[dtype][1] * torch.Size(shape).numel() for dtype, shape in self.tensors.values())
        return len(self.header("0" * 64)) + data


def write_shard_file(path: Path, form: ShardFormat, tensors: dict[str, Tensor]) -> None:
    """Check and publish a shard.

    Raises:
        ValueError: If a tensor has another shape than ``form.tensors`` says, is not on the CPU or not finite.
        TypeError: If a tensor has another dtype.
        OSError: If the file cannot be written.
    """
    for name, (dtype, shape) in form.tensors.items():
        _check_tensor(name, tensors[name], dtype, shape)
    for name in ("features", "values"):
        _check_finite(name, tensors[name], tensors["ids"])
    chunks = [_bytes_of(tensors[name].detach().contiguous()) for name in form.tensors]
    publish(path, [form.header(_sha256(chunks)), *chunks])


def check_shard_size(path: Path, form: ShardFormat) -> bool:
    """Tell whether the shard is there, or raise CorruptShardError if it has a size that no such shard can have."""
    try:
        found = path.stat().st_size
    except FileNotFoundError:
        return False
    if found != form.num_bytes:
        raise CorruptShardError(f"{path} is damaged: expected {form.num_bytes} bytes, found {found}. {_CURE}")
    return True


def read_shard_file_(path: Path, form: ShardFormat, tensors: dict[str, Tensor], *, verify: bool) -> None:
    """Read a shard into contiguous ``tensors`` that are as ``form.tensors`` says.

    Raises:
        CorruptShardError: If the size or the header differs, or with ``verify`` the checksum of the tensors' bytes.
    """
    with path.open("rb") as file:
        num_bytes = os.fstat(file.fileno()).st_size
        header = file.read(8)
        header += file.read(min(int.from_bytes(header, "little"), num_bytes))
        metadata = _metadata(header)
        if num_bytes != form.num_bytes or header != form.header(str(metadata.get("sha256"))):
            expected = f"checkpoint {form.checkpoint!r}, samples {form.begin} to {form.end}, {form.num_bytes} bytes"
            raise CorruptShardError(
                f"{path} is damaged or belongs elsewhere: expected {expected}, manifest {form.manifest_checksum}; "
                f"found {_describe(metadata)}{num_bytes} bytes, manifest {metadata.get('manifest')}. {_CURE}"
            )
        chunks = [_bytes_of(tensors[name]) for name in form.tensors]
        if any(file.readinto(chunk) != len(chunk) for chunk in chunks):
            raise CorruptShardError(f"{path} is damaged: it became shorter while it was read. {_CURE}")
    if verify and (found := _sha256(chunks)) != metadata["sha256"]:
        raise CorruptShardError(f"{path} is damaged: expected the SHA-256 {metadata['sha256']}, found {found}. {_CURE}")


def _check_tensor(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if not isinstance(tensor, Tensor) or tensor.dtype != dtype:
        found = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"{name} must be a {dtype} tensor, got {found}")
    if tensor.shape != shape:
        raise ValueError(f"{name} must be {list(shape)}, got {list(tensor.shape)}")
    if tensor.device.type != "cpu":
        raise ValueError(f"{name} must be on the CPU, got {tensor.device}")


def _check_finite(name: str, tensor: Tensor, ids: Tensor) -> None:
    bad = ~torch.isfinite(tensor).flatten(1).all(dim=1)  # [num]
    if bad.any():
        raise ValueError(
            f"{name} must be finite, got NaN or infinity in {int(bad.sum())} of {len(bad)} samples, "
            f"the first with id {int(ids[bad][0])}"
        )


def _bytes_of(tensor: Tensor) -> memoryview:
    """View a contiguous CPU tensor as its bytes, without a copy."""
    return tensor.numpy().data.cast("B")


def _sha256(chunks: Sequence[memoryview]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def _metadata(header: bytes) -> dict[str, Any]:
    """Read what a header says about itself, or nothing if it is not one."""
    try:
        metadata = json.loads(header[8:])["__metadata__"]
    except (ValueError, KeyError, TypeError):
        return {}
    return metadata if isinstance(metadata, dict) else {}


def _describe(metadata: dict[str, Any]) -> str:
    if not metadata:
        return "no readable header, "
    return f"checkpoint {metadata.get('checkpoint')!r}, samples {metadata.get('begin')} to {metadata.get('end')}, "
