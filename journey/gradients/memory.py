"""How much memory a batch takes, measured."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

# What is filled of the budget: the rest is for what differs from batch to batch, such as the allocator's fragments.
_FILLED = 0.9


def default_budget(device: torch.device) -> int:
    """Return half of the memory that is free on a device, in bytes.

    Raises:
        ValueError: If the system does not tell; says what to give instead.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 2
    return _proc_bytes("/proc/meminfo", "MemAvailable") // 2


def largest_batch(
    run: Callable[[int], object], device: torch.device, *, sizes: Sequence[int], budget: int, most: int
) -> int:
    """Return the largest batch whose peak memory fits a budget, from measurements of small ones.

    Memory is taken to grow with the batch as between the last two that are run. What is in use before, the model's,
    does not count.

    Args:
        run: Processes a batch of some size.
        device: Where it runs.
        sizes: Which batches are run, from small to large, while they fit; at least two.
        budget: Bytes that a batch may take at its peak.
        most: Largest size of interest.

    Returns:
        The size, from the first of ``sizes`` to ``most``.

    Raises:
        ValueError: If not even the first of ``sizes`` fits, or the system does not tell how much memory was taken.
    """
    before = _peak(device, lambda: None)
    peaks: dict[int, int] = {}
    fitting = 0
    for size in sizes:
        if size > most:
            return fitting
        try:
            peaks[size] = _peak(device, lambda size=size: run(size)) - before  # type: ignore[misc]
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            peaks[size] = budget + 1
        if peaks[size] > budget:
            if not fitting:
                raise ValueError(
                    f"memory must be enough for one draw of an image, which took {_gib(peaks[size])} of the "
                    f"{_gib(budget)} allowed"
                )
            return fitting
        fitting = size
    slope = max(1, (peaks[sizes[-1]] - peaks[sizes[-2]]) / (sizes[-1] - sizes[-2]))
    return int(max(fitting, min(most, fitting + (_FILLED * budget - peaks[fitting]) / slope)))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory could not be had, on any device."""
    # torch has no type of its own for the CPU.
    texts = ("can't allocate memory", "out of memory", "not enough memory")
    return isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error).lower() for text in texts)
    )


def _peak(device: torch.device, run: Callable[[], object]) -> int:
    """Run something and return the peak of the memory in use meanwhile, in bytes."""
    reset_peak(device)
    run()
    return peak_bytes(device)


def reset_peak(device: torch.device) -> None:
    """Let the peak of the memory in use begin anew: allocated on a CUDA device, else the resident set of the process.

    Raises:
        ValueError: If the system does not do so; says what to give instead.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        # 5 resets the high-water mark of the resident set.
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as error:
        raise ValueError(
            f'batch_size="auto" needs /proc/self/clear_refs to measure memory ({error}); give a number instead'
        ) from None


def peak_bytes(device: torch.device) -> int:
    """Return the peak of the memory in use since ``reset_peak``, in bytes.

    Raises:
        ValueError: If the system does not tell; says what to give instead.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    return _proc_bytes(f"/proc/{os.getpid()}/status", "VmHWM")


def _proc_bytes(path: str, name: str) -> int:
    try:
        lines = Path(path).read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024
    except (OSError, StopIteration):
        raise ValueError(
            f'batch_size="auto" needs {name} of {path}, which this system does not tell; give a number instead'
        ) from None


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
