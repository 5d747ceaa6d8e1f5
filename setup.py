"""Builds the compiled module with CMake and ninja; everything else is in pyproject.toml.

Environment variables:
    JOURNEY_CUDA: ``auto`` (default: CUDA kernels where nvcc works), ``on`` (or fail) or ``off``.
    JOURNEY_CUDA_ARCHS: architectures to compile for, such as ``80,90``, or ``all``, for wheels. By default those of the
        GPUs of this machine; without any, 80 and 90.
    JOURNEY_WERROR: ``1`` turns warnings of the compilers into errors, for continuous integration.
    CUDACXX: the nvcc to use, instead of the one on the PATH.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()

# The first chip of each generation, whose code also runs on that generation's later ones, and the common later ones.
ALL_ARCHITECTURES = ["75", "80", "86", "89", "90", "100", "103", "110", "120"]
# Code for 80 runs on every Ampere and Ada chip, code for 90 on Hopper, and from the PTX of 90 drivers make code for
# what came later.
COMMON_ARCHITECTURES = ["80", "90"]


class CMakeBuild(build_ext):
    """Runs CMake for the one extension and leaves it where setuptools expects it."""

    def build_extension(self, ext: Extension) -> None:
        """Build with CUDA kernels if that is asked for or works, else without, and keep the reason."""
        wanted = os.environ.get("JOURNEY_CUDA", "auto").lower()
        if wanted not in ("auto", "on", "off"):
            raise ValueError(f"JOURNEY_CUDA must be auto, on or off, got {wanted!r}")
        nvcc = shutil.which(os.environ.get("CUDACXX", "nvcc"))
        if wanted == "off":
            reason = "built with JOURNEY_CUDA=off"
        elif nvcc is None:
            reason = "nvcc was not found when the package was built"
            if wanted == "on":
                raise FileNotFoundError(
                    "JOURNEY_CUDA=on, but nvcc was not found: install the CUDA toolkit, put nvcc on the PATH or set "
                    "CUDACXX, or build with JOURNEY_CUDA=off"
                )
        else:
            try:
                self.run_cmake(ext, JOURNEY_CUDA="ON", JOURNEY_CUDA_ARCHS=";".join(architectures(nvcc)))
                return
            except (OSError, subprocess.CalledProcessError):
                if wanted == "on":
                    raise
                reason = "nvcc failed when the package was built (JOURNEY_CUDA=on shows its errors)"
                shutil.rmtree(self.build_temp, ignore_errors=True)  # CMake would remember the nvcc that failed
        print(f"journey: CPU kernels only: {reason}", flush=True)
        self.run_cmake(ext, JOURNEY_CUDA="OFF", JOURNEY_CUDA_OFF_REASON=reason)

    def run_cmake(self, ext: Extension, **options: str) -> None:
        """Configure, build, and put the module where setuptools looks for it."""
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        options |= {
            "CMAKE_LIBRARY_OUTPUT_DIRECTORY": str(target),
            "CMAKE_BUILD_TYPE": "Debug" if self.debug else "Release",
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "JOURNEY_VERSION": self.distribution.get_version(),
            "JOURNEY_WERROR": os.environ.get("JOURNEY_WERROR", "0"),
        }
        defines = [f"-D{name}={value}" for name, value in options.items()]
        subprocess.run(["cmake", "-S", ROOT, "-B", build, "-G", "Ninja", *defines], check=True)
        subprocess.run(["cmake", "--build", build], check=True)


def architectures(nvcc: str) -> list[str]:
    """Return the architectures to compile for, the last of which also as PTX."""
    asked = os.environ.get("JOURNEY_CUDA_ARCHS", "")
    if asked not in ("", "all"):
        return re.split("[,;]", asked)
    listed = subprocess.run([nvcc, "--list-gpu-arch"], check=True, stdout=subprocess.PIPE, text=True).stdout
    supported = re.findall(r"compute_(\d+)", listed)
    if asked == "all":
        return [architecture for architecture in ALL_ARCHITECTURES if architecture in supported]
    present = [architecture for architecture in present_architectures() if architecture in supported]
    return present or [architecture for architecture in COMMON_ARCHITECTURES if architecture in supported]


def present_architectures() -> list[str]:
    """Return the architectures of this machine's GPUs, the oldest first, as far as there are kernels for them."""
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, check=True, stdout=subprocess.PIPE, text=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):  # no driver, or one that does not answer
        return []
    found = {int(major + minor) for major, minor in re.findall(r"(\d+)\.(\d)", answer)}
    return [str(architecture) for architecture in sorted(found) if architecture >= int(ALL_ARCHITECTURES[0])]


if __name__ == "__main__":  # a test reads this file
    setup(ext_modules=[Extension("journey.ops._native", sources=[])], cmdclass={"build_ext": CMakeBuild})
