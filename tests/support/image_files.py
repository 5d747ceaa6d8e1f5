"""Small image files, and the forms in which people keep many of them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image


def encoded(grey: int, size: tuple[int, int] = (4, 4), suffix: str = "PNG") -> bytes:
    """An image file of one grey; ``size`` is width and height."""
    file = io.BytesIO()
    Image.new("RGB", size, (grey, grey, grey)).save(file, format=suffix)
    return file.getvalue()


def grey_of(item: Any) -> int:
    """The grey of an item that came of such a file."""
    image = item["image"] if isinstance(item, dict) else item
    lowest, highest = image.convert("L").getextrema()
    assert lowest == highest
    return int(lowest)


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """A tar file of these members, in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def write_parquet(path: Path, columns: dict[str, list[Any]], rows_per_group: int = 1000) -> Path:
    """A parquet file of these columns."""
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=rows_per_group)
    return path
