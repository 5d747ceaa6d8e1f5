"""A store that processes fill which die and come late, and that grows, beside one that one process filled.

``python -m bench.scale.growth`` measures Fashion-MNIST's 60,000 training images (Debian's package
``dataset-fashion-mnist``) with a tiny UNet and two draws: once by one process; once by two, of which one is killed
twice, with a third that starts late. Then 1,000 test images are added. It says whether rows, by id, and the scores of
the old images are the same, and how long each run took.
"""

from __future__ import annotations

import argparse
import gzip
import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DModel

import journey
from bench.retraining.tiers import FASHION

ADDED, DRAWS = 1_000, 2


def load_fashion(part: str) -> torch.Tensor:
    """The images of a part, float32 in [-1, 1]. [num_images, 1, 28, 28]"""
    data = gzip.decompress((FASHION / f"{part}-images-idx3-ubyte.gz").read_bytes())
    pixels = torch.frombuffer(bytearray(data[16:]), dtype=torch.uint8)
    return pixels.view(-1, 1, 28, 28).float() / 127.5 - 1


def make_model() -> tuple[UNet2DModel, DDPMScheduler]:
    """A UNet of some thousand parameters for images of 28 pixels."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    return unet.eval(), DDPMScheduler()


def run(images: torch.Tensor, out: Path, fit: Path, **options: Any) -> journey.Features:
    """Featurize on one thread, as every process does."""
    torch.set_num_threads(1)
    draws = journey.StratifiedDraws(DRAWS)
    return journey.featurize(make_model(), images, out, fit=fit, draws=draws, progress=False, **options)


def fork(work: Callable[[], object]) -> int:
    """Run in a process of its own; return its id."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return pid


def disturbed(images: torch.Tensor, out: Path, fit: Path) -> None:
    """Two processes, of which one is killed twice, and a third that comes late."""

    def start(rank: int) -> int:
        return fork(lambda: run(images, out, fit, rank=rank, world_size=2))

    def wait_for(share: float) -> None:
        total = -(-len(images) // 469)  # about as many shards as there are
        while len(list(out.glob("rows-*"))) < share * total:
            time.sleep(0.05)

    first, second = start(0), start(1)
    for share in (0.2, 0.4):
        wait_for(share)
        os.kill(second, signal.SIGKILL)
        os.waitpid(second, 0)
        second = start(1)
    wait_for(0.6)
    third = start(0)
    for pid in (first, second, third):
        assert os.waitpid(pid, 0)[1] == 0
    run(images, out, fit)  # what a killed process had in hand when the others ended


def rows_of(features: journey.Features) -> dict[int | str, bytes]:
    """The bytes of every row, by id."""
    found = {}
    for shard in features.shards():
        rows, scales = shard.tensors["rows"].numpy(), shard.tensors["scales"].numpy()
        found |= {i: rows[at].tobytes() + scales[at].tobytes() for at, i in enumerate(shard.ids)}
    return found


def main() -> None:
    """Run all, and print what is the same."""
    parser = argparse.ArgumentParser(prog="python -m bench.scale.growth", description=__doc__)
    parser.add_argument("--num-images", type=int, default=60_000)
    count = parser.parse_args().num_images
    images = load_fashion("train")[:count]
    more = torch.cat([images, load_fashion("t10k")[:ADDED]])
    with tempfile.TemporaryDirectory(prefix="journey-growth-") as name:
        folder = Path(name)
        journey.fit(make_model(), images, folder / "fit", pseudo_gradients=512, progress=False)
        begin = time.perf_counter()
        alone = run(images, folder / "one", folder / "fit")
        middle = time.perf_counter()
        disturbed(images, folder / "many", folder / "fit")
        end = time.perf_counter()
        many = run(images, folder / "many", folder / "fit")
        same = rows_of(alone) == rows_of(many)
        print(f"{count:,} images: one process {middle - begin:.0f} s; three, two deaths {end - middle:.0f} s")
        print(f"rows of the same bytes, by id: {same}")
        queries = images[:2]
        before = journey.score(many, images=queries, progress=False)
        grown = run(more, folder / "many", folder / "fit")
        after = journey.score(grown, images=queries, progress=False)
        unchanged = torch.equal(after.values[..., :count], before.values)
        print(f"{ADDED:,} images more: {grown.num_samples:,} rows; scores of the old ones unchanged: {unchanged}")


if __name__ == "__main__":
    main()
