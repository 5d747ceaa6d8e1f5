"""Numbers in the forms people have them, as tensors whatever torch's default dtype and device are."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def as_tensor(numbers: Any) -> Tensor:
    """Return a tensor as it is, and an array, a number or lists of numbers as a tensor on the CPU.

    Arrays keep their dtype; Python's integers become int64, and its floats float32.

    Args:
        numbers: What the caller gave.

    Returns:
        The tensor.

    Raises:
        TypeError: If it holds anything but numbers.
    """
    if isinstance(numbers, Tensor):
        return numbers
    array = np.array(numbers)
    if array.dtype == np.float64 and not isinstance(numbers, np.ndarray | np.generic):
        array = array.astype(np.float32)
    return torch.from_numpy(array)
