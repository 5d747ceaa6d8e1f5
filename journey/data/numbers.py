"""Numbers in the forms people have them: as tensors whatever torch's default dtype and device are, and as sizes."""

from __future__ import annotations

from collections.abc import Iterable
from operator import index
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


def as_size(given: Any, name: str) -> tuple[int, ...]:
    """Return the size of an image, a video or a sound as a tuple.

    Args:
        given: What the caller gave.
        name: Of the argument, for the error.

    Returns:
        Its numbers; how many there must be is the model's to say.

    Raises:
        TypeError: If it is no tuple of positive integers.
    """
    try:
        numbers = tuple(index(number) for number in given) if isinstance(given, Iterable) else ()
    except TypeError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise TypeError(
            f"{name} must be a tuple of positive integers, (height, width) of an image, (frames, height, width) of a "
            f"video or (samples,) of a sound, got {given!r}"
        )
    return numbers
