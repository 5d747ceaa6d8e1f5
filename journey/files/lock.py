"""One process at a time in a folder, or at a piece of work."""

from __future__ import annotations

import contextlib
import errno
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from journey.errors import naming_folder
from journey.files.paths import Location

NAME, _CLAIMS = ".lock", ".claims"


@contextlib.contextmanager
def locked(folder: Location) -> Iterator[None]:
    """Wait until no other process is in the folder, and keep others out; a process that dies lets the next one in.

    On a file system without locks, or an object store, nobody waits: what is done inside must then merely be done
    twice.

    Args:
        folder: An existing folder; gets a file ``.lock``.

    Raises:
        OSError: If the folder cannot be written to.
    """
    if not isinstance(folder, Path):
        yield
        return
    with naming_folder(folder):
        file = (folder / NAME).open("a")
    with file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Claims:
    """Which pieces of work in a folder this process has taken; one that dies gives back its own.

    Piece i is byte i of the file ``.claims``, which is locked and never written.

    Args:
        folder: An existing folder.

    Attributes:
        work: Whether there are locks. Where there are none, as on object stores, every piece can be taken by everybody.

    Raises:
        OSError: If the folder cannot be written to.
    """

    def __init__(self, folder: Location) -> None:
        self.work = isinstance(folder, Path)
        self._file: IO[str] | None = None
        if isinstance(folder, Path):
            with naming_folder(folder):
                self._file = (folder / _CLAIMS).open("a")

    def take(self, piece: int) -> bool:
        """Take a piece; False if another process has it."""
        if self._file is None:
            return True
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, piece)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            self.work = False
        return True

    def close(self) -> None:
        """Give back all pieces."""
        if self._file is not None:
            self._file.close()
