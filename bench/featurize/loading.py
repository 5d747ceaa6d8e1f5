"""How long a network waits for images: ``python -m bench.featurize.loading``.

JPEGs, generated into a temporary folder, are decoded, scaled to 512 pixels where they are larger, and handed in batches
of three to a stand-in network that takes 100 ms for each. Idle is the share of the time, from the first request to the
end of the last batch, in which the network waited: the median of three runs in turns, and their range.
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

NUM_IMAGES, BATCH, PIXELS, SECONDS, ROUNDS = 150, 3, 512, 0.1, 3


def main() -> int:
    """Print the table."""
    idle: dict[tuple[str, int], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        forms = write_images(Path(folder))
        for _ in range(ROUNDS):
            for form, path in forms.items():
                dataset = open_dataset(path, size=(PIXELS, PIXELS), channels=3)
                for workers in (0, 1, 2):
                    idle.setdefault((form, workers), []).append(measure(dataset, workers))
    print("| images | workers | idle |\n| --- | --- | --- |")
    for (form, workers), shares in idle.items():
        low, middle, high = (f"{100 * share:.1f}" for share in sorted(shares))
        print(f"| {form} | {workers} | {middle} % [{low}, {high}] |")
    return 0


def write_images(folder: Path) -> dict[str, Path]:
    """Write a folder, a parquet file and a tar file of the same images, and a folder of larger ones."""
    import pyarrow
    import pyarrow.parquet

    files = {f"{i:04}": make_jpeg(i, PIXELS) for i in range(NUM_IMAGES)}
    paths = {name: folder / name for name in ("small", "large", "images.parquet", "images.tar")}
    for pixels, name in ((PIXELS, "small"), (2 * PIXELS, "large")):
        paths[name].mkdir()
        for i in range(NUM_IMAGES):
            data = files[f"{i:04}"] if pixels == PIXELS else make_jpeg(i, pixels)
            (paths[name] / f"{i:04}.jpg").write_bytes(data)
    with tarfile.open(paths["images.tar"], "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(f"{name}.jpg")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    table = pyarrow.table({"id": list(files), "image": list(files.values())})
    pyarrow.parquet.write_table(table, paths["images.parquet"])
    titles = ("folder, 512 pixels", "folder, 1024 pixels", "parquet, 512 pixels", "tar, 512 pixels")
    return dict(zip(titles, paths.values(), strict=True))


def make_jpeg(seed: int, pixels: int) -> bytes:
    """Return a square JPEG with detail of every size, as photographs have."""
    random = np.random.default_rng(seed)
    picture = np.zeros((pixels, pixels, 3), dtype=np.float32)
    for size in (4, 16, 64, 256):
        noise = random.integers(0, 256, (size, size, 3), dtype=np.uint8)
        picture += np.asarray(Image.fromarray(noise).resize((pixels, pixels), Image.Resampling.BICUBIC)) / 4
    file = io.BytesIO()
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(file, format="JPEG", quality=90)
    return file.getvalue()


def measure(dataset: Any, workers: int) -> float:
    """Return the share of the time in which the network is idle."""
    begin = end = time.perf_counter()
    busy, count = 0.0, 0
    for batch in batches(dataset, workers):
        count += len(batch)
        before = time.perf_counter()
        time.sleep(SECONDS)
        end = time.perf_counter()
        busy += end - before
    if count != NUM_IMAGES:
        raise RuntimeError(f"{count} images came, of {NUM_IMAGES}")
    return 1 - busy / (end - begin)


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
