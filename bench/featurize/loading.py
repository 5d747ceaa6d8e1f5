"""How long a network waits for images: ``python -m bench.featurize.loading``.

JPEGs of 512 pixels, generated into a temporary folder, are decoded and handed in batches of three to a stand-in
network that takes 100 ms for each. Idle is the share of the time, from the first request to the last batch, in which
the network waited.
"""

from __future__ import annotations

import io
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from journey.data.loader import read_batches, read_stream
from journey.data.sources import open_dataset
from journey.data.stream import Stream

NUM_IMAGES, BATCH, PIXELS, SECONDS = 300, 3, 512, 0.1


def main() -> int:
    """Print the table."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for form, path in write_images(Path(folder)).items():
            dataset = open_dataset(path, size=(PIXELS, PIXELS), channels=3)
            for workers in (0, 1, 2):
                rows.append((form, workers, *measure(dataset, workers)))
    print("| form | workers | idle | images per second |\n|---|---|---|---|")
    for form, workers, idle, rate in rows:
        print(f"| {form} | {workers} | {100 * idle:.1f} % | {rate:.1f} |")
    return 0


def write_images(folder: Path) -> dict[str, Path]:
    """Write the same images as a folder, a parquet file and a tar file."""
    import pyarrow
    import pyarrow.parquet

    files = {f"{i:04}": make_jpeg(i) for i in range(NUM_IMAGES)}
    (folder / "images").mkdir()
    with tarfile.open(folder / "images.tar", "w") as tar:
        for name, data in files.items():
            (folder / "images" / f"{name}.jpg").write_bytes(data)
            member = tarfile.TarInfo(f"{name}.jpg")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    table = pyarrow.table({"id": list(files), "image": list(files.values())})
    pyarrow.parquet.write_table(table, folder / "images.parquet")
    return {"folder": folder / "images", "parquet": folder / "images.parquet", "tar": folder / "images.tar"}


def make_jpeg(seed: int) -> bytes:
    """Return a JPEG with detail of every size, as photographs have, of about 100 kB."""
    random = np.random.default_rng(seed)
    picture = np.zeros((PIXELS, PIXELS, 3), dtype=np.float32)
    for size in (4, 16, 64, 256):
        noise = random.integers(0, 256, (size, size, 3), dtype=np.uint8)
        picture += np.asarray(Image.fromarray(noise).resize((PIXELS, PIXELS), Image.Resampling.BICUBIC)) / 4
    file = io.BytesIO()
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(file, format="JPEG", quality=90)
    return file.getvalue()


def measure(dataset: Any, workers: int) -> tuple[float, float]:
    """Return the share of the time in which the network is idle, and images per second."""
    begin = time.perf_counter()
    busy, count = 0.0, 0
    for batch in batches(dataset, workers):
        count += len(batch)
        before = time.perf_counter()
        time.sleep(SECONDS)
        busy += time.perf_counter() - before
    total = time.perf_counter() - begin
    if count != NUM_IMAGES:
        raise RuntimeError(f"{count} images came, of {NUM_IMAGES}")
    return 1 - busy / total, count / total


def batches(dataset: Any, workers: int) -> Iterator[list[Any]]:
    """Read all images, in batches."""
    if isinstance(dataset, Stream):
        yield from read_stream(dataset, BATCH, workers)
    else:
        positions = (range(i, min(i + BATCH, len(dataset))) for i in range(0, len(dataset), BATCH))
        for _, items in read_batches(dataset, positions, workers):
            yield items


if __name__ == "__main__":
    sys.exit(main())
