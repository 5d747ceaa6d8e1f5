"""Put a file in its place whole or not at all, whatever happens to the process.

The bytes go to a temporary name in the same folder, reach the disk (fsync), and take their final name in one
step; then the folder itself is synced. Under its final name a file is therefore always complete, after ``kill -9``
or a power cut at any moment, and with any number of processes writing at once.

A dead process leaves its temporary file behind. The writer holds a lock (flock) on it, which the system drops when the
process ends, however it ends: a temporary file that can be locked has no living writer and may be deleted.

On an object store a single request does all this (``journey.files.objects``), and there are no temporary files.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from journey.errors import naming_folder
from journey.files.copies import forget_copy
from journey.files.objects import delete_object, write_object
from journey.files.paths import Location

_PREFIX = ".journey-"
_SUFFIX = ".tmp"
_ATTEMPTS = 8


def publish(path: Location, chunks: Sequence[bytes | memoryview], *, exclusive: bool = False) -> None:
    """Write a file atomically and durably.

    Args:
        path: Final name. The folder must exist, on an object store the bucket.
        chunks: The content, in order.
        exclusive: Refuse to replace an existing file, also one that another process creates at the same moment.

    Raises:
        FileExistsError: If ``exclusive`` and the file exists.
        OSError: If the disk or the permissions do not allow it; names the folder. Nothing is left under the final
            name, except when only the last step (syncing the folder) failed: then the file is there and complete.
    """
    if not isinstance(path, Path):
        write_object(path, b"".join(chunks), exclusive=exclusive)
        forget_copy(path)
        return
    with naming_folder(path.parent):
        _publish(path, chunks, exclusive)


def _publish(path: Path, chunks: Sequence[bytes | memoryview], exclusive: bool) -> None:
    for _ in range(_ATTEMPTS):
        temporary = path.with_name(f"{_PREFIX}{os.getpid()}-{secrets.token_hex(8)}{_SUFFIX}")
        try:
            with temporary.open("xb") as file:
                with contextlib.suppress(OSError):  # no locks on this filesystem: then nobody deletes leftovers either
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for chunk in chunks:
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
                try:
                    _rename(temporary, path, exclusive)
                except FileNotFoundError:
                    # The temporary file was taken for a leftover: in the instant before it was locked, or by
                    # a machine that shares the folder but not the locks. Write it again.
                    continue
        finally:
            _delete(temporary)
        sync_folder(path.parent)
        return
    raise OSError(errno.ENOENT, f"the temporary file was deleted {_ATTEMPTS} times while it was written", str(path))


def is_temporary(name: str) -> bool:
    """Tell whether a file name is one that ``publish`` uses while it writes."""
    return name.startswith(_PREFIX) and name.endswith(_SUFFIX)


def remove_leftovers(folder: Location) -> None:
    """Delete the temporary files of dead processes; those of living writers, and all where locks fail, stay."""
    if not isinstance(folder, Path):
        return
    for entry in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
        # "r+b": network filesystems grant an exclusive lock only on a file open for writing.
        with contextlib.suppress(OSError), entry.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            entry.unlink(missing_ok=True)


def check_writable(folder: Location) -> None:
    """Create and delete a temporary file: the one test of write access that also holds for full or read-only disks."""
    if not isinstance(folder, Path):
        probe = folder / f"{_PREFIX}probe{_SUFFIX}"  # one name: where nothing may be deleted, one object stays
        write_object(probe, b"", exclusive=False)
        with contextlib.suppress(OSError):
            delete_object(probe)
        return
    temporary = folder / f"{_PREFIX}{os.getpid()}-{secrets.token_hex(8)}{_SUFFIX}"
    try:
        temporary.touch(exist_ok=False)
    finally:
        _delete(temporary)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, where the filesystem knows how to."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network filesystems cannot sync a folder
            raise
    finally:
        os.close(descriptor)


def _rename(temporary: Path, path: Path, exclusive: bool) -> None:
    """Give the temporary file its final name in one step."""
    if exclusive:
        try:
            os.link(temporary, path)  # unlike a rename, never replaces
            return
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                raise
        # No hard links on this filesystem. The check below can miss a file created in the same instant.
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    temporary.replace(path)


def _delete(temporary: Path) -> None:
    """Delete a temporary file if it is there; a failure must not hide the error that led here."""
    with contextlib.suppress(OSError):
        temporary.unlink()
