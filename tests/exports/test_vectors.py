"""Features in other engines: their inner products with a solved query are the scores."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow.parquet
import pytest
import torch

from journey.exports.vectors import write_faiss, write_lance, write_parquet

DIM, COUNT, K = 64, 3000, 10


def make_rows(spread: float = 1.0) -> np.ndarray:
    """Rows whose norms differ as widely as those of gradients, the largest last."""
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((COUNT, DIM)).astype(np.float32)
    return (rows * np.sort(np.exp(spread * generator.standard_normal((COUNT, 1))), 0)).astype(np.float32)


def in_blocks(ids: Any, rows: np.ndarray, size: int = 700) -> list[tuple[Any, Any]]:
    return [(ids[i : i + size], torch.from_numpy(rows[i : i + size])) for i in range(0, len(rows), size)]


def exact_top(queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return np.argsort(-(queries.astype(np.float64) @ rows.T.astype(np.float64)), 1)[:, :K]


def recall(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.mean([len(set(a) & set(b)) / K for a, b in zip(found.tolist(), expected.tolist(), strict=True)]))


QUERIES = np.random.default_rng(1).standard_normal((20, DIM)).astype(np.float32)


@pytest.mark.parametrize(("quantizer", "least", "most_off"), [("8bit", 0.95, 0.05), ("float16", 0.995, 0.002)])
def test_faiss_finds_the_top_of_the_exact_products(
    quantizer: Any, least: float, most_off: float, tmp_path: Path
) -> None:
    rows = make_rows()
    ids = np.random.default_rng(2).permutation(10**12 + np.arange(COUNT))
    write_faiss(tmp_path / "index.faiss", in_blocks(ids.tolist(), rows), DIM, quantizer=quantizer)
    assert [path.name for path in tmp_path.iterdir()] == ["index.faiss"]
    index = faiss.read_index(str(tmp_path / "index.faiss"))
    assert (index.ntotal, index.d, index.metric_type) == (COUNT, DIM, faiss.METRIC_INNER_PRODUCT)
    places = {i: n for n, i in enumerate(ids.tolist())}
    for sign in (1, -1):  # opponents are the nearest of the negative
        values, found = index.search(sign * QUERIES, K)
        columns = np.vectorize(places.get)(found)
        assert recall(columns, exact_top(sign * QUERIES, rows)) > least
        products = np.take_along_axis(sign * QUERIES @ rows.T, columns, 1)
        assert np.abs(values - products).max() < most_off * np.abs(products).max()


def test_ranges_of_all_rows_keep_the_largest_scores(tmp_path: Path) -> None:
    """Learnt from the first block alone, whose rows are the smallest, they would cut off all others."""
    rows = make_rows(2.0)
    write_faiss(tmp_path / "index.faiss", in_blocks(list(range(COUNT)), rows), DIM)
    _, found = faiss.read_index(str(tmp_path / "index.faiss")).search(QUERIES, K)
    narrow = faiss.IndexScalarQuantizer(DIM, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
    narrow.train(rows[:700])
    narrow.add(rows)
    expected = exact_top(QUERIES, rows)
    assert recall(found, expected) > 0.95
    assert recall(narrow.search(QUERIES, K)[1], expected) < 0.7


def test_string_ids_are_in_a_list_beside_the_index(tmp_path: Path) -> None:
    rows = make_rows()
    ids = [f"fotos/\u00e9t\u00e9 {i}.png" for i in range(COUNT)]
    write_faiss(tmp_path / "index.faiss", in_blocks(ids, rows), DIM)
    names = json.loads((tmp_path / "index.faiss.ids.json").read_text(encoding="utf-8"))
    assert names == ids
    _, found = faiss.read_index(str(tmp_path / "index.faiss")).search(QUERIES, K)
    assert recall(found, exact_top(QUERIES, rows)) > 0.95
    write_faiss(tmp_path / "index.faiss", in_blocks(list(range(COUNT)), rows), DIM)
    assert not (tmp_path / "index.faiss.ids.json").exists()


def test_a_failure_leaves_an_earlier_index_with_its_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make_rows()[:100]
    write_faiss(tmp_path / "index.faiss", in_blocks([f"{i}.png" for i in range(100)], rows), DIM)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {"index.faiss", "index.faiss.ids.json"}

    def full(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(faiss, "write_index", full)
    for ids in (list(range(100)), [f"other {i}" for i in range(100)]):
        with pytest.raises(OSError, match="disk full"):
            write_faiss(tmp_path / "index.faiss", in_blocks(ids, rows), DIM)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("strings", [False, True])
def test_parquet_holds_ids_and_rows(strings: bool, tmp_path: Path) -> None:
    rows = make_rows()
    ids = [f"{i}.png" for i in range(COUNT)] if strings else list(range(-5, COUNT - 5))
    write_parquet(tmp_path / "rows.parquet", iter(in_blocks(ids, rows)), DIM)
    file = pyarrow.parquet.ParquetFile(tmp_path / "rows.parquet")
    assert file.num_row_groups == 5
    table = file.read()
    assert table["id"].to_pylist() == ids
    assert np.array_equal(np.array(table["row"].to_pylist(), np.float32), rows)


@pytest.mark.parametrize("strings", [False, True])
def test_lance_holds_ids_and_rows(strings: bool, tmp_path: Path) -> None:
    lance = pytest.importorskip("lance")
    rows = make_rows()
    ids = [f"{i}.png" for i in range(COUNT)] if strings else list(range(COUNT))
    write_lance(tmp_path / "rows.lance", iter(in_blocks(ids, rows)), DIM)
    found = lance.dataset(str(tmp_path / "rows.lance"))
    table = found.to_table()
    assert table["id"].to_pylist() == ids
    assert np.array_equal(np.array(table["row"].to_pylist(), np.float32), rows)
    nearest = {"column": "row", "q": QUERIES[0], "k": K, "metric": "dot"}
    top = found.to_table(nearest=nearest)["id"].to_pylist()
    assert top == [ids[i] for i in exact_top(QUERIES[:1], rows)[0]]
    with pytest.raises(OSError, match="exists"):
        write_lance(tmp_path / "rows.lance", iter(in_blocks(ids, rows)), DIM)


WRITERS = pytest.mark.parametrize("write", [write_faiss, write_parquet])


@WRITERS
def test_blocks_that_cannot_be_written_are_refused(write: Any, tmp_path: Path) -> None:
    target, rows = tmp_path / "out", np.ones((2, 3), np.float32)
    for blocks, error, message in (
        ([], ValueError, "blocks must have a row or more, got none"),
        ([([], rows[:0])], ValueError, "blocks must have a row or more, got none"),
        ([([1], rows)], ValueError, r"rows must be \[n, proj_dim\] = \[1, 3\], got \[2, 3\]"),
        ([([1, 2], rows[:, :2])], ValueError, r"rows must be \[n, proj_dim\] = \[2, 3\], got \[2, 2\]"),
        (
            [([1, 2], rows * np.nan)],
            ValueError,
            "rows must be finite, got NaN or infinity in a block that begins with .* 1",
        ),
        (
            [([1, 2], rows), (["a", "b"], rows)],
            ValueError,
            "ids must be all integers or all strings, got 'a' among others",
        ),
        ([([1, 2.5], rows)], TypeError, "ids must be an integer or a string, got 2.5"),
    ):
        with pytest.raises(error, match=message):
            write(target, blocks, 3)
    assert not target.exists()


def test_what_an_index_cannot_hold_is_refused(tmp_path: Path) -> None:
    target, rows = tmp_path / "out", np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match="blocks must be a list, or an object whose __iter__ begins anew"):
        write_faiss(target, iter([([1, 2], rows)]), 3)
    write_faiss(target, iter([([1, 2], rows)]), 3, quantizer="float16")
    for blocks in ([([1, 2], rows), ([2, 3], rows)], [([2, 2], rows)]):
        with pytest.raises(ValueError, match="blocks must have every id once, got 2 again"):
            write_faiss(target, blocks, 3)
    with pytest.raises(ValueError, match="ids must not be -1 in an index of FAISS"):
        write_faiss(target, [([-1, 2], rows)], 3)
    with pytest.raises(ValueError, match="rows must be at most 65504 in magnitude for float16"):
        write_faiss(target, [([1, 2], rows * 1e5)], 3, quantizer="float16")
    with pytest.raises(ValueError, match='quantizer must be "8bit" or "float16", got \'4bit\''):
        write_faiss(target, [([1, 2], rows)], 3, quantizer="4bit")  # type: ignore[arg-type]


def test_a_missing_package_is_named_with_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = [([1, 2], np.ones((2, 3), np.float32))]
    for name, write, install in (
        ("faiss", write_faiss, r'pip install "journey-attribution\[exports\]"'),
        ("pyarrow", write_parquet, r'pip install "journey-attribution\[exports\]"'),
        ("lance", write_lance, "pip install pylance"),
    ):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ImportError, match=f"needs {name}: {install}"):
            write(tmp_path / "out", blocks, 3)
