"""Peak memory of one kind of step, alone in its process.

``python -m bench.featurize.memory 35.7M 2 4 float32 featurize cpu 2``

Prints the bytes by which the peak during the step exceeds what the process held before it: interpreter, libraries,
network and batch. On the CPU that is resident memory, what the allocator keeps included; on CUDA what torch allocated.
"""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import torch

from bench.case import PROJ_DIM
from bench.featurize.workload import Sizes, Workload
from bench.harness import Call
from journey.projectors.random import CountSketch

STEPS = 2  # the second finds the allocator as it is in use


def peak_bytes(sizes: Sizes, step: str, device: torch.device, threads: int) -> int:
    """Measure in a new process.

    Args:
        sizes: Network and batch.
        step: ``"training"`` or ``"featurize"``.
        device: Where it runs.
        threads: Of torch and of the kernels.

    Returns:
        Peak beyond what was there before the step.

    Raises:
        RuntimeError: If the process fails, with what it wrote.
    """
    *counts, dtype = sizes
    arguments = [*map(str, counts), str(dtype).removeprefix("torch."), step, device.type, str(threads)]
    command = [sys.executable, "-m", "bench.featurize.memory", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()}")
    return int(done.stdout)


def main(network: str, num_samples: str, num_draws: str, dtype: str, step: str, device_type: str, threads: str) -> None:
    """Print the peak, see ``peak_bytes``."""
    torch.set_num_threads(int(threads))
    device = torch.device(device_type)
    work = Workload(Sizes(network, int(num_samples), int(num_draws), getattr(torch, dtype)), device)
    featurizer = work.featurizer(CountSketch(PROJ_DIM))
    run: Call = {"training": work.training_step, "featurize": lambda: work.features(featurizer)}[step]
    gc.collect()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")  # lets the peak begin anew
        before = _resident("VmRSS")
    for _ in range(STEPS):
        run()
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident("VmHWM")
    print(peak - before)


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    main(*sys.argv[1:])
