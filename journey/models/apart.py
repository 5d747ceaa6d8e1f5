"""Rows apart in layers that a network calls with the tokens of all rows as one batch, so that hooks tell them apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence


@contextmanager
def rows_apart(layers: nn.Module, lengths: Sequence[int]) -> Iterator[None]:
    """Let layers that work on each token by itself see the tokens of each row beside those of the others.

    The network's ``[sum of lengths, channels]`` reach them as ``[num_rows, longest, channels]``, with zeros behind
    shorter rows, and what they make of them goes back in the network's form.

    Args:
        layers: A layer or several in a row, called once with the tokens of all rows, one row after the other.
        lengths: Tokens of each row.

    Yields:
        Nothing.
    """

    def part(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (pad_sequence(list(args[0].split(list(lengths))), batch_first=True), *args[1:])

    def join(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return torch.cat([row[:length] for row, length in zip(output, lengths, strict=True)])

    # Hooks of a measurement are there already, so that they come before this one.
    handles = [layers.register_forward_pre_hook(part), layers.register_forward_hook(join)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
