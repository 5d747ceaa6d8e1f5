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
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from journey.errors import CorruptShardError
from journey.files.publish import publish
from journey.store.rows import RowFormat, pack, products, row_tensors, unpack

_CURE = "Delete this file and run featurize again with the same arguments; it recomputes only this shard."
_DTYPES = {
    torch.float32: ("F32", 4),
    torch.float16: ("F16", 2),
    torch.int64: ("I64", 8),
    torch.int8: ("I8", 1),
    torch.uint8: ("U8", 1),
}


@dataclass(frozen=True)
class Shard:
    """The features of a range of samples under one checkpoint.

    Attributes:
        checkpoint: Name of the checkpoint.
        begin: First dataset position.
        end: One past the last dataset position.
        row: The form of the features.
        proj_dim: Their length.
        tensors: By name: ``ids`` int64 [num], ``norm`` and ``noise`` float32 [num], ``values`` float32
            [num, bins], and what ``journey.store.rows.row_tensors`` says.
    """

    checkpoint: str
    begin: int
    end: int
    row: RowFormat
    proj_dim: int
    tensors: dict[str, Tensor]

    @property
    def ids(self) -> Tensor:
        """Ids of the samples, int64. [num]"""
        return self.tensors["ids"]

    @property
    def norm(self) -> Tensor:
        """Norm of a sample's whole-range feature, float32. [num]"""
        return self.tensors["norm"]

    @property
    def noise(self) -> Tensor:
        """Norm of half the difference of two disjoint halves of a sample's draws; NaN if unknown. float32 [num]"""
        return self.tensors["noise"]

    @property
    def values(self) -> Tensor:
        """The measurement's values, float32. [num, bins]"""
        return self.tensors["values"]

    @property
    def features(self) -> Tensor:
        """Projected gradients, unpacked, float32. [num, bins, proj_dim]"""
        return unpack(self.row, self.tensors, self.proj_dim)

    def products(self, queries: Tensor) -> Tensor:
        """Return the inner products of queries with every feature.

        Args:
            queries: float32, on the CPU. [num_queries, proj_dim]

        Returns:
            float32. [num_queries, num, bins]
        """
        return products(self.row, queries, self.tensors)


@dataclass(frozen=True)
class ShardFormat:
    """The one header and size that a shard file of a store must have."""

    manifest_checksum: str
    checkpoint: str
    begin: int
    end: int
    bins: int
    proj_dim: int
    row: RowFormat

    @property
    def tensors(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Names, dtypes and shapes in the order of the file; the widest first keeps all of them aligned."""
        num = self.end - self.begin
        return {
            "ids": (torch.int64, (num,)),
            "norm": (torch.float32, (num,)),
            "noise": (torch.float32, (num,)),
            "values": (torch.float32, (num, self.bins)),
            **dict(reversed(row_tensors(self.row, num, self.bins, self.proj_dim).items())),
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


def write_shard_file(path: Path, form: ShardFormat, given: dict[str, Tensor]) -> None:
    """Check, pack and publish a shard.

    Args:
        path: The file.
        form: Its form.
        given: ``ids``, ``norm``, ``noise`` and ``values`` as ``form.tensors`` says, and ``features`` float32
            [num, bins, proj_dim].

    Raises:
        ValueError: If a tensor has another shape than ``form`` says, is not on the CPU or not finite.
        TypeError: If a tensor has another dtype.
        OSError: If the file cannot be written.
    """
    num = form.end - form.begin
    shapes = {name: form.tensors[name] for name in ("ids", "norm", "noise", "values")}
    for name, (dtype, shape) in {**shapes, "features": (torch.float32, (num, form.bins, form.proj_dim))}.items():
        _check_tensor(name, given[name], dtype, shape)
    for name in ("features", "values"):
        _check_finite(name, given[name], given["ids"])
    tensors = {**given, **pack(form.row, given["features"])}
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


def read_shard_file(path: Path, form: ShardFormat, *, verify: bool) -> dict[str, Tensor]:
    """Map a shard into memory; what is not touched is not read.

    Args:
        path: The file.
        form: Its form.
        verify: Check the tensors' bytes against the checksum; size and header are always checked.

    Returns:
        The tensors of ``form.tensors``. Writing to them changes a copy in memory, never the file.

    Raises:
        FileNotFoundError: If there is no such file.
        CorruptShardError: If the size, the header or with ``verify`` the checksum differs.
    """
    with path.open("rb") as file:
        num_bytes = os.fstat(file.fileno()).st_size
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) if num_bytes else bytearray()
    whole = memoryview(mapped)
    length = 8 + int.from_bytes(whole[:8], "little")
    header = bytes(whole[: min(length, num_bytes)])
    metadata = _metadata(header)
    if num_bytes != form.num_bytes or header != form.header(str(metadata.get("sha256"))):
        expected = f"checkpoint {form.checkpoint!r}, samples {form.begin} to {form.end}, {form.num_bytes} bytes"
        raise CorruptShardError(
            f"{path} is damaged or belongs elsewhere: expected {expected}, manifest {form.manifest_checksum}; "
            f"found {_describe(metadata)}{num_bytes} bytes, manifest {metadata.get('manifest')}. {_CURE}"
        )
    if verify and (found := _sha256([whole[length:]])) != metadata["sha256"]:
        raise CorruptShardError(f"{path} is damaged: expected the SHA-256 {metadata['sha256']}, found {found}. {_CURE}")
    tensors, offset = {}, length
    for name, (dtype, shape) in form.tensors.items():
        count = torch.Size(shape).numel()
        tensors[name] = torch.frombuffer(mapped, dtype=dtype, count=count, offset=offset).view(shape)
        offset += count * dtype.itemsize
    return tensors


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
