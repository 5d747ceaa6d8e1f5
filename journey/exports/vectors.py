"""Features for engines of nearest neighbours, whose inner product with a solved query is the score."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from torch import Tensor

from journey.data.ids import check_id
from journey.exports.packages import optional
from journey.exports.whole import whole_file
from journey.files.publish import publish

if TYPE_CHECKING:
    import pyarrow

Array: TypeAlias = np.ndarray[Any, Any]
# Ids, all integers or all strings, and as many rows, float32. [n], [n, proj_dim]
Block: TypeAlias = "tuple[Sequence[int | str] | Array, Tensor | Array]"

_LARGEST_HALF = 65504.0  # of float16


def write_faiss(
    path: str | Path, blocks: Iterable[Block], proj_dim: int, *, quantizer: Literal["8bit", "float16"] = "8bit"
) -> None:
    """Write an index of FAISS whose inner product with a solved query is the score; its negative finds opponents.

    Eight bits span, in each dimension, the range from the smallest to the largest number of all rows: narrower ranges,
    as FAISS learns them from a part of the rows, cut the largest rows off, and with them the strongest scores. Integer
    ids are those of the index. String ids are in a list beside it, ``PATH.ids.json``, whose positions are the index's.

    Args:
        path: The index, as ``faiss.read_index`` reads it. The folder must exist.
        blocks: Ids and rows, block after block. For ``"8bit"`` they are gone through twice: a list, or an object whose
            ``__iter__`` begins anew.
        proj_dim: Numbers per row.
        quantizer: How rows are kept: one byte a number, or two, which lose 30 times less.

    Raises:
        ImportError: If FAISS is not installed.
        ValueError: If there is no row, a row is not finite or has another length, ids are of two kinds or come
            twice, or blocks can be gone through only once.
        TypeError: If an id is neither an integer nor a string.
        OSError: If a file cannot be written.
    """
    faiss = optional("faiss")
    if quantizer not in ("8bit", "float16"):
        raise ValueError(f'quantizer must be "8bit" or "float16", got {quantizer!r}')
    kind = faiss.ScalarQuantizer.QT_8bit if quantizer == "8bit" else faiss.ScalarQuantizer.QT_fp16
    inner = faiss.IndexScalarQuantizer(proj_dim, kind, faiss.METRIC_INNER_PRODUCT)
    if quantizer == "8bit":
        if iter(blocks) is blocks:
            raise ValueError(
                "blocks must be a list, or an object whose __iter__ begins anew, since 8bit goes through them twice; "
                'got an iterator: give quantizer="float16", or make a list'
            )
        inner.train(_ranges(blocks, proj_dim))
    index = faiss.IndexIDMap2(inner)
    names: list[str] = []
    seen: set[int | str] = set()
    for ids, rows in _checked(blocks, proj_dim):
        twice = seen.intersection(ids)
        if twice or len(set(ids)) < len(ids):
            raise ValueError(f"blocks must have every id once, got {next(iter(twice), ids[0])!r} again")
        seen.update(ids)
        if quantizer == "float16" and np.abs(rows).max() > _LARGEST_HALF:
            raise ValueError(f"rows must be at most {_LARGEST_HALF:g} in magnitude for float16, got a larger one")
        positions = range(len(names), len(names) + len(ids)) if isinstance(ids[0], str) else ids
        index.add_with_ids(rows, np.array(positions, dtype=np.int64))
        if isinstance(ids[0], str):
            names += ids
        elif -1 in ids:
            raise ValueError("ids must not be -1 in an index of FAISS, where it stands for nothing")
    target = Path(path)
    sidecar = target.with_name(f"{target.name}.ids.json")
    with whole_file(target) as temporary:
        faiss.write_index(index, str(temporary))
        written, least = temporary.stat().st_size, index.ntotal * (inner.code_size + 8)
        if written < least:  # FAISS passes over what the system says of a full disk
            raise OSError(errno.ENOSPC, f"the index has {written:,} bytes of at least {least:,}", str(target))
        # At the end, so that a failure leaves an earlier index with the list that belongs to it.
        if names:
            publish(sidecar, [json.dumps(names, ensure_ascii=False).encode()])
        else:
            sidecar.unlink(missing_ok=True)


def write_parquet(path: str | Path, blocks: Iterable[Block], proj_dim: int) -> None:
    """Write features as a Parquet file with the columns ``id`` and ``row``, a list of float32; each block a row group.

    Args:
        path: The file. The folder must exist.
        blocks: Ids and rows, block after block.
        proj_dim: Numbers per row.

    Raises:
        ImportError: If pyarrow is not installed.
        ValueError: If there is no row, a row is not finite or has another length, or ids are of two kinds.
        TypeError: If an id is neither an integer nor a string.
        OSError: If the file cannot be written.
    """
    optional("pyarrow")
    parquet = optional("pyarrow.parquet")
    batches = _batches(blocks, proj_dim)
    first = next(batches)
    with whole_file(Path(path)) as temporary, parquet.ParquetWriter(temporary, first.schema) as writer:
        writer.write_batch(first)
        for batch in batches:
            writer.write_batch(batch)


def write_lance(path: str | Path, blocks: Iterable[Block], proj_dim: int) -> None:
    """Write features as a dataset of Lance with the columns ``id`` and ``row``, a vector of float32.

    Args:
        path: The folder; it must not exist.
        blocks: Ids and rows, block after block.
        proj_dim: Numbers per row.

    Raises:
        ImportError: If Lance or pyarrow is not installed.
        ValueError: If there is no row, a row is not finite or has another length, or ids are of two kinds.
        TypeError: If an id is neither an integer nor a string.
        OSError: If the folder exists or cannot be written to.
    """
    lance, arrow = optional("lance", "pip install pylance"), optional("pyarrow")
    batches = _batches(blocks, proj_dim)
    first = next(batches)

    def every() -> Iterator[pyarrow.RecordBatch]:
        yield first
        yield from batches

    lance.write_dataset(arrow.RecordBatchReader.from_batches(first.schema, every()), str(path), mode="create")


def _ranges(blocks: Iterable[Block], proj_dim: int) -> Array:
    """The smallest and the largest number of each dimension, as two rows to learn ranges from. [2, proj_dim]"""
    low = np.full(proj_dim, np.inf, np.float32)
    high = np.full(proj_dim, -np.inf, np.float32)
    for _, rows in _checked(blocks, proj_dim):
        np.minimum(low, rows.min(0), out=low)
        np.maximum(high, rows.max(0), out=high)
    return np.stack([low, high])


def _batches(blocks: Iterable[Block], proj_dim: int) -> Iterator[pyarrow.RecordBatch]:
    """Blocks as batches of Arrow, of one schema."""
    arrow = optional("pyarrow")
    for ids, rows in _checked(blocks, proj_dim):
        vectors = arrow.FixedSizeListArray.from_arrays(arrow.array(rows.ravel()), proj_dim)
        kind = arrow.string() if isinstance(ids[0], str) else arrow.int64()
        yield arrow.RecordBatch.from_arrays([arrow.array(ids, kind), vectors], ["id", "row"])


def _checked(blocks: Iterable[Block], proj_dim: int) -> Iterator[tuple[list[Any], Array]]:
    """Blocks that have rows, checked; at least one."""
    kind: type | None = None
    for given, values in blocks:
        ids = [check_id(i, "ids") for i in (given.tolist() if isinstance(given, np.ndarray) else given)]
        rows = np.ascontiguousarray(values.numpy() if isinstance(values, Tensor) else values, dtype=np.float32)
        if rows.shape != (len(ids), proj_dim):
            raise ValueError(f"rows must be [n, proj_dim] = [{len(ids)}, {proj_dim}], got {list(rows.shape)}")
        if not len(ids):
            continue
        if not np.isfinite(rows).all():
            raise ValueError(f"rows must be finite, got NaN or infinity in a block that begins with the id {ids[0]!r}")
        kind = type(ids[0]) if kind is None else kind
        odd = next((i for i in ids if type(i) is not kind), None)
        if odd is not None:
            raise ValueError(f"ids must be all integers or all strings, got {odd!r} among others")
        yield ids, rows
    if kind is None:
        raise ValueError("blocks must have a row or more, got none")
