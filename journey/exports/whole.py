"""A file that another library writes, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex

from journey.errors import naming_folder
from journey.files.publish import sync_folder


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a name to write to, which becomes ``path`` when all was written, and is deleted after an error.

    Args:
        path: Final name. The folder must exist.

    Yields:
        The name to write to, in the same folder.

    Raises:
        FileNotFoundError: If the folder is not there.
        OSError: If the folder does not allow it.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path must be a file in a folder that is there, got {path}")
    with naming_folder(path.parent):
        temporary = path.with_name(f".{token_hex(8)}-{path.name}")
        try:
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)
