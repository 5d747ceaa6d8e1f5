"""From JPEG to row, beside plain training steps: ``python -m bench.featurize.end_to_end``.

A folder of JPEGs of 256 pixels is featurized whole: files decoded and scaled, images measured with four draws each,
rows packed and written, checksums and all. Beside it the same network takes training steps on as many noised images of
the same size, which lie in memory. Both take turns; the table has medians, and one draw counts as one trained image.
The fit, which is made once, is given, and the check of the first batch is left out of the count.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DModel

import journey
from bench.featurize.loading import make_jpeg
from bench.featurize.workload import NETWORKS

PIXELS, DRAWS, ROUNDS, BATCH = 256, 4, 3, 16
IMAGES = {"4.4M": 128, "35.7M": 16}


def main() -> int:
    """Print the table."""
    print("| network | images/s, JPEG to row | trained images/s | four draws cost, in trained images |")
    print("| --- | --- | --- | --- |")
    for name, num_images in IMAGES.items():
        with tempfile.TemporaryDirectory() as folder:
            measured, trained = compare(name, num_images, Path(folder))
        rates = num_images / measured, num_images * DRAWS / trained
        print(f"| UNet {name} | {rates[0]:.2f} | {rates[1]:.2f} | {rates[1] / rates[0]:.2f} |")
    return 0


def compare(name: str, num_images: int, folder: Path) -> tuple[float, float]:
    """Return the seconds that featurizing takes, and those of training on as many noised images."""
    torch.manual_seed(0)
    untyped: Any = UNet2DModel
    network = untyped(sample_size=32, in_channels=3, out_channels=3, **NETWORKS[name]).eval()
    scheduler: Any = DDPMScheduler()
    images = folder / "images"
    images.mkdir()
    for i in range(num_images):
        (images / f"{i:04}.jpg").write_bytes(make_jpeg(i, PIXELS))
    fit = journey.fit((network, scheduler), images, folder / "fit", pseudo_gradients=64, progress=False)

    def measure(out: str) -> None:
        draws = journey.StratifiedDraws(DRAWS)
        given = {"fit": fit, "draws": draws, "batch_size": BATCH // DRAWS, "workers": 1}
        journey.featurize((network, scheduler), images, folder / out, **given, check=False, progress=False)

    x0 = torch.randn(BATCH, 3, 32, 32)

    def train() -> None:
        network.requires_grad_(True)
        for _ in range(num_images * DRAWS // BATCH):
            noise, t = torch.randn_like(x0), torch.randint(0, 1000, (BATCH,))
            output: Any = network(scheduler.add_noise(x0, noise, t), t)
            torch.autograd.backward((output.sample - noise).square().mean())
            network.zero_grad()

    train()
    found: list[tuple[float, float]] = []
    for number in range(ROUNDS):
        found.append((_seconds(lambda number=number: measure(f"out-{number}")), _seconds(train)))  # type: ignore[misc]
    measured, trained = zip(*found, strict=True)
    return statistics.median(measured), statistics.median(trained)


def _seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


if __name__ == "__main__":
    sys.exit(main())
