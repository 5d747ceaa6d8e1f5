"""Gradients that are handed on together are those that are handed on one by one, in fewer calls."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from cases import randn
from torch import Tensor, nn

from journey.errors import InPlaceError
from journey.gradients import collect
from journey.gradients.engine import GradientEngine
from journey.ops.cpu import CpuKernels
from journey.projectors.base import ParameterSlot, Projector
from journey.projectors.random import CountSketch, Rademacher
from journey.projectors.scaled import Scaled


class Mixed(nn.Module):
    """Layers whose small gradients come by row (biases, group norm) or group (layer norm); two are called twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.group = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8)
        self.linear, self.layer = nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.group(self.conv(x)).flatten(2).transpose(1, 2)
        for _ in range(2):
            x = self.layer(self.linear(x).relu())
        return x


def features_of(model: nn.Module, projector: Projector, groups: int = 2, rows: int = 12) -> Tensor:
    """Projected gradients of some rows. [groups, proj_dim]."""
    x, target = randn(rows, 3, 8, 8), randn(64, 8, seed=2)

    def values(part: slice) -> Tensor:
        return (model(x[part]) - target).square().mean((1, 2))

    engine, features = GradientEngine(model.eval()), torch.zeros(groups, projector.features_dim(0))
    engine.add_gradients_(features, values, num_rows=rows, projector=projector)
    return features


SCALES = {name: 0.3 + 0.1 * i for i, (name, _) in enumerate(Mixed().named_parameters())}


@pytest.mark.parametrize(
    "projector", [CountSketch(96, nnz=2), Scaled(CountSketch(96), SCALES), Scaled(Rademacher(64), SCALES)], ids=str
)
@pytest.mark.parametrize("sums_alone", [["cpu"], []], ids=["on the CPU", "as on CUDA"])
def test_how_many_layers_are_handed_on_at_once_shows_in_no_bit(monkeypatch, projector, sums_alone):
    monkeypatch.setattr(collect, "_SUMS_ALONE", sums_alone)
    together = features_of(Mixed(), projector)
    for most in (0, 20_000):
        monkeypatch.setitem(collect._KEPT_BYTES, "cpu", most)
        assert torch.equal(features_of(Mixed(), projector), together)


@pytest.mark.parametrize(
    "projector", [CountSketch(96), Scaled(CountSketch(96), SCALES), Scaled(Rademacher(64), SCALES)], ids=str
)
@pytest.mark.parametrize("groups", [1, 3, 12])
def test_small_gradients_summed_at_once_are_those_summed_alone(monkeypatch, projector, groups):
    alone = features_of(Mixed(), projector, groups)
    monkeypatch.setattr(collect, "_SUMS_ALONE", [])
    at_once = features_of(Mixed(), projector, groups)
    torch.testing.assert_close(at_once, alone, rtol=1e-5, atol=1e-6 * alone.abs().max().item())


class OneByOne(Projector, name="one_by_one"):
    """What ``Scaled`` is, parameter by parameter."""

    inner = CountSketch(96)

    def features_dim(self, num_parameters: int) -> int:
        return 96

    def add_(self, features: Tensor, slot: ParameterSlot, grads: Tensor, row_begin: int = 0) -> None:
        self.inner.add_(features, slot, grads * SCALES[slot.name], row_begin)

    def add_outer_(self, features: Tensor, slot: ParameterSlot, *layer: object) -> None:
        added = torch.zeros_like(features)
        self.inner.add_outer_(added, slot, *layer)
        features.add_(added, alpha=SCALES[slot.name])


def test_scales_that_kernels_apply_are_those_that_torch_applies():
    expected = features_of(Mixed(), OneByOne())
    torch.testing.assert_close(features_of(Mixed(), Scaled(CountSketch(96), SCALES)), expected, rtol=1e-6, atol=1e-6)


def test_a_network_needs_two_calls(monkeypatch):
    run, calls = CpuKernels.run, Counter()

    def counted(self: CpuKernels, op: str, memory: Tensor, args: dict[str, object]) -> None:
        calls[op] += 1
        run(self, op, memory, args)

    monkeypatch.setattr(CpuKernels, "run", counted)
    features_of(Mixed(), Scaled(CountSketch(96), SCALES))
    assert calls == {"sketch_outer_many": 1, "sketch_many": 1}


def test_an_output_gradient_that_is_modified_before_it_is_used_is_an_error():
    class Halving(Mixed):
        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            x.register_hook(lambda g: [g.mul_(0.5), None][1])
            return self.linear(x.flatten(2).transpose(1, 2))

    with pytest.raises(InPlaceError, match=r"modified in place during the backward pass, among those of .*conv.weight"):
        features_of(Halving(), CountSketch(96))
