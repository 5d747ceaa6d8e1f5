"""What this installation can do, for ``journey info`` and for bug reports."""

from __future__ import annotations

import platform
from typing import Any

import diffusers
import numpy as np
import torch

from journey.ops import _native


def describe_installation() -> dict[str, Any]:
    """Return versions, build options and devices as a flat mapping of names to printable values."""
    build = _native.build_info()
    info: dict[str, Any] = {
        "journey": build["version"],
        "compiler": build["compiler"],
        "CPU instruction set": build["isa"],
        "CPU threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "numpy": np.__version__,
    }
    if not build["cuda"]:
        return {**info, "CUDA kernels": f"off: {build['cuda_off_reason']}"}
    info["CUDA kernels"] = (
        f"on: {build['cuda_compiler']}, architectures {build['cuda_architectures']} and PTX of the last"
    )
    info["CUDA runtime, driver"] = f"{_native.cuda.runtime_version()}, {_native.cuda.driver_version() or 'no driver'}"
    devices = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    if devices:
        return {**info, "CUDA devices": ", ".join(devices)}
    if _native.cuda.device_count():
        return {
            **info,
            "CUDA devices": f"{_native.cuda.device_count()}, unused: torch {torch.__version__} cannot use CUDA",
        }
    return {**info, "CUDA devices": "none found; tensors on the CPU use the CPU kernels"}
