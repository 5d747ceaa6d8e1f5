"""Per-sample gradients of whole models are those of autograd, and models that would give others are refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from cases import randn
from models import SmallDenoiser, assert_same_gradients, make_unet, one_at_a_time, per_sample, split
from torch import Tensor, nn

from journey.errors import CoverageError, GradientCheckError, InPlaceError
from journey.gradients.check import check_gradients
from journey.gradients.compare import tolerance
from journey.gradients.engine import GradientEngine
from journey.projectors.exact import Identity
from journey.projectors.random import CountSketch

NUM_GROUPS = 3
Values = Callable[[slice], Tensor]


def values_of(model: nn.Module, *inputs: Tensor, **named: Tensor) -> Values:
    """A squared error per row against a random target."""

    def values(rows: slice) -> Tensor:
        found = model(*(x[rows] for x in inputs), **{name: x[rows] for name, x in named.items()})
        output = found if isinstance(found, Tensor) else found.sample
        target = randn(len(inputs[0] if inputs else next(iter(named.values()))), *output.shape[1:], seed=11)
        return (output - target[rows]).square().flatten(1).mean(1)

    return values


def assert_matches_autograd(model: nn.Module, values: Values, rows_per_group: int = 2, **options: object) -> None:
    """Compare all parameters, and let the engine's own check agree."""
    expected = one_at_a_time(model, values, NUM_GROUPS, rows_per_group)
    assert_same_gradients(model, per_sample(model, values, NUM_GROUPS, rows_per_group, **options), expected)
    check(model, values, rows_per_group, **options)


def check(model: nn.Module, values: Values, rows_per_group: int = 2, **options: object) -> None:
    """Run the engine and its check."""
    engine, num_rows = GradientEngine(model, **options), NUM_GROUPS * rows_per_group
    features = torch.zeros(NUM_GROUPS, engine.num_parameters)
    engine.add_gradients_(features, values, num_rows=num_rows, projector=Identity())
    check_gradients(engine, features, values, num_rows=num_rows, projector=Identity())


class Stack(nn.Module):
    """Modules one after the other, with ``forward`` given as a function of the module and its inputs."""

    def __init__(self, run: Callable[..., Tensor], **modules: nn.Module | nn.Parameter) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.run = run
        for name, module in modules.items():
            setattr(self, name, module)
        self.eval()

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        return self.run(self, *args, **kwargs)


@pytest.mark.parametrize(
    ("changes", "rows_per_group"),
    [
        ({"num_class_embeds": 3}, 3),
        ({"resnet_time_scale_shift": "scale_shift", "downsample_type": "resnet", "upsample_type": "resnet"}, 1),
        ({"time_embedding_type": "learned", "num_train_timesteps": 100}, 1),
    ],
    ids=["class embedding, several draws", "scale and shift", "learned times"],
)
def test_every_parameter_of_a_unet_has_the_gradients_of_autograd(
    changes: dict[str, object], rows_per_group: int
) -> None:
    model = make_unet(**changes)
    num_rows = NUM_GROUPS * rows_per_group
    inputs: dict[str, Tensor] = {"sample": randn(num_rows, 1, 8, 8), "timestep": torch.arange(num_rows) * 7 + 3}
    if "num_class_embeds" in changes:
        inputs["class_labels"] = torch.arange(num_rows) % 3
    values = values_of(model, **inputs)
    expected = one_at_a_time(model, values, NUM_GROUPS, rows_per_group)
    assert_same_gradients(model, per_sample(model, values, NUM_GROUPS, rows_per_group), expected)
    norms = {name: grad.norm() for name, grad in split(model, expected)}
    for name in ("time_embedding.linear_1.weight", "mid_block.attentions.0.to_q.weight"):
        assert norms[name] > 1e-4 * expected.norm(), f"{name} has no gradient here, so nothing was proved about it"


def test_gradients_do_not_depend_on_the_other_samples_of_the_batch() -> None:
    model, x, times = SmallDenoiser(), randn(6, 1, 8, 8), torch.arange(6) * 9
    whole = per_sample(model, values_of(model, x, times), 6, 1)
    target = randn(6, 1, 8, 8, seed=11)

    def alone(rows: slice) -> Tensor:
        return (model(x[4:5][rows], times[4:5][rows]) - target[4:5][rows]).square().flatten(1).mean(1)

    assert_same_gradients(model, per_sample(model, alone, 1, 1), whole[4:5])


def test_a_branch_that_does_not_depend_on_the_image_is_measured() -> None:
    def run(m: Stack, x: Tensor, t: Tensor) -> Tensor:
        return m.outer(torch.tanh(m.inner(x) + m.second(F.silu(m.first(t)))))

    model = Stack(run, inner=nn.Linear(4, 6), first=nn.Linear(2, 5), second=nn.Linear(5, 6), outer=nn.Linear(6, 3))
    assert_matches_autograd(model, values_of(model, randn(6, 4), randn(6, 2, seed=1)))


def test_a_module_that_is_used_several_times_gets_the_sum() -> None:
    def run(m: Stack, x: Tensor) -> Tensor:
        for _ in range(3):
            x = torch.tanh(m.norm(m.linear(x)))
        return x

    model = Stack(run, linear=nn.Linear(4, 4), norm=nn.LayerNorm(4))
    assert_matches_autograd(model, values_of(model, randn(6, 4)))


def test_a_layer_whose_forward_is_called_by_itself_is_measured() -> None:
    model = Stack(lambda m, x: m.last(m.first.forward(x)), first=nn.Linear(4, 5), last=nn.Linear(5, 3))
    assert_matches_autograd(model, values_of(model, randn(6, 4)))


def test_what_a_users_hook_makes_of_an_output_is_seen() -> None:
    model = Stack(lambda m, x: m.last(m.first(x)), first=nn.Linear(4, 5), last=nn.Linear(5, 3))
    model.first.register_forward_hook(lambda module, args, output: torch.tanh(output))
    assert_matches_autograd(model, values_of(model, randn(6, 4)))


def test_a_forward_that_a_layer_has_of_its_own_is_kept() -> None:
    model = Stack(lambda m, x: m.last(m.first(x)), first=nn.Linear(4, 5), last=nn.Linear(5, 3))
    own = model.first.forward = lambda x: nn.Linear.forward(model.first, x)  # as accelerate's hooks leave it
    assert_matches_autograd(model, values_of(model, randn(6, 4)))
    assert model.first.forward is own
    assert "forward" not in vars(model.last)


def test_a_module_that_is_registered_twice_counts_once() -> None:
    linear = nn.Linear(4, 4)
    model = Stack(lambda m, x: m.b(torch.tanh(m.a(x))), a=linear, b=linear)
    assert_matches_autograd(model, values_of(model, randn(6, 4)))


def test_tied_weights_get_the_sum_of_both_layers() -> None:
    embedding, head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
    head.weight = embedding.weight
    model = Stack(lambda m, i: m.head(torch.tanh(m.embedding(i))), embedding=embedding, head=head)
    assert_matches_autograd(model, values_of(model, torch.tensor([0, 1, 2, 2, 3, 4])))


def test_keyword_arguments_are_captured() -> None:
    def run(m: Stack, x: Tensor) -> Tensor:
        return m.norm(input=m.conv(input=x))

    model = Stack(run, conv=nn.Conv1d(2, 4, 3), norm=nn.GroupNorm(2, 4))
    assert_matches_autograd(model, values_of(model, randn(6, 2, 7)))


@pytest.mark.parametrize("inplace", ["ReLU", "add", "mul"])
def test_outputs_that_are_modified_in_place_keep_their_gradient(inplace: str) -> None:
    def run(m: Stack, x: Tensor) -> Tensor:
        x = m.first(x)
        if inplace == "ReLU":
            x = F.relu(x, inplace=True)
        elif inplace == "add":
            x += 1
        else:
            x *= 3
        return m.second(x)

    model = Stack(run, first=nn.Linear(4, 5), second=nn.Linear(5, 3))
    assert_matches_autograd(model, values_of(model, randn(6, 4)))


@pytest.mark.parametrize("where", ["model's input", "inside the graph"])
def test_an_input_that_is_modified_before_backward_is_an_error(where: str) -> None:
    def run(m: Stack, x: Tensor) -> Tensor:
        x = x.clone() if where == "model's input" else m.first(x)
        y = m.second(x)
        x.add_(1)
        return y + x

    model = Stack(run, first=nn.Linear(4, 4), second=nn.Linear(4, 4))
    with pytest.raises(
        InPlaceError, match="input of layer 'second' was modified in place between forward and backward"
    ):
        per_sample(model, values_of(model, randn(6, 4)), NUM_GROUPS, 2)


def test_a_frozen_parameter_is_left_out() -> None:
    model = SmallDenoiser()
    model.inward.weight.requires_grad_(False)
    model.time.requires_grad_(False)
    names = list(GradientEngine(model).slots)
    assert names == ["inward.bias", "norm.weight", "norm.bias", "outward.weight", "outward.bias"]
    assert_matches_autograd(model, values_of(model, randn(6, 1, 8, 8), torch.arange(6) * 9))


def test_selected_parameters_keep_their_gradient_and_their_order() -> None:
    model = SmallDenoiser()
    values = values_of(model, randn(6, 1, 8, 8), torch.arange(6) * 9)
    whole = dict(split(model, per_sample(model, values, NUM_GROUPS, 2)))
    selected = per_sample(model, values, NUM_GROUPS, 2, select=lambda name: name in ("outward.weight", "inward.bias"))
    expected = torch.cat([whole["inward.bias"], whole["outward.weight"]], 1)
    torch.testing.assert_close(selected, expected, rtol=1e-5, atol=1e-6 * expected.norm().item())


def test_slots_are_consecutive_and_view_parameters_as_matrices() -> None:
    slots = list(GradientEngine(SmallDenoiser()).slots.values())
    assert [(s.name, s.rows, s.cols, s.offset) for s in slots[:4]] == [
        ("inward.weight", 8, 9, 0),
        ("inward.bias", 1, 8, 72),
        ("time.weight", 8, 2, 80),
        ("time.bias", 1, 8, 96),
    ]


def test_gradients_are_added_to_what_is_there() -> None:
    model = SmallDenoiser()
    values = values_of(model, randn(6, 1, 8, 8), torch.arange(6) * 9)
    engine = GradientEngine(model)
    features = torch.ones(NUM_GROUPS, engine.num_parameters)
    measured = engine.add_gradients_(features, values, num_rows=6, projector=Identity())
    expected = one_at_a_time(model, values, NUM_GROUPS, 2)
    torch.testing.assert_close(features - 1, expected, rtol=1e-4, atol=1e-6)  # 1 + x keeps 6e-8 of 1
    torch.testing.assert_close(measured, values(slice(0, 6)).detach(), rtol=1e-6, atol=0)
    assert not measured.requires_grad


def test_values_without_a_gradient_leave_the_features_alone() -> None:
    model = SmallDenoiser()
    engine = GradientEngine(model)
    features = torch.zeros(NUM_GROUPS, engine.num_parameters)

    def constant(rows: slice) -> Tensor:
        model(randn(6, 1, 8, 8)[rows], torch.arange(6)[rows])
        return torch.ones(6)[rows]

    engine.add_gradients_(features, constant, num_rows=6, projector=Identity())
    assert not features.any()


class Scale(nn.Module):
    """A layer without a rule."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.linspace(0.5, 1.5, size))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


class OwnForward(nn.Linear):
    """A Linear only by class."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, 2 * self.weight, self.bias)


def with_uncovered(layer: nn.Module) -> Stack:
    """A model with one layer that has no rule between two that have."""
    return Stack(
        lambda m, x: m.last(torch.tanh(m.odd(m.first(x)))), first=nn.Linear(4, 5), odd=layer, last=nn.Linear(5, 3)
    )


UNCOVERED = {
    "weight norm": (lambda: nn.utils.weight_norm(nn.Linear(5, 5)), "odd.weight_g, odd.weight_v", "Linear"),
    "parametrized": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(5, 5)),
        "odd.parametrizations.weight.original0, odd.parametrizations.weight.original1",
        "ParametrizationList",
    ),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("name", UNCOVERED)
def test_parameters_without_a_rule_are_named(name: str) -> None:
    make, names, owner = UNCOVERED[name]
    with pytest.raises(CoverageError) as caught:
        GradientEngine(with_uncovered(make()))
    assert f"no gradient rule for {names} (in {owner})" in str(caught.value)
    assert 'select=..., or measure them with uncovered="autograd"' in str(caught.value)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("name", UNCOVERED)
@pytest.mark.parametrize("rows_per_group", [1, 3])
def test_parameters_without_a_rule_can_be_differentiated_by_autograd(name: str, rows_per_group: int) -> None:
    model = with_uncovered(UNCOVERED[name][0]())
    values = values_of(model, randn(NUM_GROUPS * rows_per_group, 4))
    assert_matches_autograd(model, values, rows_per_group, uncovered="autograd")


@pytest.mark.parametrize("make", [lambda: Scale(5), lambda: OwnForward(5, 5)])
@pytest.mark.parametrize("rows_per_group", [1, 3])
def test_a_layer_of_ones_own_needs_no_rule(make: Callable[[], nn.Module], rows_per_group: int) -> None:
    model = with_uncovered(make())
    values = values_of(model, randn(NUM_GROUPS * rows_per_group, 4))
    assert_matches_autograd(model, values, rows_per_group)


def test_parameters_without_a_rule_can_be_left_out() -> None:
    model = with_uncovered(Scale(5))
    engine = GradientEngine(model, select=lambda name: not name.startswith("odd"))
    assert "odd.gain" not in engine.slots


def test_many_uncovered_parameters_are_counted() -> None:
    model = Stack(lambda m, x: x, **{f"odd{i}": nn.PReLU() for i in range(10)})
    with pytest.raises(CoverageError, match=r"odd2\.weight and 7 more"):
        GradientEngine(model)


# Each of these computes something else than its layers say; the name is the layer that the check must point to.
WRONG_USES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "functional": (
        lambda: Stack(
            lambda m, x: m.last(F.linear(x, m.first.weight, m.first.bias)), first=nn.Linear(4, 5), last=nn.Linear(5, 3)
        ),
        "first.weight, first.bias",
    ),
    "module and functional": (
        lambda: Stack(lambda m, x: F.linear(torch.tanh(m.first(x)), m.first.weight), first=nn.Linear(4, 4)),
        "first.weight",
    ),
    "forward of the class": (
        lambda: Stack(lambda m, x: m.last(nn.Linear.forward(m.first, x)), first=nn.Linear(4, 5), last=nn.Linear(5, 3)),
        "first.weight, first.bias",
    ),
    "batch statistics": (
        lambda: Stack(
            lambda m, x: m.last(y - y.mean(0) if (y := m.first(x)) is not None else x),
            first=nn.Linear(4, 5),
            last=nn.Linear(5, 3),
        ),
        "first.weight",
    ),
    "neighbours": (
        lambda: Stack(
            lambda m, x: m.last(torch.tanh(m.first(x).roll(1, 0))), first=nn.Linear(4, 5), last=nn.Linear(5, 3)
        ),
        "first.weight",
    ),
}


@pytest.mark.parametrize("name", WRONG_USES)
@pytest.mark.parametrize("projector", [Identity(), CountSketch(64)], ids=["identity", "sketch"])
def test_a_layer_that_is_not_used_as_its_rule_assumes_is_found_and_named(name: str, projector: Identity) -> None:
    make, wrong = WRONG_USES[name]
    model = make()
    values = values_of(model, randn(6, 4))
    engine = GradientEngine(model)
    features = torch.zeros(6, projector.features_dim(engine.num_parameters))
    engine.add_gradients_(features, values, num_rows=6, projector=projector)
    with pytest.raises(GradientCheckError) as caught:
        check_gradients(engine, features, values, num_rows=6, projector=projector)
    assert f"gradient of the batch for {wrong}" in str(caught.value)
    assert "last" not in str(caught.value).partition("Likely causes")[0], "a right layer is accused"


def rows_second(m: Stack, x: Tensor) -> Tensor:
    """Run a layer on [positions, rows, channels]."""
    return m.last(m.first(x.transpose(0, 1)).tanh().transpose(0, 1))


def test_rows_in_another_dimension_are_refused() -> None:
    model = Stack(rows_second, first=nn.Linear(4, 5), last=nn.Linear(5, 3))
    with pytest.raises(CoverageError, match=r"layer 'first' got an input of shape \[7, 6, 4\] in a batch of 6 rows"):
        per_sample(model, values_of(model, randn(6, 7, 4)), 6, 1)


def test_rows_in_another_dimension_of_the_same_size_are_found() -> None:
    model = Stack(rows_second, first=nn.Linear(4, 5), last=nn.Linear(5, 3))
    values = values_of(model, randn(6, 6, 4))
    engine = GradientEngine(model)
    features = torch.zeros(6, engine.num_parameters)
    engine.add_gradients_(features, values, num_rows=6, projector=Identity())
    with pytest.raises(GradientCheckError, match=r"first\.weight"):
        check_gradients(engine, features, values, num_rows=6, projector=Identity())


def test_a_model_in_train_mode_is_refused() -> None:
    model = Stack(lambda m, x: m.linear(m.norm(x)), norm=nn.BatchNorm1d(4), linear=nn.Linear(4, 2)).train()
    with pytest.raises(ValueError, match=r"model must be in eval mode, got train mode.*call model\.eval\(\)"):
        GradientEngine(model)


def test_batch_norm_in_eval_mode_is_measured_by_autograd() -> None:
    norm = nn.BatchNorm1d(4)
    norm.running_mean, norm.running_var = randn(4), randn(4).square() + 1
    model = Stack(lambda m, x: m.linear(m.norm(x)), norm=norm, linear=nn.Linear(4, 2))
    with pytest.raises(CoverageError, match=r"norm\.weight, norm\.bias \(in BatchNorm1d\)"):
        GradientEngine(model)
    assert_matches_autograd(model, values_of(model, randn(6, 4)), uncovered="autograd")


def test_a_model_with_nothing_to_measure_is_refused() -> None:
    for model, select in ((SmallDenoiser().requires_grad_(False), None), (SmallDenoiser(), lambda name: False)):
        with pytest.raises(CoverageError, match="no trainable parameter among the selected ones"):
            GradientEngine(model, select=select)


def test_an_unknown_way_with_uncovered_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match='uncovered must be "error" or "autograd", got \'skip\''):
        GradientEngine(SmallDenoiser(), uncovered="skip")


class Interrupted(Exception):  # noqa: N818
    """What a test throws into a running measurement."""


class RaisingProjector(Identity):
    """Fails in the middle of the backward pass."""

    def add_(self, *_: object) -> None:
        raise Interrupted


@pytest.mark.parametrize("moment", ["never", "in forward", "in backward", "by autograd"])
def test_the_model_is_left_as_it_was(moment: str) -> None:
    model = with_uncovered(Scale(5))
    model.first.bias.requires_grad_(False)
    for p in model.parameters():
        p.grad = torch.ones_like(p) if p.requires_grad else None
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    flags = [p.requires_grad for p in model.parameters()]
    engine = GradientEngine(model, uncovered="autograd")
    calls = 0

    def values(rows: slice) -> Tensor:
        nonlocal calls
        calls += 1
        output = model(randn(6, 4)[rows])
        if moment == "in forward" or (moment == "by autograd" and calls == 3):
            raise Interrupted
        return output.square().sum(1)

    projector = RaisingProjector() if moment == "in backward" else Identity()
    features = torch.zeros(NUM_GROUPS, engine.num_parameters)
    if moment == "never":
        engine.add_gradients_(features, values, num_rows=6, projector=projector)
        check_gradients(engine, features, values, num_rows=6, projector=projector)
    else:
        with pytest.raises(Interrupted):
            engine.add_gradients_(features, values, num_rows=6, projector=projector)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters() if p.requires_grad)
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())
    hooks = [module for module in model.modules() if module._forward_hooks or module._forward_pre_hooks]
    assert not hooks, f"hooks are left behind on {hooks}"


def test_a_model_that_runs_under_no_grad_in_between_is_not_disturbed() -> None:
    def run(m: Stack, x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = m.linear(x.roll(1, -1)).abs().amax(-1, keepdim=True)
        return m.linear(x) / (1 + scale)

    model = Stack(run, linear=nn.Linear(4, 3))
    assert_matches_autograd(model, values_of(model, randn(6, 4)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gradients_are_as_near_the_truth_as_autograd(dtype: torch.dtype) -> None:
    model = SmallDenoiser()
    x, times = randn(4, 1, 8, 8), torch.tensor([5, 30, 60, 90])
    exact = one_at_a_time(model, values_of(model, x, times), 4, 1)
    model.to(dtype)
    values = values_of(model, x.to(dtype), times)
    plain = one_at_a_time(model, values, 4, 1).float()
    found = per_sample(model, values, 4, 1)
    error, plain_error = ((grads - exact).norm(dim=1) / exact.norm(dim=1) for grads in (found, plain))
    assert (error <= 2 * plain_error).all(), f"{error.tolist()} against {plain_error.tolist()} of autograd"


@pytest.mark.parametrize("where", ["on the network", "on a layer", "within"])
def test_a_network_that_casts_by_itself_is_refused_with_what_to_do(where: str) -> None:
    cast = torch.autocast("cpu", torch.bfloat16)

    def within(m: Stack, x: Tensor) -> Tensor:
        with cast:
            return m.last(torch.tanh(m.first(x))).float()

    plain = lambda m, x: m.last(torch.tanh(m.first(x)))  # noqa: E731
    model = Stack(within if where == "within" else plain, first=nn.Linear(4, 5), last=nn.Linear(5, 3))
    wrapped = {"on the network": model, "on a layer": model.last}.get(where)
    if wrapped is not None:
        wrapped.forward = cast(wrapped.forward)
    values = values_of(model, randn(6, 4))
    with pytest.raises(RuntimeError, match=r"layer '.*' runs under torch\.autocast within .* accelerate: unwrap_model"):
        check(model, values)
    if wrapped is not None:
        wrapped.forward = wrapped.forward.__wrapped__
        assert_matches_autograd(model, values)


@pytest.mark.parametrize("uncovered", ["error", "autograd"])
def test_a_float32_adapter_on_a_coarse_base_passes_the_check_by_the_bases_rounding(uncovered: str) -> None:
    def run(m: Stack, x: Tensor) -> Tensor:
        for layer, down, up in zip(m.base, m.down, m.up, strict=True):
            x = torch.tanh(layer(x) + up(down(x.float())).to(x.dtype))
        return x

    base, down, up = ([nn.Linear(*size) for _ in range(4)] for size in ((16, 16), (16, 2), (2, 16)))
    model = Stack(run, base=nn.ModuleList(base), down=nn.ModuleList(down), up=nn.ModuleList(up))
    model.base.to(torch.bfloat16).requires_grad_(False)
    values = values_of(model, randn(6, 9, 16, dtype=torch.bfloat16))
    assert tolerance(model) == 1e-1
    assert tolerance(model.down) == 1e-3
    check(model, values, uncovered=uncovered)
    found, expected = per_sample(model, values, 3, 2, uncovered=uncovered), one_at_a_time(model, values, 3, 2)
    assert ((found - expected).norm(dim=1) <= 3e-2 * expected.norm(dim=1)).all()


# Each row's output has a little of the other rows'.
INFLUENCES: dict[str, Callable[[Tensor], Tensor]] = {
    "mean of the batch": lambda y: y + 0.1 * y.mean(0),
    "a tenth of batch statistics": lambda y: 0.9 * y + 0.1 * (y - y.mean(0)) / y.std(0, correction=0),
    "the first row": lambda y: y + 0.05 * y[:1],
    "neighbours": lambda y: y + 0.02 * y.roll(1, 0),
}


@pytest.mark.parametrize("name", INFLUENCES)
@pytest.mark.parametrize("options", [{}, {"uncovered": "autograd"}], ids=str)
def test_rows_that_influence_each_other_a_little_are_found(name: str, options: dict[str, str]) -> None:
    shared = INFLUENCES[name]
    model = Stack(lambda m, x: m.last(shared(torch.tanh(m.first(x)))), first=nn.Linear(4, 5), last=nn.Linear(5, 3))
    with pytest.raises(GradientCheckError, match=r"rows of a batch influence each other|Likely causes"):
        check(model, values_of(model, randn(6, 4)), **options)


def test_rows_that_influence_no_sum_are_found_with_how_far_off() -> None:
    model = Stack(
        lambda m, x: m.last(torch.tanh(m.first(x))) + 0.1 * x.mean(0)[:3], first=nn.Linear(4, 5), last=nn.Linear(5, 3)
    )
    with pytest.raises(GradientCheckError, match=r"the gradient of one of 6 is off by 0\.\d+ of its size from the one"):
        check(model, values_of(model, randn(6, 4)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_unets_row_is_the_same_alone_to_rounding(dtype: torch.dtype) -> None:
    model = make_unet().to(dtype)
    check(model, values_of(model, randn(6, 1, 8, 8, dtype=dtype), torch.arange(0, 96, 16)))
