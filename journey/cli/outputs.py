"""Where a command writes, refused before the work and not after."""

from __future__ import annotations

from pathlib import Path

from journey.errors import naming_folder
from journey.files.publish import check_writable


def prepare_folder(out: Path) -> None:
    """Make an output folder, or refuse it before the work and not after.

    Raises:
        FileExistsError: If it is a file.
        OSError: If it cannot be made or written to.
    """
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"out must be a folder, got {out}, which is a file")
    with naming_folder(out):
        out.mkdir(parents=True, exist_ok=True)
        check_writable(out)


def prepare_file(path: Path | None, name: str) -> None:
    """Refuse an output file whose folder is not there, before the work and not after.

    Raises:
        FileNotFoundError: If its folder is not there.
        IsADirectoryError: If it is a folder.
    """
    if path is not None and path.is_dir():
        raise IsADirectoryError(f"{name} must be a file, got {path}, which is a folder")
    if path is not None and not path.parent.is_dir():
        raise FileNotFoundError(f"{name} must be a file in a folder that is there, got {path}")
