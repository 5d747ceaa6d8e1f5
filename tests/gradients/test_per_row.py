"""Parameters that a network uses by itself are measured row by row, whatever its code does with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import randn
from diffusers.models.normalization import FP32LayerNorm
from models import assert_same_gradients, make_images, make_unet, one_at_a_time, per_sample
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from journey.errors import CoverageError, GradientCheckError
from journey.gradients.check import check_gradients
from journey.gradients.engine import GradientEngine
from journey.gradients.memory import is_out_of_memory
from journey.gradients.passes import kept_bytes
from journey.gradients.per_row import Meetings, PerRow, expanded
from journey.gradients.rows import row_gradients
from journey.projectors.exact import Identity

TOKENS, WIDTH, ROWS = 5, 4, 6


class Tokens(nn.Module):
    """Reads and writes tokens [num_rows, 5, 4], with a part in the middle that uses a parameter ``p`` of its own."""

    def __init__(self, middle: Callable[[Any, Tensor], Tensor], *shape: int, **parts: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.middle = middle
        self.p = nn.Parameter(0.5 * torch.randn(shape))
        for name, part in parts.items():
            setattr(self, name, part)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self, torch.tanh(self.first(x))))


def scale_shift(m: Any, h: Tensor) -> Tensor:
    """As of PixArt and SANA: a table [6, width] plus what the time makes, in six parts."""
    parts = m.p[None] + h.mean(1)[:, None]
    shift, scale, gate, *_ = parts.chunk(6, dim=1)
    return h + gate * torch.tanh(h * (1 + scale) + shift)


def in_place(m: Any, h: Tensor) -> Tensor:
    h = h * 2
    h += m.p
    return h


def ours(m: Any, h: Tensor) -> Tensor:
    """A norm of the network's own."""
    return h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-5) * m.p.to(h.dtype)


def among(m: Any, h: Tensor) -> Tensor:
    """Tokens that take part, and are left away again."""
    h = torch.cat([m.p.expand(len(h), -1, -1), h], 1)
    return F.scaled_dot_product_attention(h, h, h)[:, m.p.shape[1] :]


def classes(m: Any, h: Tensor) -> Tensor:
    return h + m.p[(h[:, 0, 0] > 0).long()][:, None]


def recomputed(m: Any, h: Tensor) -> Tensor:
    return checkpoint(lambda y: torch.tanh(y * m.p).exp(), h, use_reentrant=False)


compiled = torch.compile(lambda h, p: h * p.sin(), backend="eager")


SERVED: dict[str, Callable[[], Tokens]] = {
    "scale_shift_table": lambda: Tokens(scale_shift, 6, WIDTH),
    "register tokens, expanded": lambda: Tokens(among, 1, 3, WIDTH),
    "register tokens, repeated": lambda: Tokens(
        lambda m, h: torch.cat([h, m.p.repeat(h.shape[0], 1, 1)], 1).cumsum(1)[:, -TOKENS:], 1, 3, WIDTH
    ),
    "register tokens, broadcast": lambda: Tokens(
        lambda m, h: torch.cat([h, torch.broadcast_to(m.p, (len(h), 3, WIDTH))], 1).cumsum(1)[:, -TOKENS:], 3, WIDTH
    ),
    "positions": lambda: Tokens(lambda m, h: h + m.p[:, :TOKENS], 1, 9, WIDTH),
    "positions, as many as rows": lambda: Tokens(lambda m, h: h.cumsum(1) + m.p[1:], ROWS, WIDTH),
    "positions between pixels": lambda: Tokens(
        lambda m, h: h + F.interpolate(m.p, (1, TOKENS), mode="bilinear")[:, :, 0].transpose(1, 2), 1, WIDTH, 2, 3
    ),
    "a table of two vectors by the network's own choice": lambda: Tokens(classes, 2, WIDTH),
    "padding": lambda: Tokens(lambda m, h: torch.where(h[..., :1] > 0, h, m.p), TOKENS, WIDTH),
    "one number": lambda: Tokens(lambda m, h: h * m.p.exp() + m.p),
    "a scale of channels": lambda: Tokens(lambda m, h: h + m.p * torch.sin(h), WIDTH),
    "a norm of its own": lambda: Tokens(ours, WIDTH),
    "weights of its own": lambda: Tokens(lambda m, h: F.linear(F.linear(h, m.p), m.p.T), 3, WIDTH),
    "a convolution of its own": lambda: Tokens(
        lambda m, h: F.conv1d(h.transpose(1, 2), m.p, padding=1).transpose(1, 2), WIDTH, WIDTH, 3
    ),
    "in place": lambda: Tokens(in_place, WIDTH),
    "a gate behind another": lambda: Tokens(lambda m, h: h * m.p.softmax(0).unsqueeze(0).square(), TOKENS, 1),
    "under checkpointing": lambda: Tokens(recomputed, WIDTH),
    "in its own dtype": lambda: Tokens(lambda m, h: h.type_as(m.p) + m.p.to(h), WIDTH),
    "beside a tensor of its kind": lambda: Tokens(
        lambda m, h: torch.cat([m.p.new_zeros(len(h), 1, WIDTH), h * m.p], 1).cumsum(1)[:, 1:], WIDTH
    ),
    "a bias of attention": lambda: Tokens(
        lambda m, h: F.scaled_dot_product_attention(
            *[h[:, None]] * 3,
            attn_mask=m.p[torch.arange(TOKENS)[:, None] - torch.arange(TOKENS)].permute(2, 0, 1)[None],
        )[:, 0],
        9,
        1,
    ),
    "in a compiled function": lambda: Tokens(lambda m, h: compiled(h, m.p), WIDTH),
    "once alone and once with the batch": lambda: Tokens(lambda m, h: h * m.p.norm() + m.p, WIDTH),
    "in a list": lambda: Tokens(
        lambda m, h: h * m.several[0] + m.several[1], several=nn.ParameterList([torch.randn(WIDTH), torch.randn(1)])
    ),
    "not at all": lambda: Tokens(lambda m, h: h, WIDTH),
}


def squared_error(model: nn.Module, x: Tensor) -> Callable[[slice], Tensor]:
    return lambda rows: (model(x[rows]) - randn(*x.shape, seed=11)[rows]).square().flatten(1).mean(1)


@pytest.mark.parametrize(("groups", "rows_per_group"), [(ROWS, 1), (3, 2), (1, 1)])
@pytest.mark.parametrize("name", SERVED)
def test_gradients_are_autograds_one_at_a_time(name: str, groups: int, rows_per_group: int) -> None:
    model = SERVED[name]()
    values = squared_error(model, randn(ROWS, TOKENS, WIDTH)[: groups * rows_per_group])
    found = per_sample(model, values, groups, rows_per_group)
    assert_same_gradients(model, found, one_at_a_time(model, values, groups, rows_per_group))
    assert not any("p" in vars(module) for module in model.modules()), "a value was left in a parameter's place"
    check_gradients(GradientEngine(model), found, values, num_rows=groups * rows_per_group, projector=Identity())


@pytest.mark.parametrize("name", SERVED)
def test_nothing_of_it_is_left_to_autograd(name: str) -> None:
    model = SERVED[name]()
    values = squared_error(model, randn(ROWS, TOKENS, WIDTH))
    engine = GradientEngine(model, uncovered="autograd")
    features = torch.zeros(ROWS, engine.num_parameters)
    engine.add_gradients_(features, values, num_rows=ROWS, projector=Identity())
    assert_same_gradients(model, features, one_at_a_time(model, values, ROWS, 1))
    assert not engine._coverage.uncovered


def test_gradients_come_by_parameter_too() -> None:
    model = SERVED["scale_shift_table"]()
    values = squared_error(model, randn(ROWS, TOKENS, WIDTH))
    found: dict[str, Tensor] = {}
    GradientEngine(model).for_each_parameter(
        values,
        num_rows=ROWS,
        num_groups=ROWS,
        receive=lambda slot, made: found.update({slot.name: row_gradients(slot, made, ROWS).flatten(1)}),
    )
    whole = torch.cat([found[name] for name, _ in model.named_parameters()], 1)
    assert_same_gradients(model, whole, one_at_a_time(model, values, ROWS, 1))


def tokens_first(m: Any, h: Tensor) -> Tensor:
    return (h.transpose(0, 1) + m.p).transpose(0, 1)


def folded(m: Any, h: Tensor) -> Tensor:
    return (h.flatten(0, 1) * m.p).view_as(h)


def chosen(m: Any, h: Tensor) -> Tensor:
    h = h.clone()
    h[h[..., 0] > 0] = m.p
    return h


def projected(m: Any, h: Tensor) -> Tensor:
    return h + m.first(m.p)


def stacked(m: Any, h: Tensor) -> Tensor:
    return h + torch.stack([m.p for _ in h])


class Doubling(torch.autograd.Function):
    """An operation that torch cannot do for every row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 2 * g


class Adding(torch.autograd.Function):
    """The same, with the batch in it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: Tensor) -> Tensor:
        return x + p

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        return g, g.sum((0, 1))


class Kernel(Doubling):
    """The same by a kernel, which sees numbers alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        with torch._C.DisableTorchFunctionSubclass():
            return 2 * x


REFUSED: dict[str, tuple[Callable[[], Tokens], str]] = {
    "tokens first": (
        lambda: Tokens(tokens_first, WIDTH),
        "add cannot be done row by row: it finds the batch elsewhere than in the first dimension",
    ),
    "tokens of all rows": (
        lambda: Tokens(folded, WIDTH),
        "mul cannot be done row by row: it finds the batch elsewhere",
    ),
    "some tokens": (lambda: Tokens(chosen, WIDTH), "__setitem__ cannot be done row by row"),
    "through a layer": (lambda: Tokens(projected, TOKENS, WIDTH), r"layer 'first' got an input of shape \[5, 4\]"),
    "tokens first, from outside": (
        lambda: Tokens(lambda m, h: h + (h.detach()[None, :, 0] + m.p[:, None]).sin().mean(0)[:, None], 7, WIDTH),
        "add cannot be done row by row: it finds the batch elsewhere",
    ),
    "by its name": (
        lambda: Tokens(lambda m, h: h * dict(m.named_parameters())["p"], WIDTH),
        "gradient rule for p, and the network's code does not take them from their modules",
    ),
    "stacked": (lambda: Tokens(stacked, TOKENS, WIDTH), "it does not keep the batch as its first dimension"),
    "a function of its own": (
        lambda: Tokens(lambda m, h: h + Doubling.apply(m.p), WIDTH),
        "p, and an autograd.Function uses them",
    ),
    "a function of the batch and it": (
        lambda: Tokens(lambda m, h: Adding.apply(h, m.p), WIDTH),
        "p, and an autograd.Function uses them|past torch's",
    ),
    "a kernel of its own": (
        lambda: Tokens(lambda m, h: h + Kernel.apply(m.p), WIDTH),
        "p, and an operation of the network's own uses them",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_tell_rows_apart_is_refused_or_left_to_autograd(name: str) -> None:
    make, message = REFUSED[name]
    model = make()
    values = squared_error(model, randn(ROWS, TOKENS, WIDTH))
    with pytest.raises(CoverageError, match=f'{message}.*uncovered="autograd"'):
        per_sample(model, values, ROWS, 1)
    assert "p" not in vars(model)
    found = per_sample(model, values, ROWS, 1, uncovered="autograd")
    assert_same_gradients(model, found, one_at_a_time(model, values, ROWS, 1))


POSITIONS = randn(3, 1, seed=5)
COINCIDENT: dict[str, Callable[[], Tokens]] = {
    "a table that has as many rows as a batch": lambda: Tokens(
        lambda m, h: h[:, :3] + (m.p + randn(3, WIDTH, seed=4)), 1, 3, WIDTH
    ),
    "positions times frequencies": lambda: Tokens(lambda m, h: h[:, :3] * (POSITIONS * m.p).cos(), WIDTH),
    "as many tokens as rows": lambda: Tokens(lambda m, h: h[:, :3] + m.p.expand(3, WIDTH), 1, WIDTH),
    "several tokens as rows": lambda: Tokens(lambda m, h: h[:, :3] + m.p.repeat(3, 1), 1, WIDTH),
}


@pytest.mark.parametrize("name", COINCIDENT)
def test_what_has_as_many_rows_as_a_later_batch_is_not_taken_for_it(name: str) -> None:
    model, x = COINCIDENT[name](), randn(ROWS, TOKENS, WIDTH)
    target = randn(ROWS, 3, WIDTH, seed=11)
    engine = GradientEngine(model)
    for begin, end in ((0, 5), (2, 5), (0, 6), (3, 6)):

        def values(rows: slice, begin: int = begin, end: int = end) -> Tensor:
            return (model(x[begin:end][rows]) - target[begin:end][rows]).square().flatten(1).mean(1)

        features = torch.zeros(end - begin, engine.num_parameters)
        engine.add_gradients_(features, values, num_rows=end - begin, projector=Identity())
        assert_same_gradients(model, features, one_at_a_time(model, values, end - begin, 1))


def test_images_of_several_sizes_may_take_different_ways() -> None:
    """Positions are interpolated where there are others than the network has."""

    def positions(m: Any, h: Tensor) -> Tensor:
        p = m.p
        if h.shape[1] != p.shape[1]:
            p = F.interpolate(p.transpose(1, 2), h.shape[1], mode="linear").transpose(1, 2)
        return scale_shift(m.more, h + p)

    model = Tokens(positions, 1, TOKENS, WIDTH, more=Tokens(scale_shift, 6, WIDTH))
    for part in (model.more.first, model.more.last):
        part.requires_grad_(False)
    engine = GradientEngine(model)
    for rows, tokens in ((4, TOKENS), (5, 7), (7, TOKENS), (3, 7), (7, 7)):
        values = squared_error(model, randn(rows, tokens, WIDTH))
        features = torch.zeros(rows, engine.num_parameters)
        engine.add_gradients_(features, values, num_rows=rows, projector=Identity())
        assert_same_gradients(model, features, one_at_a_time(model, values, rows, 1))


@pytest.mark.parametrize("name", COINCIDENT)
def test_in_the_first_batch_it_is_found(name: str) -> None:
    model, x = COINCIDENT[name](), randn(3, TOKENS, WIDTH)
    engine = GradientEngine(model)

    def values(rows: slice) -> Tensor:
        return (model(x[rows]) - randn(3, 3, WIDTH, seed=11)[rows]).square().flatten(1).mean(1)

    def measure() -> None:
        features = torch.zeros(3, engine.num_parameters)
        engine.add_gradients_(features, values, num_rows=3, projector=Identity())
        check_gradients(engine, features, values, num_rows=3, projector=Identity())

    with pytest.raises((CoverageError, GradientCheckError), match="for p"):
        measure()
    found = per_sample(model, values, 3, 1, uncovered="autograd")
    assert_same_gradients(model, found, one_at_a_time(model, values, 3, 1))


def test_norms_in_float32_of_coarser_networks_have_the_rule_of_norms() -> None:
    model = Tokens(lambda m, h: m.norm(h) + m.p, norm=FP32LayerNorm(WIDTH))
    values = squared_error(model, randn(ROWS, TOKENS, WIDTH))
    engine = GradientEngine(model)
    assert set(engine._coverage.per_row) == {"p"}
    assert_same_gradients(model, per_sample(model, values, ROWS, 1), one_at_a_time(model, values, ROWS, 1))


def test_a_value_for_every_row_looks_like_the_parameter() -> None:
    model = Tokens(lambda m, h: h, TOKENS, WIDTH)
    with expanded(model, {"p": model.p}, Meetings(), ROWS, lambda *_: None):
        assert isinstance(model.p, PerRow)
        assert (model.p.shape, model.p.dtype, model.p.device) == ((TOKENS, WIDTH), torch.float32, torch.device("cpu"))
        assert model.p.numel() == TOKENS * WIDTH
        assert [type(p) for _, p in model.named_parameters()].count(nn.Parameter) == 5
        assert torch.equal(model.p.sin().rows.detach(), model.state_dict()["p"].sin().expand(ROWS, -1, -1))
    assert isinstance(model.p, nn.Parameter)


@pytest.mark.parametrize("kind", ["LoKrConfig", "IA3Config", "HRAConfig"])
def test_adapters_of_peft_that_are_no_layers_are_measured(kind: str) -> None:
    peft = pytest.importorskip("peft")
    more = {"feedforward_modules": []} if kind == "IA3Config" else {"r": 2}
    network = peft.inject_adapter_in_model(getattr(peft, kind)(target_modules=["to_q", "to_v"], **more), make_unet())
    for i, (_, p) in enumerate(network.eval().named_parameters()):
        if p.requires_grad:
            p.data += 0.1 * randn(*p.shape, seed=i)
    times = torch.tensor([3, 50, 99])

    def values(rows: slice) -> Tensor:
        return network(make_images(3)[rows], times[rows]).sample.square().flatten(1).mean(1)

    assert_same_gradients(network, per_sample(network, values, 3, 1), one_at_a_time(network, values, 3, 1))


def test_running_out_of_memory_is_not_taken_for_a_missing_rule() -> None:
    model = Tokens(lambda m, h: h + m.p.expand(2**45, WIDTH).contiguous()[0], WIDTH)
    with pytest.raises(RuntimeError) as caught:
        per_sample(model, squared_error(model, randn(ROWS, TOKENS, WIDTH)), ROWS, 1)
    assert is_out_of_memory(caught.value)


def test_what_every_row_needs_counts_among_what_is_kept() -> None:
    model = Tokens(lambda m, h: h + m.p, 100, TOKENS, WIDTH).requires_grad_(False)
    model.middle = lambda m, h: h + m.p[0]
    x = randn(1, TOKENS, WIDTH)
    before = kept_bytes(model, lambda: model(x).sum())
    model.p.requires_grad_(True)
    assert kept_bytes(model, lambda: model(x).sum()) - before == model.p.nbytes
