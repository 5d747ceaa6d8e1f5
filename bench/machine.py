"""What the bench runs on: its description, and its ceilings measured here and now."""

from __future__ import annotations

import itertools
import os
import platform
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.harness import Bound, Call, Effort, Row, interleave
from journey.ops import _native

# Packages that are compared where they are installed.
PEERS = ("traker", "dattri", "dattri-llm", "sjlt", "fast_jl", "faiss-cpu")

SLICE_BYTES = 8 * 4608 * 1152 * 4  # one batch of eight fp32 gradients of a feed-forward layer of DiT-XL/2
_COLD_BYTES = 1 << 30  # a buffer of at least this size is walked through, so that no slice is still in a cache
_GEMM_SIZE = {"cpu": 1536, "cuda": 8192}


def describe(threads: int) -> dict[str, Any]:
    """Return machine, versions, commit, date and thread count, as JSON values."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    described: dict[str, Any] = {
        "machine": {
            "cpu": _cpu_model(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_gib": round(memory / 2**30, 1),
            "l3_mib": _l3_bytes() >> 20,
            "system": f"{platform.system()} {platform.machine()}",
        },
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in ("torch", "diffusers", "numpy", *PEERS)},
            "journey": _native.build_info(),
        },
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "threads": threads,
        "load_before": round(os.getloadavg()[0], 2),
    }
    if torch.cuda.is_available():
        described["machine"]["gpu"] = _gpu()
    return described


def result_name(described: dict[str, Any]) -> str:
    """Return the name of a JSON file that says on what machine and at what commit it was measured."""
    machine = described["machine"]
    chip = re.sub("[^a-z0-9]+", "-", machine.get("gpu", machine["cpu"]).lower()).strip("-")
    commit, dirty, _ = (described["commit"] or "unknown").partition("-dirty")
    return f"{chip}-{machine['cores']}core-{commit[:12]}{dirty}.json"


@dataclass(frozen=True)
class Ceilings:
    """Probes that run at the machine's ceilings; cases time them beside their own calls.

    Args:
        device: Where they run.
        reader: The fastest of the simple readers: reads a tensor once.
        gemm: One matrix product of each dtype.
        gemm_flops: Its FLOPs.
    """

    device: torch.device
    reader: Callable[[Tensor], object]
    gemm: dict[torch.dtype, Call]
    gemm_flops: float

    def read_bound(self, slices: Iterator[Tensor]) -> Bound:
        """Return the bound of an op that reads the next slice once."""
        return Bound("read bandwidth", 1.0, lambda: self.reader(flat(next(slices))), 1.0)

    def gemm_bound(self, flops: float, dtype: torch.dtype = torch.float32) -> Bound:
        """Return the bound of an op that needs so many FLOPs in float32 or bfloat16."""
        name = {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
        return Bound(f"{name} GEMM rate", flops, self.gemm[dtype], self.gemm_flops)


class ColdSlices(Iterator[Tensor]):
    """Slices of a buffer far larger than the caches, one after the other, round and round.

    By the time a slice comes round again, everything else has been through the caches.

    Args:
        shape: Of one slice.
        dtype: Of all.
        device: Where they are.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        """Fill the buffer, so that all of its pages exist."""
        first = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
        self.slice_bytes = first.numel() * first.element_size()
        # More than four times the last-level cache where that fits in a quarter of the memory; the cache that a virtual
        # machine reports belongs to the whole socket.
        wanted = max(_COLD_BYTES, 4 * _l3_bytes() if device.type == "cpu" else 0)
        count = max(2, -(-min(wanted, _free_bytes(device) // 4) // self.slice_bytes))
        buffer = torch.empty((count, *shape), dtype=dtype, device=device)
        buffer.copy_(first.expand_as(buffer))
        self.slices = list(buffer)
        self._next = itertools.cycle(self.slices)

    def __next__(self) -> Tensor:
        """Return the next slice."""
        following: Tensor = next(self._next)
        return following


def measure_ceilings(device: torch.device, effort: Effort) -> tuple[Ceilings, list[Row]]:
    """Measure read and copy bandwidth and the GEMM rates in fp32 and bf16.

    Args:
        device: Of which memory and arithmetic.
        effort: How long to measure.

    Returns:
        The probes for the cases, and a row per ceiling.
    """
    cold = ColdSlices((SLICE_BYTES // 4,), torch.float32, device)
    size = _GEMM_SIZE[device.type]
    a, b, product = (torch.randn(size, size, device=device) for _ in range(3))
    destination = torch.empty_like(cold.slices[0])
    calls: dict[str, Call] = {name: partial(_read_next, read, cold) for name, read in _READERS.items()}
    calls["copy"] = lambda: destination.copy_(next(cold))
    calls["gemm"] = lambda: torch.mm(a, b, out=product)
    narrow = [x.bfloat16() for x in (a, b, product)]
    calls["bf16 gemm"] = lambda: torch.mm(narrow[0], narrow[1], out=narrow[2])
    timings = interleave(calls, device, budget=2 * effort.budget, rounds=effort.rounds)

    best = min(_READERS, key=lambda name: timings.of(name).median)
    mib = cold.slice_bytes >> 20
    of_total = f"{mib} MiB of {mib * len(cold.slices)} MiB at a time"
    readings = (
        ("read bandwidth", of_total, best, cold.slice_bytes, "GB/s", f"fastest of {', '.join(_READERS)}: {best}"),
        ("copy bandwidth", of_total, "copy", 2 * cold.slice_bytes, "GB/s", "read plus written bytes, Tensor.copy_"),
        ("fp32 GEMM rate", f"{size} cubed", "gemm", 2 * size**3, "GFLOP/s", "torch.mm"),
        ("bf16 GEMM rate", f"{size} cubed", "bf16 gemm", 2 * size**3, "GFLOP/s", "torch.mm"),
    )
    rows = []
    for op, sizes, name, work, unit, note in readings:
        seconds = timings.of(name)
        rate = work / seconds.median / 1e9
        rows.append(Row(op, sizes, device.type, seconds, timings.repetitions, rate, unit, note=note))
    gemm = {torch.float32: calls["gemm"], torch.bfloat16: calls["bf16 gemm"]}
    return Ceilings(device, _READERS[best], gemm, 2.0 * size**3), rows


def flat(x: Tensor) -> Tensor:
    """Return the memory of a contiguous tensor as fp32, [numel]."""
    return x.reshape(-1).view(torch.float32)


# Each reads every byte once. Which is fastest differs between machines and versions of torch.
_READERS: dict[str, Callable[[Tensor], object]] = {
    "sum": lambda x: x.sum(),
    "sum of 64 rows": lambda x: x.view(64, -1).sum(1),
    "dot(x, x)": lambda x: torch.dot(x, x),
    "amax": lambda x: x.amax(),
}


def _read_next(read: Callable[[Tensor], object], slices: Iterator[Tensor]) -> object:
    return read(next(slices))


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    for text in info.read_text().splitlines() if info.exists() else []:
        if text.startswith("model name"):
            return text.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpu() -> str:
    """Name, driver and clocks of the first GPU."""
    query = ["nvidia-smi", "--id=0", "--query-gpu=name,driver_version,clocks.sm,clocks.max.sm", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return torch.cuda.get_device_name()


def _l3_bytes() -> int:
    """Size of the largest cache; 0 where the system does not say."""
    caches = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    sizes = [size.read_text().strip() for size in caches]
    return max([0, *(int(size[:-1]) << {"K": 10, "M": 20}[size[-1]] for size in sizes if size[-1:] in ("K", "M"))])


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    def git(*arguments: str) -> str:
        root = Path(__file__).parent
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
