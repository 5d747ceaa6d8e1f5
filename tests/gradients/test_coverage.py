"""What layer rules cannot serve is refused by name, or left to autograd: no parameter is dropped."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import randn
from models import Images, assert_same_gradients, make_images, make_scheduler, make_unet, one_at_a_time, per_sample
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import journey
from journey.errors import CoverageError, GradientCheckError
from journey.gradients.check import check_gradients
from journey.gradients.engine import GradientEngine
from journey.projectors.exact import Identity
from journey.projectors.random import CountSketch

TOKENS, WIDTH, ROWS = 5, 4, 6


class Tokens(nn.Module):
    """Reads and writes tokens [num_rows, 5, 4] around an odd part in the middle."""

    def __init__(self, middle: Callable[[Tokens, Tensor], Tensor], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.middle = middle
        for name, part in parts.items():
            setattr(self, name, part)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self, torch.tanh(self.first(x))))


class Dora(nn.Module):
    """A stand-in for peft's DoRA layer: feeds lora_A an identity to learn the norm of what the weights add up to."""

    def __init__(self) -> None:
        super().__init__()
        self.base_layer = nn.Linear(WIDTH, WIDTH)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(WIDTH, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, WIDTH, bias=False)})
        self.lora_magnitude_vector = nn.ModuleDict({"default": nn.Linear(WIDTH, 1, bias=False)})
        self.base_layer.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.lora_A["default"], self.lora_B["default"]
        whole = self.base_layer.weight + b(a(torch.eye(WIDTH))).T
        scale = self.lora_magnitude_vector["default"].weight[0] / whole.norm(dim=1)
        return scale * (F.linear(x, self.base_layer.weight) + b(a(x)))


def experts(model: Any, h: Tensor) -> Tensor:
    """Rows with a positive first number go to one layer, the others to another."""
    chosen, out = h[:, 0, 0] > 0, torch.zeros_like(h)
    out[chosen], out[~chosen] = model.a(h[chosen]), model.b(h[~chosen])
    return out


def positions(shape: tuple[int, ...]) -> Callable[[Any, Tensor], Tensor]:
    return lambda m, h: h + m.odd(torch.arange(TOKENS).view(shape))


def tied(model: Any, h: Tensor) -> Tensor:
    return F.linear(model.odd(h), model.odd.weight.T)


# What is in the middle; which of its parameters rules cannot serve.
ODD: dict[str, Callable[[], Tokens]] = {
    "attention": lambda: Tokens(lambda m, h: h + m.odd(h, h, h)[0], odd=nn.MultiheadAttention(4, 2, batch_first=True)),
    "encoder layer": lambda: Tokens(
        lambda m, h: m.odd(h), odd=nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, dropout=0.0)
    ),
    "LSTM": lambda: Tokens(lambda m, h: m.odd(h)[0], odd=nn.LSTM(4, 4, batch_first=True)),
    "positions once for the batch": lambda: Tokens(positions((TOKENS,)), odd=nn.Embedding(TOKENS, WIDTH)),
    "positions of one row": lambda: Tokens(positions((1, TOKENS)), odd=nn.Embedding(TOKENS, WIDTH)),
    "coordinates, as many as rows": lambda: Tokens(
        lambda m, h: h * (1 + m.odd(randn(ROWS, 2)).mean(0)), odd=nn.Linear(2, WIDTH)
    ),
    "tokens first": lambda: Tokens(lambda m, h: m.odd(h.transpose(0, 1)).transpose(0, 1), odd=nn.Linear(WIDTH, WIDTH)),
    "weight used again by a functional": lambda: Tokens(tied, odd=nn.Linear(WIDTH, WIDTH)),
    "forward of the class": lambda: Tokens(lambda m, h: nn.Linear.forward(m.odd, h), odd=nn.Linear(WIDTH, WIDTH)),
    "rows sent different ways": lambda: Tokens(experts, a=nn.Linear(WIDTH, WIDTH), b=nn.Linear(WIDTH, WIDTH)),
    "inside vmap": lambda: Tokens(lambda m, h: torch.vmap(m.odd)(h), odd=nn.Linear(WIDTH, WIDTH)),
    "positions under checkpointing": lambda: Tokens(
        lambda m, h: checkpoint(lambda y: torch.tanh(positions((1, TOKENS))(m, m.more(y))), h, use_reentrant=False),
        odd=nn.Embedding(TOKENS, WIDTH),
        more=nn.Linear(WIDTH, WIDTH),
    ),
    "weight norm": lambda: Tokens(
        lambda m, h: m.odd(h), odd=nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH))
    ),
    "DoRA": lambda: Tokens(lambda m, h: m.odd(h), odd=Dora()),
}


def squared_error(model: nn.Module, x: Tensor) -> Callable[[slice], Tensor]:
    return lambda rows: (model(x[rows]) - randn(*x.shape, seed=11)[rows]).square().flatten(1).mean(1)


def features_of(engine: GradientEngine, values: Callable[[slice], Tensor], num_rows: int, groups: int) -> Tensor:
    features = torch.zeros(groups, engine.num_parameters)
    engine.add_gradients_(features, values, num_rows=num_rows, projector=Identity())
    return features


@pytest.mark.parametrize("rows_per_group", [1, 2])
@pytest.mark.parametrize("name", ODD)
def test_autograd_reaches_every_parameter_unchecked(name: str, rows_per_group: int) -> None:
    model = ODD[name]()
    values, groups = squared_error(model, randn(ROWS, TOKENS, WIDTH)), ROWS // rows_per_group
    expected = one_at_a_time(model, values, groups, rows_per_group)
    found = per_sample(model, values, groups, rows_per_group, uncovered="autograd")
    assert_same_gradients(model, found, expected)


@pytest.mark.parametrize("name", ODD)
def test_what_autograd_reaches_passes_the_check(name: str) -> None:
    model = ODD[name]()
    values = squared_error(model, randn(ROWS, TOKENS, WIDTH))
    engine = GradientEngine(model, uncovered="autograd")
    features = features_of(engine, values, ROWS, ROWS)
    check_gradients(engine, features, values, num_rows=ROWS, projector=Identity())


@pytest.mark.parametrize("name", [name for name in ODD if name not in ("LSTM", "weight norm")])
def test_without_autograd_it_is_refused_or_found_by_the_check(name: str) -> None:
    model = ODD[name]()
    values = squared_error(model, randn(ROWS, TOKENS, WIDTH))

    def measure() -> None:
        engine = GradientEngine(model)
        features = features_of(engine, values, ROWS, ROWS)
        check_gradients(engine, features, values, num_rows=ROWS, projector=Identity())

    with pytest.raises((CoverageError, GradientCheckError), match='uncovered="autograd"'):
        measure()


def test_an_output_projection_that_attention_never_calls_has_no_rule() -> None:
    with pytest.raises(CoverageError, match=r"no gradient rule for odd\.out_proj\.weight, odd\.out_proj\.bias"):
        GradientEngine(ODD["attention"](), select=lambda name: "out_proj" in name)


def test_what_autograd_does_costs_nothing_for_the_layers_whose_rules_apply() -> None:
    model = ODD["positions of one row"]()
    engine = GradientEngine(model, uncovered="autograd")
    features_of(engine, squared_error(model, randn(ROWS, TOKENS, WIDTH)), ROWS, ROWS)
    assert engine._coverage.uncovered == ["odd.weight"]


@pytest.mark.parametrize("name", ["positions of one row", "rows sent different ways"])
def test_what_only_a_later_batch_shows_is_left_to_autograd_too(name: str) -> None:
    model = ODD[name]()
    engine = GradientEngine(model, uncovered="autograd")
    x = randn(ROWS, TOKENS, WIDTH)
    with torch.no_grad():
        order = model.first(x)[:, 0, 0].argsort()
    x = x[order]  # the first rows go one way
    for begin, end in ((0, 1), (0, 2), (0, ROWS)):
        values = squared_error(model, x[begin:end])
        expected = one_at_a_time(model, values, end - begin, 1)
        assert_same_gradients(model, features_of(engine, values, end - begin, end - begin), expected)


def test_gradients_by_parameter_reach_all_of_them_too() -> None:
    model = ODD["attention"]()
    values = squared_error(model, randn(ROWS, TOKENS, WIDTH))
    found: dict[str, Tensor] = {}
    GradientEngine(model, uncovered="autograd").for_each_parameter(
        values,
        num_rows=ROWS,
        num_groups=ROWS,
        receive=lambda slot, contributions: found.update({slot.name: torch.ones(len(contributions))}),
    )
    assert set(found) == {name for name, _ in model.named_parameters()}


def test_a_copy_reaches_what_the_original_does() -> None:
    model = ODD["attention"]()
    values = squared_error(model, randn(ROWS, TOKENS, WIDTH))
    engine = GradientEngine(model, uncovered="autograd")
    expected = features_of(engine, values, ROWS, ROWS)
    other = copy.deepcopy(engine)
    assert torch.equal(features_of(other, squared_error(other.model, randn(ROWS, TOKENS, WIDTH)), ROWS, ROWS), expected)


def test_a_complex_parameter_is_refused_and_may_be_left_out() -> None:
    def filtered(model: Any, h: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(h, dim=-1) * model.filter, n=WIDTH, dim=-1)

    model = Tokens(filtered, filter=nn.Parameter(torch.randn(3, dtype=torch.complex64)))
    with pytest.raises(CoverageError, match=r"parameters must be real, got complex filter, .* leave them out"):
        GradientEngine(model, uncovered="autograd")
    model.filter.requires_grad_(False)
    values = squared_error(model, randn(ROWS, TOKENS, WIDTH))
    assert_same_gradients(model, per_sample(model, values, ROWS, 1), one_at_a_time(model, values, ROWS, 1))


@pytest.mark.parametrize("uncovered", ["error", "autograd"])
def test_adapters_that_have_no_part_in_the_output_are_refused_with_what_to_do(uncovered: str) -> None:
    model = Tokens(lambda m, h: h, adapter=nn.Linear(WIDTH, WIDTH))
    engine = GradientEngine(model, select=lambda name: "adapter" in name, uncovered=uncovered)
    values = squared_error(model, randn(ROWS, TOKENS, WIDTH))
    with pytest.raises(CoverageError, match=r"no measured parameter reaches .*adapter\.weight.*unfuse_lora\(\)"):
        features_of(engine, values, ROWS, ROWS)
    with pytest.raises(CoverageError, match=r"unfuse_lora\(\)"):
        engine.for_each_parameter(values, num_rows=ROWS, num_groups=ROWS, receive=lambda *_: None)


def test_real_adapters_that_are_fused_or_magnitudes_that_are_learned_are_understood(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    adapters = peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], use_dora=True)
    network = peft.inject_adapter_in_model(adapters, make_unet())
    for name, p in network.named_parameters():
        if "lora_B" in name:
            p.data = 0.3 * randn(*p.shape, seed=len(name))
    values_at = torch.tensor([3, 50, 99])

    def values(rows: slice) -> Tensor:
        return network(make_images(3)[rows], values_at[rows]).sample.square().flatten(1).mean(1)

    found = per_sample(network.eval(), values, 3, 1, uncovered="autograd")
    assert_same_gradients(network, found, one_at_a_time(network, values, 3, 1))
    for module in network.modules():
        if hasattr(module, "lora_magnitude_vector"):
            module.merge()
    model = (network, make_scheduler())
    with pytest.raises(CoverageError, match=r"no measured parameter reaches .*unfuse_lora\(\)"):
        journey.featurize(model, Images(make_images(3)), tmp_path, uncovered="autograd", progress=False)


@pytest.mark.parametrize("projector", [None, CountSketch(64)], ids=["whitened", "sketched"])
def test_a_network_with_attention_and_positions_is_measured_to_the_end(tmp_path: Path, projector: Any) -> None:
    class Denoising(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.config = SimpleNamespace(in_channels=1, sample_size=8)
            self.inward, self.outward = nn.Linear(8, 8), nn.Linear(8, 8)
            self.positions, self.attention = nn.Embedding(8, 8), nn.MultiheadAttention(8, 2, batch_first=True)
            self.eval()

        def forward(self, x: Tensor, times: Tensor) -> Tensor:
            h = self.inward(x[:, 0]) + self.positions(torch.arange(8)) + times.view(-1, 1, 1) / 100
            return self.outward(h + self.attention(h, h, h)[0])[:, None]

    model = (Denoising(), make_scheduler())
    features = journey.featurize(
        model, Images(make_images(5)), tmp_path, uncovered="autograd", projector=projector, progress=False
    )
    reopened = journey.open_features(tmp_path, model, uncovered="autograd")
    trajectory = journey.record(model, num_inference_steps=2, progress=False)
    scores = [journey.score(found, trajectory, num_draws=2, progress=False).values for found in (features, reopened)]
    assert torch.equal(*scores)
    assert scores[0].abs().min() > 0
