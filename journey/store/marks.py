"""Which files of a store were found to be what was written, so that other processes need not hash them again.

``.verified.json`` holds inode, time of the last change of its status and size of each shard when its checksum was found
right. A file that was changed, replaced or copied has others, and is hashed again. What a disk does to bytes that lie
on it is found by ``journey inspect``, which hashes all.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import NamedTuple

from journey.files.paths import Location
from journey.files.publish import publish

_NAME = ".verified.json"


class Mark(NamedTuple):
    """A file as it was."""

    inode: int
    changed: int
    size: int


def mark_of(path: Path) -> Mark:
    """Return the mark of a file; FileNotFoundError if there is none."""
    state = path.stat()
    return Mark(state.st_ino, state.st_ctime_ns, state.st_size)  # unlike st_mtime, nobody sets it


class Marks:
    """The files of a folder that were verified.

    Args:
        folder: The folder; of an object store marks are those of local copies, and are not kept.
    """

    def __init__(self, folder: Location) -> None:
        self._path = folder / _NAME if isinstance(folder, Path) else None
        self._known: dict[str, Mark] | None = None if self._path else {}
        self._changed = False

    def holds(self, name: str, mark: Mark) -> bool:
        """Whether a file was verified, and is as it was then."""
        return self._loaded().get(name) == mark

    def add(self, name: str, mark: Mark) -> None:
        """Note that a file was verified."""
        self._loaded()[name] = mark
        self._changed = True

    def keep(self) -> None:
        """Write the marks, if there are new ones and the folder lets us; nothing is lost if it does not."""
        if self._changed and self._path is not None:
            with contextlib.suppress(OSError):
                publish(self._path, [json.dumps(self._loaded(), separators=(",", ":")).encode()])
            self._changed = False

    def forget(self) -> None:
        """Forget all marks."""
        self._known = {}

    def _loaded(self) -> dict[str, Mark]:
        if self._known is None:
            self._known = {}
            assert self._path is not None
            with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):  # then all is hashed again
                self._known = {name: Mark(*mark) for name, mark in json.loads(self._path.read_bytes()).items()}
        return self._known
