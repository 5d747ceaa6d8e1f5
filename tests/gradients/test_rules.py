"""The rule of every kind of layer gives what autograd gives, sample by sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import as_matrix, randn
from diffusers.models.normalization import RMSNorm as DiffusersRMSNorm
from hypothesis import given, settings
from hypothesis import strategies as st
from models import assert_same_gradients, one_at_a_time, per_sample
from torch import Tensor, nn

from journey.gradients import rules as layer_rules
from journey.gradients.engine import GradientEngine
from journey.gradients.rules import Direct, Outer, Summed, find_rule, of_groups
from journey.ops import reference
from journey.ops.keys import derive_key
from journey.ops.norm import norm_grads
from journey.ops.weight_grad import weight_grad_tiles
from journey.projectors.random import CountSketch

NUM_GROUPS = 3

# Layer and the shape of one row of its input.
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(5, 3), (5,)),
    "linear, no bias": (lambda: nn.Linear(5, 3, bias=False), (5,)),
    "linear, one leading dimension": (lambda: nn.Linear(5, 3), (7, 5)),
    "linear, three leading dimensions": (lambda: nn.Linear(5, 3), (2, 3, 4, 5)),
    "linear, one output": (lambda: nn.Linear(5, 1), (4, 5)),
    "conv1d": (lambda: nn.Conv1d(3, 4, 3, stride=2, padding=1, dilation=2), (3, 11)),
    "conv2d": (lambda: nn.Conv2d(3, 4, 3, padding=1), (3, 6, 5)),
    "conv2d, no bias": (lambda: nn.Conv2d(3, 4, 3, padding=1, bias=False), (3, 6, 5)),
    "conv2d, pointwise": (lambda: nn.Conv2d(3, 4, 1), (3, 6, 5)),
    "conv2d, pointwise with stride": (lambda: nn.Conv2d(3, 4, 1, stride=2), (3, 6, 5)),
    "conv2d, stride that leaves a rest": (lambda: nn.Conv2d(3, 4, 3, stride=3), (3, 8, 7)),
    "conv2d, every axis different": (
        lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(0, 1), dilation=(1, 3), groups=2),
        (4, 9, 8),
    ),
    "conv2d, groups": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), (4, 6, 5)),
    "conv2d, depthwise": (lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4), (4, 6, 5)),
    "conv2d, same padding": (lambda: nn.Conv2d(3, 4, 3, padding="same"), (3, 6, 5)),
    "conv2d, same padding, even kernel": (lambda: nn.Conv2d(3, 4, (4, 2), padding="same"), (3, 6, 5)),
    "conv2d, valid padding": (lambda: nn.Conv2d(3, 4, 3, padding="valid"), (3, 6, 5)),
    "conv2d, reflected": (lambda: nn.Conv2d(3, 4, 3, padding=(1, 2), padding_mode="reflect"), (3, 6, 5)),
    "conv2d, circular": (lambda: nn.Conv2d(3, 4, 3, padding=(2, 1), padding_mode="circular", stride=2), (3, 6, 5)),
    "conv2d, replicated": (lambda: nn.Conv2d(3, 4, 3, padding=(2, 1), padding_mode="replicate"), (3, 6, 5)),
    "conv2d, circular, same, even": (lambda: nn.Conv2d(3, 4, 2, padding="same", padding_mode="circular"), (3, 6, 5)),
    "conv2d, many positions": (lambda: nn.Conv2d(2, 3, 3, padding=1), (2, 13, 12)),
    "conv3d": (lambda: nn.Conv3d(2, 4, (2, 3, 1), stride=(1, 2, 1), padding=(1, 0, 0), groups=2), (2, 3, 5, 4)),
    "transposed conv1d": (lambda: nn.ConvTranspose1d(3, 4, 3, stride=2, padding=1, output_padding=1), (3, 5)),
    "transposed conv2d": (lambda: nn.ConvTranspose2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 0)), (3, 4, 5)),
    "transposed conv2d, no bias": (lambda: nn.ConvTranspose2d(3, 4, 2, stride=2, bias=False), (3, 4, 5)),
    "transposed conv2d, groups": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (4, 4, 3)),
    "transposed conv2d, dilation": (
        lambda: nn.ConvTranspose2d(2, 3, 2, stride=2, padding=1, dilation=3, output_padding=1),
        (2, 4, 3),
    ),
    # Dilation allows an output padding of a whole stride and more.
    "transposed conv2d, large output padding": (
        lambda: nn.ConvTranspose2d(2, 3, 2, stride=(1, 2), dilation=(3, 4), output_padding=(2, 3)),
        (2, 4, 3),
    ),
    "transposed conv3d": (
        lambda: nn.ConvTranspose3d(2, 2, (1, 2, 3), stride=(1, 2, 1), padding=(0, 0, 1), groups=2),
        (2, 2, 3, 4),
    ),
    "group norm": (lambda: nn.GroupNorm(2, 6), (6, 4, 3)),
    "group norm, large eps": (lambda: nn.GroupNorm(3, 6, eps=0.5), (6, 4, 3)),
    "group norm, vectors": (lambda: nn.GroupNorm(2, 6), (6,)),
    "group norm, sequences": (lambda: nn.GroupNorm(2, 6), (6, 5)),
    "layer norm": (lambda: nn.LayerNorm(6), (4, 6)),
    "layer norm, large eps": (lambda: nn.LayerNorm(6, eps=0.5), (4, 6)),
    "layer norm, two dimensions": (lambda: nn.LayerNorm((3, 5)), (2, 3, 5)),
    "layer norm, the whole row": (lambda: nn.LayerNorm((3, 5)), (3, 5)),
    "layer norm, three dimensions": (lambda: nn.LayerNorm((2, 3, 5)), (4, 2, 3, 5)),
    "layer norm, no bias": (lambda: nn.LayerNorm(6, bias=False), (4, 6)),
    "rms norm": (lambda: nn.RMSNorm(6, eps=0.5), (4, 6)),
    "rms norm, eps of the dtype": (lambda: nn.RMSNorm(6), (4, 6)),
    "rms norm, two dimensions": (lambda: nn.RMSNorm((3, 5), eps=0.1), (2, 3, 5)),
    "diffusers rms norm": (lambda: DiffusersRMSNorm(6, eps=0.5), (4, 6)),
    "diffusers rms norm, bias": (lambda: DiffusersRMSNorm(6, eps=0.5, bias=True), (4, 6)),
    "diffusers rms norm, two dimensions": (lambda: DiffusersRMSNorm((3, 5), eps=0.5), (2, 3, 5)),
    "embedding": (lambda: nn.Embedding(7, 4), (5,)),
    "embedding, one index": (lambda: nn.Embedding(7, 4), ()),
    "embedding, padding": (lambda: nn.Embedding(7, 4, padding_idx=2), (2, 5)),
}


def randomize_(module: nn.Module) -> nn.Module:
    """Replace all parameters: with a norm's initial ones and zeros, wrong uses of them would not show."""
    for index, p in enumerate(module.parameters()):
        p.data = randn(*p.shape, seed=100 + index)
    return module.eval()


def make_input(module: nn.Module, rows: int, shape: tuple[int, ...]) -> Tensor:
    """Random rows of input. [rows, *shape]."""
    if isinstance(module, nn.Embedding):
        # Fewer indices than entries, so that some repeat within a row.
        return torch.randint(0, 4, (rows, *shape), generator=torch.Generator().manual_seed(3))
    return randn(rows, *shape, seed=3)


def weigh(output: Tensor) -> Tensor:
    """A value per row whose gradient differs at every output. [num_rows]."""
    weight = randn(*output.shape[1:], seed=4)
    return (torch.tanh(output) * weight).flatten(1).sum(1)


def assert_rule(module: nn.Module, shape: tuple[int, ...], rows_per_group: int, *, may_be_zero: bool = False) -> None:
    """Compare the engine with autograd on a model that is this layer alone."""
    x = make_input(module, NUM_GROUPS * rows_per_group, shape)

    def values(rows: slice) -> Tensor:
        return weigh(module(x[rows]))

    expected = one_at_a_time(module, values, NUM_GROUPS, rows_per_group)
    found = per_sample(module, values, NUM_GROUPS, rows_per_group)
    assert_same_gradients(module, found, expected, may_be_zero=may_be_zero)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("rows_per_group", [1, 4])
@pytest.mark.parametrize("name", LAYERS)
def test_per_sample_gradients_of_a_layer_are_those_of_autograd(name: str, rows_per_group: int) -> None:
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    assert_rule(randomize_(make()), shape, rows_per_group)


@pytest.mark.parametrize("name", [name for name in LAYERS if "norm" in name])
def test_norms_that_go_to_the_kernel_have_the_gradients_of_autograd(monkeypatch, name: str) -> None:
    monkeypatch.setattr(layer_rules, "_NORM_KERNELS", ["cpu"])
    called: list[tuple[int, ...]] = []
    monkeypatch.setattr(
        layer_rules, "norm_grads", lambda x, g, **options: called.append(x.shape) or norm_grads(x, g, **options)
    )
    make, shape = LAYERS[name]
    assert_rule(randomize_(make()), shape, rows_per_group=2)
    assert bool(called) == (name != "diffusers rms norm, two dimensions")


@pytest.mark.parametrize("name", LAYERS)
def test_every_gradient_has_the_matrix_form_of_its_parameter(name: str) -> None:
    """A sketch places an entry by its row and column, so the same numbers in another form are other features."""
    make, shape = LAYERS[name]
    module = make().eval()
    x = make_input(module, NUM_GROUPS, shape)
    slots = GradientEngine(module).slots
    contributions = list(find_rule(module)(module, x, torch.ones_like(module(x)).detach(), NUM_GROUPS))
    assert sorted(c.parameter for c in contributions) == sorted(slots)
    for contribution in contributions:
        slot = slots[contribution.parameter]
        if isinstance(contribution, Direct | Summed):
            contribution = of_groups(contribution, NUM_GROUPS)
            assert contribution.grads.shape == (NUM_GROUPS, slot.rows, slot.cols)
        else:
            tiles = weight_grad_tiles(contribution.a, contribution.g, NUM_GROUPS, contribution.conv)
            assert {(t.grads.shape[1] + t.row_begin, t.grads.shape[2]) for t in tiles} == {(slot.rows, slot.cols)}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("uncovered", [False, True], ids=["by rule", "by autograd"])
@pytest.mark.parametrize("name", LAYERS)
def test_every_entry_is_placed_by_its_tap_and_channel(name: str, uncovered: bool) -> None:
    make, shape = LAYERS[name]
    module, projector = randomize_(make()), CountSketch(64, nnz=4, seed=3)
    x = make_input(module, NUM_GROUPS, shape)

    def values(rows: slice) -> Tensor:
        return weigh(module(x[rows]))

    engine = GradientEngine(module, uncovered="autograd")
    if uncovered:
        engine._coverage.leave(list(engine.parameters))
    features = torch.zeros(NUM_GROUPS, 64)
    engine.add_gradients_(features, values, num_rows=NUM_GROUPS, projector=projector)
    for row in range(NUM_GROUPS):
        expected = torch.zeros(1, 64, dtype=torch.float64)
        for parameter, p in module.named_parameters():
            grad = torch.autograd.grad(values(slice(row, row + 1)).sum(), p)[0]
            expected += reference.sketch(as_matrix(grad)[None], 64, derive_key(3, "sketch", parameter), 4)
        assert (features[row] - expected[0]).norm() <= 1e-5 * expected.norm()


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    """Any convolution that torch accepts, within small sizes, and the shape of one row of its input."""
    dims = draw(st.integers(1, 3))
    largest = {1: 9, 2: 6, 3: 4}[dims]

    def per_axis(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(dims))

    size, kernel, stride, dilation = per_axis(2, largest), per_axis(1, 3), per_axis(1, 3), per_axis(1, 2)
    groups = draw(st.integers(1, 3))
    c_in, c_out = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    options: dict[str, Any] = {"groups": groups, "stride": stride, "dilation": dilation, "bias": draw(st.booleans())}
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if draw(st.booleans()):
        transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
        limits = [max(s, d) - 1 for s, d in zip(stride, dilation, strict=True)]
        extra = tuple(draw(st.integers(0, limit)) for limit in limits)
        # The output must keep at least one position per axis.
        widths = [(n - 1) * s + r + e for n, s, r, e in zip(size, stride, reach, extra, strict=True)]
        padding = tuple(draw(st.integers(0, min(2, width // 2))) for width in widths)
        return transposed(c_in, c_out, kernel, padding=padding, output_padding=extra, **options), (c_in, *size)
    mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    # The padded input must hold the kernel; reflection needs more positions than it adds.
    least = [max(0, (r + 2 - n) // 2) for n, r in zip(size, reach, strict=True)]
    most = [max(low, min(2, n - 1)) for n, low in zip(size, least, strict=True)]
    if any(high >= n for high, n in zip(most, size, strict=True)):
        mode = "zeros"
    padding = tuple(draw(st.integers(low, high)) for low, high in zip(least, most, strict=True))
    plain = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    return plain(c_in, c_out, kernel, padding=padding, padding_mode=mode, **options), (c_in, *size)


@settings(max_examples=50)
@given(convolution=convolutions(), rows_per_group=st.integers(1, 3))
def test_any_convolution_has_the_gradients_of_autograd(
    convolution: tuple[nn.Module, tuple[int, ...]], rows_per_group: int
) -> None:
    module, shape = convolution
    # A stride may step over all that is not padding.
    assert_rule(randomize_(module), shape, rows_per_group, may_be_zero=True)


def test_an_embedding_larger_than_a_tile_comes_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_rules, "TILE_FLOATS", 2 * NUM_GROUPS * 4)  # two entries of width 4 for every group
    module = randomize_(nn.Embedding(7, 4))
    x, g = make_input(module, NUM_GROUPS, (5,)), randn(NUM_GROUPS, 5, 4)
    pieces = list(find_rule(module)(module, x, g, NUM_GROUPS))
    assert [(piece.row_begin, piece.grads.shape[1]) for piece in pieces] == [(0, 2), (2, 2), (4, 2), (6, 1)]
    assert_rule(module, (5,), rows_per_group=2)


def test_an_index_that_pads_has_no_gradient() -> None:
    module = randomize_(nn.Embedding(7, 4, padding_idx=2))
    x, g = torch.tensor([[2, 2, 1]]), randn(1, 3, 4)
    (piece,) = find_rule(module)(module, x, g, 1)
    assert not piece.grads[0, 2].any()
    torch.testing.assert_close(piece.grads[0, 1], g[0, 2], rtol=0, atol=0)


def test_weight_matrices_come_as_pairs_and_small_parameters_as_gradients() -> None:
    module = nn.Conv2d(3, 4, 3, padding=1)
    kinds = [type(c) for c in find_rule(module)(module, randn(2, 3, 5, 5), randn(2, 4, 5, 5), 2)]
    assert kinds == [Outer, Summed], "a fused kernel can only skip the weight gradient of a pair"


class ScaledLinear(nn.Linear):
    """Calls itself a Linear and computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, 2 * self.weight, self.bias)


class NamedLinear(nn.Linear):
    """A Linear by another name."""


@pytest.mark.parametrize(
    ("module", "has_rule"),
    [
        (NamedLinear(2, 2), True),
        (ScaledLinear(2, 2), False),
        (nn.Bilinear(2, 2, 2), False),
        (nn.PReLU(), False),
        (nn.BatchNorm2d(2), False),
        (nn.MultiheadAttention(4, 2), False),
        (nn.Embedding(3, 2, max_norm=1.0), False),  # changes its weight in forward
        (nn.Embedding(3, 2, scale_grad_by_freq=True), False),  # scales by counts over the batch
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_a_rule_belongs_to_a_forward_function_and_not_to_a_class(module: nn.Module, has_rule: bool) -> None:
    assert (find_rule(module) is not None) is has_rule


def test_a_norm_of_images_of_one_pixel_takes_them_channels_last():
    module, g = randomize_(nn.GroupNorm(4, 32)), randn(4, 32, 1, 1, seed=4)
    x = randn(4, 32, 1, 1, seed=3)
    channels_last = x.as_strided(x.shape, (32, 1, 32, 32))  # as a convolution may leave them
    rule = find_rule(module)
    for found, expected in zip(rule(module, channels_last, g, 2), rule(module, x, g, 2), strict=True):
        assert torch.equal(found.grads, expected.grads)
