"""The file format of one shard: safetensors whose every byte is determined by what it holds.

The safetensors package can read the files; it does not write them, because the order in which it writes metadata
changes from process to process. The format is small: eight bytes with the length of the header (little-endian), a
JSON header, then the tensors' bytes without gaps. The header here has one spelling, and its metadata carry

* ``sha256``: SHA-256 of the tensors' bytes, that is of everything after the header;
* ``manifest``: the checksum of the store's manifest;
* ``name``: the file's own, without its suffix.

A reader knows the header that a shard must have, down to the byte, except for the number of images and the SHA-256; so
together the two checks cover every bit of the file, and a shard that was renamed or copied from another store is caught
as well.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from journey.data.ids import Ids
from journey.errors import CorruptShardError
from journey.files.copies import kept_copy
from journey.files.paths import Location
from journey.files.publish import publish
from journey.store.ids import pack_ids, unpack_ids
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
    """The features of some images under one checkpoint.

    Attributes:
        row: The form of the features.
        proj_dim: Their length.
        tensors: By name: the ids as ``journey.store.ids`` has them, ``content`` int64 [num], ``norm`` and ``noise``
            float32 [num], ``values`` float32 [num, bins], and what ``journey.store.rows.row_tensors`` says.
    """

    row: RowFormat
    proj_dim: int
    tensors: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.norm)

    @property
    def ids(self) -> list[int | str]:
        """Ids of the images."""
        return unpack_ids(self.tensors)

    @property
    def id_array(self) -> np.ndarray[Any, Any] | list[int | str]:
        """Ids of the images: integers as an array, which costs nothing. [num]"""
        return self.tensors["ids"].numpy() if "ids" in self.tensors else self.ids

    @property
    def content(self) -> Tensor:
        """64 bits that tell an image, with all that the model reads beside it, from another one, int64. [num]"""
        return self.tensors["content"]

    def select(self, rows: Tensor) -> Shard:
        """Return some of the images, by position, int64. [num_selected]"""
        ids = self.ids
        named = pack_ids([ids[i] for i in rows.tolist()])
        rest = {name: t[rows] for name, t in self.tensors.items() if name not in ("ids", "id_ends", "id_bytes")}
        return replace(self, tensors={**named, **rest})

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
    """The one header and size that a shard file of a store must have.

    Attributes:
        owner: Fingerprint of the store's manifest, and of the part that planned the shard if one did.
        name: The file's, without its suffix.
        num: How many images there are.
        id_bytes: Length of their ids together; None of integers.
        bins: Time bins per image.
        proj_dim: Features per image and bin.
        row: The form of the features.
    """

    owner: str
    name: str
    num: int
    id_bytes: int | None
    bins: int
    proj_dim: int
    row: RowFormat

    @property
    def tensors(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Names, dtypes and shapes in the order of the file; the widest first keeps all of them aligned."""
        ids, last = ("ids", {}) if self.id_bytes is None else ("id_ends", {"id_bytes": (torch.uint8, (self.id_bytes,))})
        return {
            ids: (torch.int64, (self.num,)),
            "content": (torch.int64, (self.num,)),
            "norm": (torch.float32, (self.num,)),
            "noise": (torch.float32, (self.num,)),
            "values": (torch.float32, (self.num, self.bins)),
            **dict(reversed(row_tensors(self.row, self.num, self.bins, self.proj_dim).items())),
            **last,
        }

    def header(self, sha256: str) -> bytes:
        """Spell the start of the file up to the first tensor; its length does not depend on ``sha256``."""
        metadata = {"owner": self.owner, "name": self.name, "sha256": sha256}
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
    def data_bytes(self) -> int:
        """Size of the tensors."""
        return sum(_DTYPES[dtype][1] * torch.Size(shape).numel() for dtype, shape in self.tensors.values())

    @property
    def num_bytes(self) -> int:
        """Size of the file."""
        return len(self.header("0" * 64)) + self.data_bytes


def write_shard_file(path: Location, form: ShardFormat, ids: Ids, given: dict[str, Tensor]) -> None:
    """Check, pack and publish a shard.

    Args:
        path: The file.
        form: Its form.
        ids: Of the images.
        given: ``content``, ``norm``, ``noise`` and ``values`` as ``form.tensors`` says, and ``features`` float32
            [num, bins, proj_dim].

    Raises:
        ValueError: If a tensor has another shape than ``form`` says, is not on the CPU or not finite.
        TypeError: If a tensor has another dtype.
        OSError: If the file cannot be written.
    """
    shapes = {name: form.tensors[name] for name in ("content", "norm", "noise", "values")}
    whole = (torch.float32, (form.num, form.bins, form.proj_dim))
    for name, (dtype, shape) in {**shapes, "features": whole}.items():
        _check_tensor(name, given[name], dtype, shape)
    for name in ("features", "values"):
        _check_finite(name, given[name], ids)
    tensors = {**given, **pack_ids(ids), **pack(form.row, given["features"])}
    chunks = [_bytes_of(tensors[name].detach().contiguous()) for name in form.tensors]
    publish(path, [form.header(_sha256(chunks)), *chunks])


def read_shard_file(path: Location, form: ShardFormat, *, verify: bool) -> dict[str, Tensor]:
    """Map a shard into memory; what is not touched is not read.

    Args:
        path: The file.
        form: Its form, but for how many images there are and how long their ids, which the file tells.
        verify: Check the tensors' bytes against the checksum; size and header are always checked.

    Returns:
        The tensors of ``form.tensors``. Writing to them changes a copy in memory, never the file.

    Raises:
        FileNotFoundError: If there is no such file.
        CorruptShardError: If the size, the header or with ``verify`` the checksum differs.
    """
    with kept_copy(path).open("rb") as file:
        num_bytes = os.fstat(file.fileno()).st_size
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) if num_bytes else bytearray()
    whole = memoryview(mapped)
    length = 8 + int.from_bytes(whole[:8], "little")
    header = bytes(whole[: min(length, num_bytes)])
    metadata, sizes = _described(header)
    form = replace(form, num=sizes.get("norm", 0), id_bytes=sizes.get("id_bytes"))
    expected = form.header(str(metadata.get("sha256")))
    if header != expected or num_bytes != len(expected) + form.data_bytes:
        found = f"name {metadata.get('name')!r}, owner {metadata.get('owner')}" if metadata else "no such header"
        raise CorruptShardError(
            f"{path} is damaged or belongs elsewhere: expected {form.num_bytes} bytes, name {form.name!r}, owner "
            f"{form.owner}; found {num_bytes} bytes, {found}. {_CURE}"
        )
    if verify and (found := _sha256([whole[length:]])) != metadata["sha256"]:
        raise CorruptShardError(f"{path} is damaged: expected the SHA-256 {metadata['sha256']}, found {found}. {_CURE}")
    tensors, offset = {}, length
    for name, (dtype, shape) in form.tensors.items():
        count = torch.Size(shape).numel()
        flat = torch.frombuffer(mapped, dtype=dtype, count=count, offset=offset) if count else _empty(dtype)
        tensors[name] = flat.view(shape)
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


def _check_finite(name: str, tensor: Tensor, ids: Ids) -> None:
    bad = (~torch.isfinite(tensor).flatten(1).all(dim=1)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"{name} must be finite, got NaN or infinity in {len(bad)} of {len(ids)} samples, "
            f"the first with id {ids[bad[0]]!r}"
        )


def _empty(dtype: torch.dtype) -> Tensor:
    return torch.empty(0, dtype=dtype, device="cpu")


def _bytes_of(tensor: Tensor) -> memoryview:
    """View a contiguous CPU tensor as its bytes, without a copy."""
    return tensor.numpy().data.cast("B") if tensor.numel() else memoryview(b"")


def _sha256(chunks: Sequence[memoryview]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def _described(header: bytes) -> tuple[dict[str, Any], dict[str, int]]:
    """Read what a header says about itself, and the lengths of its tensors; nothing if it is not one."""
    try:
        document = json.loads(header[8:])
        metadata = document.pop("__metadata__")
        sizes = {name: tensor["shape"][0] for name, tensor in document.items()}
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return {}, {}
    if not isinstance(metadata, dict) or not all(type(size) is int and 0 <= size < 2**48 for size in sizes.values()):
        return {}, {}
    return metadata, sizes
