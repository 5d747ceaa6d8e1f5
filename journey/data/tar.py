"""Shards of the form that the library ``webdataset`` reads: tar files whose members of one key are one image."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from journey.data.ids import IdOf
from journey.data.items import CAPTION_KEYS, IMAGE_KEYS, LABEL_KEYS, captions_of, label_of
from journey.data.listing import image_suffixes
from journey.data.picture import Form
from journey.data.stream import Failed, Stream, id_in

# A key is all before the first dot of the name, with its folders; hidden files have none.
_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)
_BLOCK = 512  # bytes; an archive ends with two blocks of zeros


class TarShards(Stream):
    """Tar files as a stream of images, read from front to back.

    Members of one key (``a.jpg``, ``a.txt``, ``a.json``) follow each other and make one item: the image, told by its
    suffix; ``.txt`` or ``.caption`` is its caption, ``.cls`` its label, and ``.json`` an object with further keys.
    The id is the key, ``__key__``. Nothing is unpickled, and members of other suffixes are left alone.

    A shard that ends in the middle gives what it holds and then a ``Failed`` that names it.

    Args:
        paths: The shards.
        form: What pictures are brought to.
        id_of: A key of the item in place of ``__key__``, or a function of the item, for which it is decoded.
    """

    many_readers = True

    def __init__(self, paths: Sequence[Path], form: Form, id_of: IdOf | None = None) -> None:
        super().__init__("__key__" if id_of is None else id_of)
        self.paths = list(paths)
        self._form = form

    def _deal(self, rank: int, world_size: int) -> None:
        if len(self.paths) >= world_size:
            self.paths = self.paths[rank::world_size]
        else:
            super()._deal(rank, world_size)

    def _read(self) -> Iterator[tuple[Path, str, dict[str, bytes]] | Failed]:
        for path in self.paths:
            last = "its first image"
            try:
                for key, files in group_members(read_members(path)):
                    last = repr(key)
                    yield path, key, files
            except (ValueError, OSError, tarfile.TarError) as error:
                yield Failed(
                    str(path),
                    ValueError(f"{path} is damaged after {last}: {error}; make the shard again"),
                )

    def _open(self, read: tuple[Path, str, dict[str, bytes]], position: int) -> tuple[Any, Callable[[], Any]] | Failed:
        path, key, files = read
        what = f"{key} in {path}"
        try:
            told = {**_told(files, what), "__key__": key}
            image = _image(files, what)
            load = partial(self._load, told, image, what)
            return id_in(load() if callable(self._id_of) else told, self._id_of, what), load
        except (ValueError, TypeError, RecursionError) as error:
            return Failed(key, error)

    def _load(self, told: dict[str, Any], image: bytes, what: str) -> dict[str, Any]:
        return {**told, "image": self._form.read(image, what)}


def read_members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Read the files in a tar file, from front to back.

    Args:
        path: The tar file, not compressed.

    Yields:
        The name and the content of each.

    Raises:
        tarfile.ReadError: If it is no such file, or ends in the middle.
    """
    with tarfile.open(path, "r|") as tar:
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # else it remembers all of them
            file = tar.extractfile(member) if member.isreg() else None
            if file is None:
                continue
            try:
                data = file.read()
            except tarfile.ReadError as error:
                raise tarfile.ReadError(f"{member.name} is cut off") from error
            yield member.name, data
        end = tar.offset
    # tarfile takes a file that was cut off between two members, or a damaged header, for the end.
    with path.open("rb") as raw:
        raw.seek(end)
        if raw.read(_BLOCK) != bytes(_BLOCK):
            raise tarfile.ReadError(f"the archive breaks off at byte {end}")
        while block := raw.read(1 << 20):
            if block.count(0) < len(block):
                raise tarfile.ReadError("there is more after the mark of its end, such as another archive")


def group_members(members: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Put the members of one key together, which follow each other.

    Args:
        members: Names and contents.

    Yields:
        The key, and the contents by the rest of their names, in lower case. Names without a dot and hidden files are
        left out.

    Raises:
        ValueError: If a key comes again after another, or a name twice.
    """
    done: set[str] = set()
    key: str | None = None
    files: dict[str, bytes] = {}
    for name, data in members:
        found = _NAME.fullmatch(name)
        if found is None or name.startswith("__MACOSX/"):
            continue
        if found[1] != key:
            if key is not None:
                yield key, files
                done.add(key)
            key, files = found[1], {}
            if key in done:
                raise ValueError(f"the members of {key!r} do not follow each other, or two images have this key")
        suffix = found[2].lower()
        if suffix in files:
            raise ValueError(f"{name} is there twice")
        files[suffix] = data
    if key is not None:
        yield key, files


def _image(files: dict[str, bytes], what: str) -> bytes:
    suffixes = image_suffixes()
    images = [name for name in files if f".{name.rpartition('.')[2]}" in suffixes]
    plain = [name for name in images if "." not in name]  # beside a.jpg, a.mask.png is something else
    if len(plain or images) != 1:
        raise ValueError(
            f"{what} must have one image, told by its suffix, got {len(plain or images)} among {', '.join(files)}"
        )
    return files[(plain or images)[0]]


def _told(files: dict[str, bytes], what: str) -> dict[str, Any]:
    """What the other members of an image tell; two that contradict each other are refused."""
    told: dict[str, Any] = {}
    if "json" in files:
        told = json.loads(files["json"])
        if not isinstance(told, dict):
            raise ValueError(f"{what}: its .json must be an object, got {type(told).__name__}")
        told = {key: value for key, value in told.items() if value is not None and key not in IMAGE_KEYS}
    for suffix in ("txt", "caption"):
        if suffix in files:
            caption = files[suffix].decode("utf-8-sig").strip()
            if not any(key in told for key in CAPTION_KEYS):
                told["text"] = caption
            elif caption not in (known := [text.strip() for text in captions_of(told, what)]):
                raise ValueError(
                    f"{what}: its .{suffix} tells the caption {caption!r}, and others {known[0]!r}; keep one"
                )
    if "cls" in files:
        label = int(files["cls"])
        if not any(key in told for key in LABEL_KEYS):
            told["label"] = label
        elif label != (other := label_of(told, what)):
            raise ValueError(f"{what}: its .cls tells the label {label}, and its .json {other}; keep one")
    return told
