"""Builds the compiled module with CMake and ninja; everything else is in pyproject.toml.

Environment variables:
    JOURNEY_CUDA: ``auto`` (default: CUDA kernels when nvcc is found), ``on`` (or fail) or ``off``.
    JOURNEY_CUDA_ARCHS: architectures to compile for, such as ``80,90``, instead of all that nvcc supports.
"""

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    """Runs CMake for the one extension and leaves it where setuptools expects it."""

    def build_extension(self, ext: Extension) -> None:
        """Configure, build, and put the module where setuptools looks for it."""
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        options = {
            "CMAKE_LIBRARY_OUTPUT_DIRECTORY": target,
            "CMAKE_BUILD_TYPE": "Debug" if self.debug else "Release",
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "JOURNEY_VERSION": self.distribution.get_version(),
            "JOURNEY_CUDA": os.environ.get("JOURNEY_CUDA", "auto"),
            "JOURNEY_CUDA_ARCHS": os.environ.get("JOURNEY_CUDA_ARCHS", ""),
        }
        defines = [f"-D{name}={value}" for name, value in options.items()]
        subprocess.run(["cmake", "-S", ROOT, "-B", build, "-G", "Ninja", *defines], check=True)
        subprocess.run(["cmake", "--build", build], check=True)


setup(ext_modules=[Extension("journey.ops._native", sources=[])], cmdclass={"build_ext": CMakeBuild})
