"""Tables: blocks of columns for pandas, for Parquet and for the library ``datasets``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from journey.exports.packages import optional
from journey.exports.whole import whole_file

if TYPE_CHECKING:
    import datasets
    import pandas
    import pyarrow

# Rows of a table: each column by its name, all of one length.
Columns: TypeAlias = Mapping[str, "np.ndarray[Any, Any]"]


def to_pandas(blocks: Iterable[Columns]) -> pandas.DataFrame:
    """Return all blocks as one table of pandas.

    Args:
        blocks: One or more, of the same columns.

    Returns:
        The table.

    Raises:
        ImportError: If pandas is not installed.
    """
    library = optional("pandas")
    parts = list(blocks)
    return library.DataFrame({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def write_table(path: Path, blocks: Iterable[Columns]) -> None:
    """Write blocks as a Parquet file, whole or not at all; each is a row group.

    Args:
        path: The file.
        blocks: One or more, of the same columns.

    Raises:
        ImportError: If pyarrow is not installed.
        OSError: If the file cannot be written.
    """
    optional("pyarrow")
    parquet = optional("pyarrow.parquet")
    batches = map(_batch, blocks)
    first = next(batches)
    with whole_file(path) as temporary, parquet.ParquetWriter(temporary, first.schema) as writer:
        writer.write_batch(first)
        for batch in batches:
            writer.write_batch(batch)


def to_datasets(blocks: Iterable[Columns]) -> datasets.Dataset:
    """Return all blocks as a dataset of the library ``datasets``.

    Args:
        blocks: One or more, of the same columns.

    Returns:
        The dataset.

    Raises:
        ImportError: If datasets is not installed.
    """
    library, arrow = optional("datasets"), optional("pyarrow")
    batches = list(map(_batch, blocks))
    # Named by its content: the same in every process, and without the pickle of all that datasets makes by default.
    digest = hashlib.sha256(repr(batches[0].schema.names).encode())
    for batch in batches:
        digest.update(batch.serialize())
    table = library.table.InMemoryTable(arrow.Table.from_batches(batches))
    return library.Dataset(table, fingerprint=digest.hexdigest()[:16])


def _batch(columns: Columns) -> pyarrow.RecordBatch:
    arrow = optional("pyarrow")
    return arrow.RecordBatch.from_pydict({name: arrow.array(values) for name, values in columns.items()})
