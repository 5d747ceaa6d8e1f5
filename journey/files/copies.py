"""Local copies of objects, for what must be mapped into memory; a file that is local is its own copy."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from journey.files.objects import read_object
from journey.files.paths import Location

if TYPE_CHECKING:
    from upath import UPath


def kept_copy(path: Location) -> Path:
    """Return a local file with the content of one that never changes; objects are fetched once per process.

    Copies lie in a folder for temporary files (``TMPDIR``), and go when the process ends.

    Raises:
        FileNotFoundError: If there is none.
        OSError: If it cannot be read, or the copy not be written.
    """
    if isinstance(path, Path):
        return path
    _, copies = _of_process(os.getpid())
    if path not in copies:
        copies[path] = _fetch(path, fresh=False)
    return copies[path]


def forget_copy(path: Location) -> None:
    """Fetch an object anew when it is asked for next."""
    if not isinstance(path, Path) and (copy := _of_process(os.getpid())[1].pop(path, None)) is not None:
        copy.unlink(missing_ok=True)


@contextlib.contextmanager
def local_copy(path: Location) -> Iterator[Path]:
    """A local file with the content of a file as it is now, for as long as the context lasts.

    Yields:
        The file.

    Raises:
        FileNotFoundError: If there is none.
        OSError: If it cannot be read, or the copy not be written.
    """
    if isinstance(path, Path):
        yield path
        return
    copy = _fetch(path, fresh=True)
    try:
        yield copy
    finally:
        copy.unlink(missing_ok=True)


def _fetch(path: UPath, *, fresh: bool) -> Path:
    content = read_object(path, fresh=fresh)
    folder, _ = _of_process(os.getpid())
    try:
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            file.write(content)
    except OSError as error:
        message = f"cannot keep a copy of {path} here ({error.strerror}); free space or set TMPDIR to another folder"
        raise OSError(error.errno, message, str(folder)) from error
    return Path(file.name)


@cache
def _of_process(pid: int) -> tuple[Path, dict[UPath, Path]]:
    """The folder of a process and the copies in it; a fork has its own."""
    folder = Path(tempfile.mkdtemp(prefix="journey-"))

    def clean() -> None:
        if os.getpid() == pid:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(clean)
    return folder, {}
