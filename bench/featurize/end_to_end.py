"""From JPEG to row, beside plain training steps: ``python -m bench.featurize.end_to_end``.

Folders of JPEGs of 256 pixels are featurized whole: files decoded and scaled, images measured with four draws each,
rows packed and written, checksums and all. One folder has three times the images of the other: their difference is the
time of the images, and the rest is the start (a process that decodes, fingerprints of the network). Beside it the same
network takes training steps on as many noised images of the same size, which lie in memory. All take turns; the table
has medians. The fit, which is made once, is given, and the check of the first batch is left out.
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
IMAGES = {"4.4M": 32, "35.7M": 8}


def main() -> int:
    """Print the table."""
    print("| network | images/s, JPEG to row | trained images/s | cost of a draw, in trained images | start, s |")
    print("| --- | --- | --- | --- | --- |")
    for name, num_images in IMAGES.items():
        with tempfile.TemporaryDirectory() as folder:
            found = compare(name, num_images, Path(folder))
        few, many, trained = (statistics.median(seconds) for seconds in zip(*found, strict=True))
        costs = sorted((many - few) / trained for few, many, trained in found)
        rates = 2 * num_images / (many - few), 2 * num_images * DRAWS / trained
        start = few - (many - few) / 2
        cost = f"{statistics.median(costs):.2f} [{costs[0]:.2f}, {costs[-1]:.2f}]"
        print(f"| UNet {name} | {rates[0]:.2f} | {rates[1]:.2f} | {cost} | {start:.1f} |", flush=True)
    return 0


def compare(name: str, num_images: int, folder: Path) -> list[tuple[float, float, float]]:
    """Return the seconds of each round: so many images, three times as many, training steps on twice as many."""
    torch.manual_seed(0)
    untyped: Any = UNet2DModel
    network = untyped(sample_size=32, in_channels=3, out_channels=3, **NETWORKS[name]).eval()
    scheduler: Any = DDPMScheduler()
    images = {count: folder / f"{count}" for count in (num_images, 3 * num_images)}
    for count, path in images.items():
        path.mkdir()
        for i in range(count):
            (path / f"{i:04}.jpg").write_bytes(make_jpeg(i, PIXELS))
    fit = journey.fit((network, scheduler), images[num_images], folder / "fit", pseudo_gradients=64, progress=False)

    def measure(count: int, out: str) -> None:
        draws = journey.StratifiedDraws(DRAWS)
        given: dict[str, Any] = {"fit": fit, "draws": draws, "batch_size": BATCH // DRAWS, "workers": 1}
        journey.featurize((network, scheduler), images[count], folder / out, **given, check=False, progress=False)

    x0 = torch.randn(BATCH, 3, 32, 32)

    def train() -> None:
        network.requires_grad_(True)
        for _ in range(2 * num_images * DRAWS // BATCH):
            noise, t = torch.randn_like(x0), torch.randint(0, 1000, (BATCH,))
            output: Any = network(scheduler.add_noise(x0, noise, t), t)
            torch.autograd.backward((output.sample - noise).square().mean())
            network.zero_grad()

    train()
    found: list[tuple[float, float, float]] = []
    for number in range(ROUNDS):
        few, many = (_seconds(measure, count, f"out-{number}-{count}") for count in images)
        found.append((few, many, _seconds(train)))
    return found


def _seconds(run: Callable[..., object], *given: object) -> float:
    begin = time.perf_counter()
    run(*given)
    return time.perf_counter() - begin


if __name__ == "__main__":
    sys.exit(main())
