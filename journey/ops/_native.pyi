"""Types of the compiled module; see csrc/bindings.cpp and csrc/bindings_cuda.cpp."""

from typing import Any

cpu: Any
cuda: Any

def build_info() -> dict[str, Any]: ...
