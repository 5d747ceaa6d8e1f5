"""Stores of 10^4 to 10^6 rows that are made: append, open, top 100, export; with the slope from size to size.

``python -m bench.scale`` takes some minutes and 5 GB of disk. Rows are random, since time
does not depend on them; the queries of three steps are solved already: measuring a query costs what it costs, whatever
the number of rows. Every size is a process of its own, whose memory is counted without the files that it maps.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

import journey
from bench.machine import describe
from journey.exports.vectors import write_faiss
from journey.features.features import Features
from journey.features.prepare import default_shard_size
from journey.measure.draws import StratifiedDraws
from journey.scores.columns import strongest
from journey.scores.top import TopCollector
from journey.store.manifest import Manifest
from journey.store.store import FeatureStore

SIZES = (10_000, 100_000, 1_000_000)
PROJ_DIM, TOP, STEPS = 4096, 100, 3
MADE = 1024  # rows that are made once
REPEATS = 5


def write(folder: Path, num_rows: int) -> None:
    """Append rows shard by shard, as featurize does, of a few thousand that are made once."""
    manifest = Manifest(
        bins=1, proj_dim=PROJ_DIM, row="int8", checkpoints=["0"], library_version=journey.__version__, fingerprints={}
    )
    store = FeatureStore.create_or_resume(folder, manifest)
    size = default_shard_size(num_rows, images_per_batch=1)
    store.plan(range(num_rows), size)
    made = torch.randn(MADE, 1, PROJ_DIM, generator=torch.Generator().manual_seed(0))
    for number, shard in enumerate(store.missing("0")):
        ids = range(number * size, min((number + 1) * size, num_rows))
        some = made.roll(number, 0).repeat(-(-len(ids) // MADE), 1, 1)[: len(ids)]
        norm = some[:, 0].norm(dim=1)
        content = torch.arange(len(ids), dtype=torch.int64)
        rest = {"norm": norm, "noise": norm / 8, "values": norm[:, None], "content": content}
        store.write_shard("0", shard, ids, features=some, **rest)


def opened(folder: Path) -> Features:
    """The features, with what a search needs of a model."""
    featurizer: Any = SimpleNamespace(denoiser=SimpleNamespace(num_train_timesteps=1000))
    unused: Any = None
    return Features(FeatureStore.open(folder), featurizer, StratifiedDraws(20), (None,), unused)


def search(folder: Path) -> None:
    """Open the store and find the strongest rows for the queries of three steps."""
    queries = torch.randn(1, STEPS, PROJ_DIM, generator=torch.Generator().manual_seed(1))
    settings = {"timesteps": torch.arange(STEPS, dtype=torch.int64), "damping": 1.0}
    strongest(opened(folder), [queries], torch.ones(1), None, TopCollector(TOP), settings)


def read(folder: Path) -> None:
    """Read every byte of the rows once, from what the system has in memory."""
    buffer = bytearray(1 << 24)
    for path in sorted(folder.glob("rows-*")):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def seconds(call: Callable[[], object], repeats: int = REPEATS) -> float:
    """The median time of a call."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return sorted(times)[repeats // 2]


def anonymous() -> float:
    """Memory of this process without files that are mapped, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def measure(num_rows: int) -> dict[str, float]:
    """What one size takes."""
    with tempfile.TemporaryDirectory(prefix="journey-scale-") as name:
        folder = Path(name) / "store"
        found = {"rows": float(num_rows), "append": seconds(lambda: write(folder, num_rows), 1)}
        found["bytes"] = sum(path.stat().st_size for path in folder.iterdir()) / num_rows
        read(folder)
        before = anonymous()
        found["open"] = seconds(lambda: opened(folder).num_samples)
        found["first"] = seconds(lambda: search(folder), 1)
        found["memory"] = anonymous() - before
        pairs = [(seconds(lambda: read(folder), 1), seconds(lambda: search(folder), 1)) for _ in range(REPEATS)]
        found["read"], found["search"] = (sorted(side)[REPEATS // 2] for side in zip(*pairs, strict=True))
        if num_rows <= SIZES[1]:
            found["export"] = seconds(
                lambda: write_faiss(Path(name) / "index.faiss", opened(folder).blocks(), PROJ_DIM), 1
            )
    return found


def table(rows: list[dict[str, float]]) -> str:
    """The results in Markdown, with how each time grows from one size to the next: 1.00 is in proportion."""
    lines = [
        "| rows | bytes a row | append, s | open, s | warm read, s | open and top 100 for 3 steps, s | of a warm read "
        "| anonymous memory, MiB | FAISS, 8 bits, s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    before: dict[str, float] | None = None

    def cell(row: dict[str, float], name: str) -> str:
        if name not in row:
            return ""
        if before is None or name not in before:
            return f"{row[name]:.3g}"
        slope = math.log(row[name] / before[name]) / math.log(row["rows"] / before["rows"])
        return f"{row[name]:.3g} (slope {slope:.2f})"

    for row in rows:
        times = [cell(row, name) for name in ("append", "open", "read", "search")]
        lines.append(
            f"| {int(row['rows']):,} | {row['bytes']:,.0f} | {' | '.join(times)} | {row['search'] / row['read']:.2f}x "
            f"| {row['memory']:.0f} | {cell(row, 'export')} |"
        )
        before = row
    return "\n".join(lines)


def main() -> None:
    """Measure every size in a process of its own, and print or write the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help="file for the numbers")
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(measure(options.one)))
        return
    rows = []
    for size in options.sizes:
        ran = subprocess.run(
            [sys.executable, "-m", "bench.scale", "--one", str(size)], check=True, capture_output=True, text=True
        )
        rows.append(json.loads(ran.stdout.splitlines()[-1]))
        print(table(rows), flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps({"machine": describe(2), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
