"""Gradients and norms of single rows are those of autograd, in whichever form they are computed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases import CONVS, layer_tensors, randn
from models import SmallDenoiser, make_images, make_scheduler, make_unet, one_at_a_time, split
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from journey.gradients.engine import GradientEngine, RowValues
from journey.gradients.rows import _is_short, row_gradients, squared_norms
from journey.gradients.rules import Contribution, Outer
from journey.measure.draws import StratifiedDraws
from journey.measure.featurizer import Featurizer
from journey.measure.measurements import TrainingLoss
from journey.models.denoiser import Denoiser
from journey.ops.geometry import ConvGeometry
from journey.ops.weight_grad import as_positions, weight_grad_tiles
from journey.projectors.base import ParameterSlot
from journey.projectors.exact import Identity

ROWS = 3


def formed(a: Tensor, g: Tensor, conv: ConvGeometry | None) -> Tensor:
    """Weight gradients of every row. [ROWS, rows, cols]."""
    tiles = list(weight_grad_tiles(a, g, ROWS, conv))
    rows = max(tile.row_begin + tile.grads.shape[1] for tile in tiles)
    grads = torch.zeros(ROWS, rows, tiles[0].grads.shape[2])
    for tile, row, begin in tiles:
        grads[row : row + len(tile), begin : begin + tile.shape[1]] += tile
    return grads


@pytest.mark.parametrize("name", CONVS)
def test_a_convolution_position_by_position_is_a_linear_layer(name: str) -> None:
    conv = CONVS[name]
    a, g = layer_tensors(conv, ROWS)
    pair = as_positions(a, g, conv.geometry)
    if pair is None:
        assert conv.groups > 1 or len(conv.size) == 3
        return
    expected = formed(a, g, conv.geometry)
    assert torch.allclose(pair[1].transpose(1, 2) @ pair[0], expected, atol=1e-5 * expected.norm().item())


@pytest.mark.parametrize(("positions", "short"), [(2, True), (30, False)])
def test_both_forms_of_a_norm_agree(positions: int, short: bool) -> None:
    a, g = randn(ROWS, positions, 11), randn(ROWS, positions, 13, seed=1)
    slot = ParameterSlot("w", 13, 11, 0)
    assert _is_short(slot, g, None) == short
    # Sums of at most 30 products each: a few roundings of 6e-8.
    expected = formed(a, g, None).double().square().sum((1, 2))
    assert torch.allclose(squared_norms(slot, [Outer("w", a, g, None)], ROWS).double(), expected, rtol=1e-5)


class Shared(nn.Module):
    """A layer that is called twice, one that is not called, and a parameter that only autograd covers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.twice = nn.Linear(6, 6)
        self.unused = nn.Linear(2, 2)
        self.gain = nn.Parameter(torch.ones(3, 2))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.twice(torch.tanh(self.twice(x))) * self.gain.flatten()


def collect(engine: GradientEngine, values: RowValues) -> dict[str, list[Contribution]]:
    """All that is handed out, every row a group of its own."""
    found: dict[str, list[Contribution]] = {}

    def keep(slot: ParameterSlot, contributions: list[Contribution]) -> None:
        assert slot.name not in found
        found[slot.name] = contributions

    engine.for_each_parameter(values, num_rows=ROWS, num_groups=ROWS, receive=keep)
    return found


def test_a_layer_that_is_called_twice_has_the_norm_of_the_sum() -> None:
    model, x = Shared(), randn(ROWS, 6)

    def values(rows: slice) -> Tensor:
        return model(x[rows]).square().sum(1)

    expected = dict(split(model, one_at_a_time(model, values, ROWS, 1)))
    engine = GradientEngine(model, uncovered="autograd")
    collected = collect(engine, values)
    assert set(engine.slots) - set(collected) == {"unused.weight", "unused.bias"}
    for name, contributions in collected.items():
        slot = engine.slots[name]
        grads = row_gradients(slot, contributions, ROWS)
        assert torch.allclose(grads.flatten(1), expected[name], atol=1e-6 * expected[name].norm().item()), name
        norms = squared_norms(slot, contributions, ROWS)
        assert torch.allclose(norms, expected[name].square().sum(1), rtol=1e-5), name


class Chain(nn.Module):
    """Three layers one after the other, of which the one in the middle is called twice, perhaps with checkpoints."""

    def __init__(self, reentrant: bool | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.twice, self.last = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 4)
        self.reentrant = reentrant
        self.events: list[str] = []
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sin(self.first(x))
        x.register_hook(lambda _: self.events.append("the gradient nears the first layer"))
        for _ in range(2):
            if self.reentrant is None:
                x = torch.tanh(self.twice(x))
            else:
                x = torch.tanh(checkpoint(self.twice, x, use_reentrant=self.reentrant))
        return self.last(x)


def test_a_parameter_is_handed_out_once_as_soon_as_its_last_call_is_behind() -> None:
    model, x = Chain(), randn(ROWS, 6)

    def values(rows: slice) -> Tensor:
        return model(x[rows]).square().sum(1)

    def receive(slot: ParameterSlot, contributions: list[Contribution]) -> None:
        model.events.append(f"{len(contributions)} of {slot.name}")

    GradientEngine(model).for_each_parameter(values, num_rows=ROWS, num_groups=ROWS, receive=receive)
    assert model.events == [
        "1 of last.weight",
        "1 of last.bias",
        "2 of twice.weight",
        "2 of twice.bias",
        "the gradient nears the first layer",
        "1 of first.weight",
        "1 of first.bias",
    ]


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_layer_that_is_repeated_in_checkpoints_is_handed_out_once_and_whole(reentrant: bool) -> None:
    model, x, found = Chain(reentrant), randn(6, 6), dict[str, Tensor]()

    def values(rows: slice) -> Tensor:
        return model(x[rows]).square().sum(1)

    engine = GradientEngine(model)

    def receive(slot: ParameterSlot, contributions: list[Contribution]) -> None:
        assert slot.name not in found
        found[slot.name] = row_gradients(slot, contributions, 3).flatten(1)

    engine.for_each_parameter(values, num_rows=6, num_groups=3, receive=receive)
    plain = Chain()  # the same weights without checkpoints
    whole = one_at_a_time(plain, lambda rows: plain(x[rows]).square().sum(1), 3, 2)
    for name, expected in split(plain, whole):
        assert torch.allclose(found[name], expected, atol=1e-6 * expected.norm().item()), name


def test_norms_of_every_parameter_of_a_unet_are_those_of_autograd() -> None:
    model = make_unet(num_class_embeds=3)
    x, times, labels = randn(ROWS, 1, 8, 8), torch.arange(ROWS) * 30 + 3, torch.arange(ROWS)

    def values(rows: slice) -> Tensor:
        return model(x[rows], times[rows], class_labels=labels[rows]).sample.square().flatten(1).mean(1)

    assert_norms(model, values)


def assert_norms(model: nn.Module, values: RowValues) -> None:
    """To 1e-5 of each norm, or 1e-6 of the whole gradient's: key biases of attention have a gradient of zero."""
    expected = one_at_a_time(model, values, ROWS, 1)
    engine = GradientEngine(model)
    collected = collect(engine, values)
    forms = set()
    for name, wanted in split(model, expected):
        (first, *_), slot = collected[name], engine.slots[name]
        forms.add(isinstance(first, Outer) and _is_short(slot, first.g, first.conv))
        found = squared_norms(slot, collected[name], ROWS).sqrt()
        bound = torch.maximum(1e-5 * wanted.norm(dim=1), 1e-6 * expected.norm(dim=1))
        assert ((found - wanted.norm(dim=1)).abs() <= bound).all(), name
    assert forms == {True, False}, "one of the two forms was not tried"


def test_a_featurizer_gives_the_norms_of_every_draw() -> None:
    model = Denoiser(SmallDenoiser(), make_scheduler())
    images, ids, draws = make_images(2), [0, 1], StratifiedDraws(num_draws=4, bins=2)
    times, noise = draws.timesteps(ids, 100), draws.noise(ids, (1, 8, 8), torch.device("cpu"))
    featurizer = Featurizer(model, measurement=TrainingLoss(), projector=Identity())
    found = featurizer.norms(images, times, noise)
    assert found.shape == (2, 2, 4, len(featurizer.engine.slots))
    x_t = model.scheduler.add_noise(images[1:], noise[1:, 1, 2], times[1:, 1, 2])
    loss = F.mse_loss(model.network(x_t, times[1:, 1, 2]), noise[1:, 1, 2])
    expected = torch.stack([grad.norm() for grad in torch.autograd.grad(loss, list(model.network.parameters()))])
    assert torch.allclose(found[1, 1, 2], expected, rtol=1e-5)
    assert list(featurizer.engine.slots) == [name for name, _ in model.network.named_parameters()]
