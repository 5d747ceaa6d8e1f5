"""Where files lie: in a folder, or on an object store such as ``s3://bucket/folder``."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from typing_extensions import TypeIs

from journey.files.objects import delete_object, object_exists, object_names, read_object

if TYPE_CHECKING:
    from upath import UPath

# A place as callers give it, and as ``as_path`` returns it.
GivenPath: TypeAlias = "str | os.PathLike[str] | UPath"
Location: TypeAlias = "Path | UPath"

_STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory")


def as_path(given: GivenPath) -> Location:
    """Return where something lies.

    Args:
        given: A path; ``file:///...``; an address on an object store (``s3://``, ``gs://``, ``az://``, ``memory://``);
            or a ``upath.UPath``, which may carry storage options such as an endpoint.

    Returns:
        A ``Path``, or a ``UPath`` on an object store.

    Raises:
        TypeError: If it is no path.
        ValueError: If it is on no known object store, names no bucket, or holds a password.
        ImportError: If a package is missing that reads such addresses; names it.
    """
    if not is_path(given):
        raise TypeError(f"a path must be a string, a Path or a UPath, got {given!r:.60} ({type(given).__name__})")
    text = os.fspath(given) if isinstance(given, str | os.PathLike) else str(given)
    protocol, separator, rest = text.partition("://")
    if isinstance(given, os.PathLike) or not separator:
        return Path(text).absolute()  # for good, wherever the process goes
    if ":" in rest.partition("@")[0].partition("/")[0] and "@" in rest:
        raise ValueError(f"a {protocol}:// path must not hold a password; give it as your store's client expects it")
    if protocol == "file":
        if not rest.startswith("/"):
            raise ValueError(f"a file:// path must be absolute, such as file:///data/features, got {text}")
        return Path(rest)
    if protocol not in _STORES:
        raise ValueError(f"{text} is on no known object store; give a folder, or one of {'://, '.join(_STORES)}://")
    if not rest.strip("/"):
        raise ValueError(f"{text} must name a bucket, such as {protocol}://bucket/features")
    try:
        import fsspec
        from upath import UPath
    except ImportError as error:
        raise ImportError(f'{text} needs {error.name}: pip install "journey-attribution[cloud]"') from error
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        raise ImportError(f"{text} needs another package: {error}") from error
    return UPath(given)


def is_path(given: Any) -> TypeIs[GivenPath]:
    """Tell whether something is a path that ``as_path`` takes."""
    return isinstance(given, str | os.PathLike) or hasattr(given, "storage_options")


def exists(path: Location) -> bool:
    """Tell whether there is a file; OSError if a store does not tell."""
    return path.exists() if isinstance(path, Path) else object_exists(path)


def names_in(folder: Location) -> set[str]:
    """List a folder once, instead of looking for each of its files.

    Returns:
        The names of all that is in it; on an object store none if it is not there.

    Raises:
        OSError: If it cannot be listed, or is not there.
    """
    return set(os.listdir(folder)) if isinstance(folder, Path) else object_names(folder)  # noqa: PTH208


def read_bytes(path: Location) -> bytes:
    """Return the content of a file.

    Raises:
        FileNotFoundError: If there is none.
        OSError: If it cannot be read.
    """
    return path.read_bytes() if isinstance(path, Path) else read_object(path)


def make_folder(folder: Location) -> None:
    """Make a folder if it is not there; object stores need none."""
    if isinstance(folder, Path):
        folder.mkdir(parents=True, exist_ok=True)


def remove_folder(folder: Location) -> None:
    """Delete a folder with all files that are in it."""
    if isinstance(folder, Path):
        shutil.rmtree(folder)
    else:
        for name in object_names(folder):
            delete_object(folder / name)
