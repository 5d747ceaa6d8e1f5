"""How a convolution's weight is a matrix: columns tap by tap, neighbours are channels."""

from __future__ import annotations

import pytest
import torch
from cases import as_matrix

from journey.ops.geometry import channel_major, tap_major


@pytest.mark.parametrize("kernel", [(), (1,), (3,), (3, 2), (2, 1, 3)])
@pytest.mark.parametrize("channels", [1, 5])
def test_columns_are_tap_by_tap(channels: int, kernel: tuple[int, ...]) -> None:
    taps = int(torch.Size(kernel).numel())
    weight = torch.arange(2 * channels * taps).view(2, channels, *kernel)
    matrix = tap_major(weight.flatten(1), taps)
    assert torch.equal(matrix, as_matrix(weight))
    for tap in range(taps):
        for channel in range(channels):
            assert torch.equal(matrix[:, tap * channels + channel], weight.view(2, channels, taps)[:, channel, tap])
    assert torch.equal(channel_major(matrix, taps), weight.flatten(1))


def test_whatever_has_one_tap_is_as_it_is() -> None:
    weight = torch.randn(3, 4)
    assert tap_major(weight, 1) is weight
    assert channel_major(weight, 1) is weight
