"""Objects of an object store, through fsspec: read, written and listed whole, with one error for each way to fail.

An object is written in one request, and is there whole or not at all. Nothing is renamed, locked or synced. What fsspec
remembers of listings is not believed: other processes write, too.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from upath import UPath


def read_object(path: UPath, *, fresh: bool = True) -> bytes:
    """Return the content of an object.

    Args:
        path: Its name.
        fresh: Let no size count that fsspec remembers. An object that never changes needs no second request for it.

    Returns:
        Its bytes.

    Raises:
        FileNotFoundError: If there is no such object.
        OSError: If there is no such bucket, or it cannot be read.
    """
    system = _system(path)
    with _explained(path, "read"):
        if fresh:
            system.invalidate_cache(path.path)
        content: bytes = system.cat_file(path.path)
    return content


def write_object(path: UPath, content: bytes, *, exclusive: bool) -> None:
    """Write an object, whole or not at all.

    Args:
        path: Its name.
        content: Its bytes.
        exclusive: Refuse to replace one. Stores that do not know conditional writes are only asked before.

    Raises:
        FileExistsError: If ``exclusive`` and there is one.
        OSError: If there is no such bucket, or it cannot be written to.
    """
    with _explained(path, "write"):
        if exclusive:
            _create(path, content)
        else:
            _system(path).pipe_file(path.path, content)


def _create(path: UPath, content: bytes) -> None:
    there = FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    if object_exists(path):
        raise there
    try:
        _system(path).pipe_file(path.path, content, mode="create")
    except (OSError, NotImplementedError, ValueError) as error:
        if isinstance(error, PermissionError):
            raise
        # Somebody else was first, or this was a second attempt after the answer to the first one was lost.
        if object_exists(path):
            raise there from error
        if isinstance(error, OSError) and error.errno != errno.ENOSYS:
            raise
        _system(path).pipe_file(path.path, content)  # a store that knows no conditional writes


def object_exists(path: UPath) -> bool:
    """Tell whether there is an object, now.

    Returns:
        Whether there is.

    Raises:
        OSError: If there is no such bucket, or the store does not tell.
    """
    system = _system(path)
    with _explained(path, "read"):
        system.invalidate_cache(path.path)
        try:
            return bool(system.info(path.path)["type"] == "file")
        except FileNotFoundError:
            _require_bucket(path)
            return False


def object_names(folder: UPath) -> set[str]:
    """Return the names below a prefix, now, up to the next slash; none if there are none.

    Raises:
        OSError: If there is no such bucket, or it cannot be listed.
    """
    system, key = _system(folder), folder.path.rstrip("/")
    with _explained(folder, "list"):
        system.invalidate_cache(key)
        try:
            found = system.ls(key, detail=False)
        except FileNotFoundError:
            _require_bucket(folder)
            return set()
    return {name.rstrip("/")[len(key) + 1 :] for name in found if name.startswith(f"{key}/")} - {""}


def delete_object(path: UPath) -> None:
    """Delete an object if it is there.

    Raises:
        OSError: If it cannot be deleted.
    """
    with _explained(path, "delete"), contextlib.suppress(FileNotFoundError):
        _system(path).rm_file(path.path)  # ``rm`` takes brackets in names for patterns


def _system(path: UPath) -> Any:
    """The file system of a path; unlike ``path.fs`` one of this process, also after a fork."""
    import fsspec

    return fsspec.filesystem(path.protocol, **path.storage_options)


@contextlib.contextmanager
def _explained(path: UPath, deed: str) -> Iterator[None]:
    """Turn what clients of many kinds raise into errors that name the path and say what to do."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.filename == str(path):
            raise  # explained already
        raise _explanation(path, deed, error) from error


def _explanation(path: UPath, deed: str, error: Exception) -> OSError:
    if isinstance(error, FileNotFoundError):
        _require_bucket(path)
        return FileNotFoundError(errno.ENOENT, "there is no such object", str(path))
    if isinstance(error, PermissionError):
        message = (
            f"the store does not let these credentials {deed} here ({error}); allow them to, or give other ones, or "
            "another path; what is finished is kept"
        )
        return PermissionError(errno.EACCES, message, str(path))
    message = (
        f"cannot {deed} here ({type(error).__name__}: {error}); check network, endpoint and credentials, then run the "
        "same again: what is finished is kept"
    )
    kind = OSError if isinstance(error, OSError) and not isinstance(error, TimeoutError) else ConnectionError
    return kind(getattr(error, "errno", None) or errno.EIO, message, str(path))


def _require_bucket(path: UPath) -> None:
    """Tell a bucket that is not there from an object that is not."""
    if not path.drive:
        return
    try:
        _system(path).info(path.drive)
    except FileNotFoundError as error:
        # No FileNotFoundError: that would look as if the store were only to be begun.
        message = f"there is no bucket {path.drive}; make it, or give another path"
        raise OSError(errno.ENXIO, message, str(path)) from error
    except Exception:  # may be asked for nothing but objects: then the first error tells
        return
