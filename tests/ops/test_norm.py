"""Gradients of normalisation layers against autograd in float64."""

from __future__ import annotations

import pytest
import torch
from cases import DEVICES, DTYPES, randn

from journey import ops
from journey.ops import reference_norm


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("groups", "centered"), [(1, True), (4, True), (0, True), (0, False)])
def test_norm_gradients_are_those_of_autograd(groups, centered, dtype, device):
    for num_rows, channels, positions in [(0, 4, 5), (1, 8, 1), (3, 12, 16), (2, 64, 1024), (2, 264, 300)]:
        shape = (num_rows, channels, positions) if groups else (num_rows, positions, channels)
        x, g = (randn(*shape, seed=1) + 3).to(dtype), (randn(*shape, seed=2) + 1).to(dtype)
        options = {"groups": groups, "centered": centered, "eps": 0.1}
        actual = ops.norm_grads(x.to(device), g.to(device), **options).cpu()
        expected = reference_norm.norm_grads(x, g, **options)
        magnitudes = g.double().abs().sum(2 if groups else 1).unsqueeze(1)
        assert torch.all((actual - expected).abs() <= 2**-18 * magnitudes), (num_rows, channels, positions)
