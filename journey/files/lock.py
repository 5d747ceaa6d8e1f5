"""One process at a time in a folder."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from journey.errors import naming_folder

NAME = ".lock"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Wait until no other process is in the folder, and keep others out; a process that dies lets the next one in.

    On a file system without locks nobody waits: what is done inside must then merely be done twice.

    Args:
        folder: An existing folder; gets a file ``.lock``.

    Raises:
        OSError: If the folder cannot be written to.
    """
    with naming_folder(folder):
        file = (folder / NAME).open("a")
    with file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
