"""Rows apart in layers that a network calls with what all rows have as one batch, so that hooks tell them apart."""

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


@contextmanager
def frames_stacked(embedder: nn.Module, frames: int) -> Iterator[None]:
    """Let a convolution that embeds patches see the frames of each row below each other, as one image.

    The network's ``[num_rows * frames, C, H, W]`` reach it as ``[num_rows, C, frames * H, W]``, which gives the same
    patches as long as they divide H, and what it makes of them goes back in the network's form.

    Args:
        embedder: The convolution, whose stride is its kernel.
        frames: Frames of each row.

    Yields:
        Nothing.
    """

    def stack(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0].unflatten(0, (-1, frames)).transpose(1, 2).flatten(2, 3), *args[1:])

    def part(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        patches: Tensor = output.unflatten(2, (frames, -1))
        return patches.transpose(1, 2).flatten(0, 1)

    handles = [embedder.register_forward_pre_hook(stack), embedder.register_forward_hook(part)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
