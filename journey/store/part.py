"""Parts of a store: which images are to be measured, and in which shards.

A part is planned before its images are measured, and never changes. ``part-000000.safetensors`` holds the ids of its
images (``journey.store.ids``) and ``shard_size``; shard i of it holds the images ``[i * shard_size, ...)``. A store
grows by parts. Images that could not be read are named in ``skipped-PPPPPP-SSSSSS.json`` beside the shard that is
without them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from journey.data.ids import Ids
from journey.errors import StoreError
from journey.files.fingerprint import fingerprint_tensors
from journey.files.paths import Location
from journey.files.publish import publish
from journey.files.tensors import read_json, read_tensors, tensor_bytes
from journey.store.ids import pack_ids, unpack_ids

_PREFIX, _SUFFIX = "part-", ".safetensors"
FIRST_PART = "000000"


class ShardName(NamedTuple):
    """Which shard: of a part that was planned, or one that stands alone.

    Attributes:
        part: Name of the part: six digits; of a shard without a plan sixteen hexadecimal ones.
        number: Which of the part's shards.
    """

    part: str
    number: int

    def __str__(self) -> str:
        return f"{self.part}-{self.number:06d}"


@dataclass(frozen=True)
class Part:
    """Images that were planned together.

    Attributes:
        name: Six digits, by which parts are in order.
        ids: The images, in order.
        shard_size: Images per shard; the last one may have fewer.
        fingerprint: SHA-256 of ids and shard size. Every shard of the part carries it, so that those of another store
            of the run cannot be mixed in.
    """

    name: str
    ids: Ids
    shard_size: int
    fingerprint: str

    @staticmethod
    def of(name: str, ids: Ids, shard_size: int) -> Part:
        """Return a part that is to be written."""
        return Part(name, ids, shard_size, fingerprint_tensors(_tensors(ids, shard_size)))

    @property
    def shards(self) -> list[ShardName]:
        """The part's shards, in order."""
        return [ShardName(self.name, i) for i in range(-(-len(self.ids) // self.shard_size))]

    def ids_of(self, index: int) -> Ids:
        """Return the ids of one shard's images."""
        return self.ids[index * self.shard_size : (index + 1) * self.shard_size]

    def publish(self, folder: Location) -> None:
        """Write the part, for all processes to see.

        Raises:
            FileExistsError: If there is one of this name.
            OSError: If the folder cannot be written to.
        """
        publish(folder / f"{_PREFIX}{self.name}{_SUFFIX}", [self.to_bytes()], exclusive=True)

    def to_bytes(self) -> bytes:
        """Return the part's file."""
        return tensor_bytes("part", _tensors(self.ids, self.shard_size))

    @staticmethod
    def read(folder: Location, name: str) -> Part:
        """Return the part of a name; StoreError if its file is damaged."""
        path = folder / f"{_PREFIX}{name}{_SUFFIX}"
        try:
            tensors = read_tensors(path, "part", ["shard_size"])
            return Part(name, unpack_ids(tensors), int(tensors["shard_size"]), fingerprint_tensors(tensors))
        except (ValueError, KeyError) as error:
            raise StoreError(
                f"{path} is damaged: {error}. Restore the file, or featurize into another folder"
            ) from None


def _tensors(ids: Ids, shard_size: int) -> dict[str, Tensor]:
    return {**pack_ids(ids), "shard_size": torch.tensor([shard_size], dtype=torch.int64, device="cpu")}


def loose_shard(ids: Ids, contents: Sequence[int]) -> ShardName:
    """Return the name of a shard that was not planned: by its images, so that the same ones give the same file.

    Args:
        ids: Of the images.
        contents: See ``journey.store.shard.Shard``; other images of the same ids are another shard.
    """
    content = torch.tensor(contents, dtype=torch.int64, device="cpu")
    return ShardName(fingerprint_tensors({**pack_ids(ids), "content": content})[:16], 0)


def part_name(file_name: str) -> str | None:
    """Return the name of the part that a file holds, or None if it holds none."""
    name = file_name.removeprefix(_PREFIX).removesuffix(_SUFFIX)
    return name if file_name == f"{_PREFIX}{name}{_SUFFIX}" and len(name) == 6 and name.isdecimal() else None


def skipped_path(folder: Location, shard: ShardName) -> Location:
    """Return the file that names the images that a shard is without."""
    return folder / f"skipped-{shard}.json"


def write_skipped(folder: Location, shard: ShardName, reasons: dict[int | str, str]) -> None:
    """Write which images of a shard could not be read, and why.

    Raises:
        OSError: If the folder cannot be written to.
    """
    text = json.dumps([{"id": i, "reason": reason} for i, reason in reasons.items()], indent=1, ensure_ascii=False)
    publish(skipped_path(folder, shard), [text.encode(errors="replace") + b"\n"])


def read_skipped(path: Location) -> dict[int | str, str]:
    """Return what ``write_skipped`` wrote; StoreError if the file is damaged."""
    try:
        return {entry["id"]: entry["reason"] for entry in read_json(path)}
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path} is damaged: {error}. Delete it; its images are then not tried again") from None
