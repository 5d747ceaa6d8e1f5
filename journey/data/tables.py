"""Parquet files, opened by pyarrow where somebody uses them."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def open_parquet(path: Path) -> Any:
    """Open a parquet file.

    Args:
        path: The file; mapped into memory, so that processes do not share a position in it.

    Returns:
        A ``pyarrow.parquet.ParquetFile``.

    Raises:
        ImportError: If pyarrow is not installed.
        ValueError: If the file is damaged or no parquet.
    """
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ImportError(f'{path} is read with pyarrow; pip install "journey-attribution[data]"') from error
    try:
        return ParquetFile(path, memory_map=True)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as parquet: {error}; write it again") from error


def read_table(path: Path, columns: list[str] | None = None) -> Any:
    """Read a parquet file, or some of its columns, as a ``pyarrow.Table``; errors as ``open_parquet``."""
    file = open_parquet(path)
    try:
        return file.read(columns=columns, use_threads=False)  # threads would not survive a fork
    except OSError as error:
        raise ValueError(f"{path} cannot be read as parquet: {error}; write it again") from error
