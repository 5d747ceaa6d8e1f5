"""The fused per-sample weight gradient and sketch against autograd and the reference sketch."""

from __future__ import annotations

import pytest
import torch
from cases import (
    CONVS,
    DEVICES,
    DTYPES,
    HIGH_KEY,
    KEY,
    KEYS,
    Conv,
    as_matrix,
    assert_as_exact_as_torch,
    integers,
    layer_tensors,
    randn,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from journey import ops
from journey.ops import reference
from journey.ops.geometry import ConvGeometry

CONVOLUTIONS = {n: getattr(torch.nn.functional, f"conv{n}d") for n in (1, 2, 3)}

# positions, d_in, d_out: one of each, around 32, primes, a product of many tiles.
LINEARS = [(1, 1, 1), (1, 31, 33), (5, 32, 32), (7, 33, 31), (64, 13, 101), (3, 257, 67), (0, 4, 4)]


def sketch_outer(a: Tensor, g: Tensor, proj_dim: int, groups: int, key: int = KEY, **options: object) -> Tensor:
    """The compiled operation into fresh zeros on the device of ``a``. [groups, proj_dim]."""
    features = torch.zeros(groups, proj_dim, device=a.device)
    ops.sketch_outer_(features, a, g, key=key, **options)
    return features


def weight_grad_by_autograd(a: Tensor, g: Tensor, conv: ConvGeometry | None) -> Tensor:
    """Weight gradient of all rows together as autograd has it in float32, as a matrix. [d_out, d_in], [c_out, cols]."""
    if conv is None:
        weight = torch.zeros(g.shape[-1], a.shape[-1], requires_grad=True)
        output = torch.nn.functional.linear(a, weight)
    else:
        weight = torch.zeros(g.shape[1], a.shape[1] // conv.groups, *conv.kernel_size, requires_grad=True)
        output = CONVOLUTIONS[conv.spatial_dims](a, weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)
    return as_matrix(torch.autograd.grad(output, weight, g)[0])


def plain_sketch_outer(
    a: Tensor, g: Tensor, proj_dim: int, key: int, rows_per_group: int, nnz: int = 1, conv: ConvGeometry | None = None
) -> Tensor:
    """Autograd in float32, then the sketch in plain torch float32: the yardstick of rounding. [groups, proj_dim]."""
    groups = zip(a.float().split(rows_per_group), g.float().split(rows_per_group), strict=True)
    matrices = torch.stack([weight_grad_by_autograd(a_group, g_group, conv) for a_group, g_group in groups])
    features = torch.zeros(len(matrices), proj_dim)
    for repetition in range(nnz):
        bucket, sign = reference.sketch_map(key, *matrices.shape[1:], proj_dim, repetition)
        features.index_add_(1, bucket.flatten(), (matrices * sign.float()).flatten(1))
    return features / nnz**0.5


# -------------------------------------------------------------------------------------------- reference


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows_per_group", [1, 3])
@pytest.mark.parametrize(("positions", "d_in", "d_out"), LINEARS)
def test_linear_matches_autograd_as_exactly_as_torch(positions, d_in, d_out, rows_per_group, dtype, device):
    for groups, proj_dim, nnz in [(1, 32, 1), (2, 96, 1), (3, 1024, 2)]:
        rows = groups * rows_per_group
        a = randn(rows, positions, d_in, seed=1, dtype=dtype)
        g = randn(rows, positions, d_out, seed=2, dtype=dtype)
        actual = sketch_outer(a.to(device), g.to(device), proj_dim, groups, HIGH_KEY, nnz=nnz)
        plain = plain_sketch_outer(a, g, proj_dim, HIGH_KEY, rows_per_group, nnz)
        expected = reference.sketch_outer(a, g, proj_dim, HIGH_KEY, rows_per_group=rows_per_group, nnz=nnz)
        assert_as_exact_as_torch(actual, plain, expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rows_per_group", [1, 3])
@pytest.mark.parametrize("name", CONVS)
def test_convolution_matches_autograd_as_exactly_as_torch(name, rows_per_group, device):
    conv = CONVS[name]
    for groups, proj_dim, nnz in [(1, 32, 1), (2, 96, 1), (2, 1024, 2)]:
        a, g = layer_tensors(conv, groups * rows_per_group)
        options = {"rows_per_group": rows_per_group, "nnz": nnz}
        actual = sketch_outer(a.to(device), g.to(device), proj_dim, groups, HIGH_KEY, nnz=nnz, conv=conv.geometry)
        plain = plain_sketch_outer(a, g, proj_dim, HIGH_KEY, conv=conv.geometry, **options)
        expected = reference.sketch_outer(a, g, proj_dim, HIGH_KEY, conv=conv.geometry, **options)
        assert_as_exact_as_torch(actual, plain, expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["1d", "3x3", "groups"])
def test_half_precision_inputs_are_accumulated_in_float32(name, dtype, device):
    conv = CONVS[name]
    a, g = layer_tensors(conv, 4, dtype)
    actual = sketch_outer(a.to(device), g.to(device), 96, 2, conv=conv.geometry)
    plain = plain_sketch_outer(a, g, 96, KEY, 2, conv=conv.geometry)
    expected = reference.sketch_outer(a, g, 96, KEY, rows_per_group=2, conv=conv.geometry)
    assert_as_exact_as_torch(actual, plain, expected)


@pytest.mark.parametrize("device", DEVICES)
@given(
    key=KEYS,
    groups=st.integers(0, 3),
    rows_per_group=st.integers(1, 3),
    positions=st.integers(1, 20),
    d_in=st.integers(1, 70),
    d_out=st.integers(1, 70),
    bucket_rows=st.integers(1, 40),
)
def test_linear_of_any_size_is_exact_on_integers(
    key, groups, rows_per_group, positions, d_in, d_out, bucket_rows, device
):
    rows = groups * rows_per_group
    a, g = integers(rows, positions, d_in, seed=1), integers(rows, positions, d_out, seed=2)
    actual = sketch_outer(a.to(device), g.to(device), 32 * bucket_rows, groups, key)
    expected = reference.sketch_outer(a, g, 32 * bucket_rows, key, rows_per_group=rows_per_group)
    assert torch.equal(actual.cpu().double(), expected)


@st.composite
def convolutions(draw: st.DrawFn) -> Conv:
    """Any small convolution of one or two axes whose output is not empty."""
    axes, groups = draw(st.integers(1, 2)), draw(st.integers(1, 3))

    def each_axis(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(axes))

    kernel_size, stride, padding, dilation = each_axis(1, 4), each_axis(1, 3), each_axis(0, 5), each_axis(1, 3)
    smallest = [max(1, d * (k - 1) + 1 - 2 * p) for k, p, d in zip(kernel_size, padding, dilation, strict=True)]
    size = tuple(n + draw(st.integers(0, 6)) for n in smallest)
    channels = (groups * draw(st.integers(1, 6)), groups * draw(st.integers(1, 12)))
    return Conv(*channels, size, kernel_size, stride, padding, dilation, groups)


@pytest.mark.parametrize("device", DEVICES)
@given(conv=convolutions(), groups=st.integers(1, 3), rows_per_group=st.integers(1, 2))
def test_convolution_of_any_geometry_is_exact_on_integers(conv, groups, rows_per_group, device):
    a, g = layer_tensors(conv, groups * rows_per_group, make=integers)
    actual = sketch_outer(a.to(device), g.to(device), 96, groups, conv=conv.geometry)
    expected = reference.sketch_outer(a, g, 96, KEY, rows_per_group=rows_per_group, conv=conv.geometry)
    assert torch.equal(actual.cpu().double(), expected)


@pytest.mark.parametrize("device", DEVICES)
def test_reads_through_any_strides(device):
    conv = CONVS["3x3, stride"]
    a, g = (x.to(device) for x in layer_tensors(conv, 4, make=integers))
    expected = sketch_outer(a, g, 96, 2, conv=conv.geometry)
    views = {
        "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
        "inside a larger tensor": lambda x: torch.nn.functional.pad(x, (2, 3, 1, 1))[..., 1:-1, 2:-3],
        "every other row": lambda x: x.repeat_interleave(2, dim=0)[::2],
        "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    }
    for what, view in views.items():
        assert torch.equal(sketch_outer(view(a), view(g), 96, 2, conv=conv.geometry), expected), what

    a, g = integers(4, 6, 20, seed=1).to(device), integers(4, 6, 9, seed=2).to(device)
    expected = sketch_outer(a, g, 96, 2)
    a_turned = a.transpose(1, 2).contiguous().transpose(1, 2)
    g_turned = g.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert torch.equal(sketch_outer(a_turned, g_turned, 96, 2), expected)
    seen_twice = a[:, :1].expand(-1, 6, -1)
    assert torch.equal(sketch_outer(seen_twice, g, 96, 2), sketch_outer(seen_twice.contiguous(), g, 96, 2))


# ------------------------------------------------------------------------------------------- properties


@pytest.mark.parametrize("device", DEVICES)
def test_a_group_of_rows_is_the_sum_of_its_rows(device):
    conv = CONVS["3x3"]
    a, g = (x.to(device) for x in layer_tensors(conv, 6, make=integers))
    alone = sketch_outer(a, g, 96, 6, conv=conv.geometry)
    for groups in (1, 2, 3):
        assert torch.equal(sketch_outer(a, g, 96, groups, conv=conv.geometry), alone.reshape(groups, -1, 96).sum(1)), (
            f"{groups} groups"
        )


@pytest.mark.parametrize("device", DEVICES)
def test_equals_the_sketch_of_the_gradient_it_never_stores(device):
    a, g = integers(4, 9, 75, seed=1), integers(4, 9, 40, seed=2)
    grads = reference.per_sample_weight_grad(a, g, rows_per_group=2).float()
    features = torch.zeros(2, 96, device=device)
    ops.sketch_(features, grads.to(device), key=KEY, nnz=4)
    assert torch.equal(sketch_outer(a.to(device), g.to(device), 96, 2, nnz=4), features)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", [None, "1x1", "3x3", "3x3, larger image", "groups", "wide"])
def test_does_not_depend_on_the_batch(name, device):
    if name is None:
        a, g = randn(10, 17, 75, seed=1), randn(10, 17, 40, seed=2)
    else:
        a, g = layer_tensors(CONVS[name], 10)
    a, g = a.to(device), g.to(device)
    options = {} if name is None else {"conv": CONVS[name].geometry}
    whole = sketch_outer(a, g, 96, 5, **options)
    for split in (1, 2, 3):
        parts = [
            sketch_outer(a_part, g_part, 96, len(a_part) // 2, **options)
            for a_part, g_part in zip(a.split(2 * split), g.split(2 * split), strict=True)
        ]
        assert torch.equal(torch.cat(parts), whole), f"batches of {split} samples"


@pytest.mark.parametrize("device", DEVICES)
def test_adds_to_the_given_features_and_to_nothing_else(device):
    buffer = torch.full((5, 160), 7.0, device=device)
    expected = buffer.clone()
    a, g = integers(3, 9, 75, seed=1).to(device), integers(3, 9, 40, seed=2).to(device)
    assert ops.sketch_outer_(buffer[1:4, 32:128], a, g, key=KEY) is None
    expected[1:4, 32:128] += sketch_outer(a, g, 96, 3)
    assert torch.equal(buffer, expected)


# Where the CPU kernel cuts: blocks of 128 positions, windows of 1,024, runs of 512 rows; whole lines and parts of them.
CUT = {
    "lines longer than a block": Conv(2, 3, (3, 300), (3, 3), (1, 1), (1, 1), (1, 1)),
    "lines longer than a window": Conv(2, 3, (1500,), (3,), (1,), (1,), (1,)),
    "planes larger than a window": Conv(4, 17, (40, 40), (3, 3), (1, 1), (1, 1), (1, 1)),
    "planes larger than a window, stride": Conv(4, 17, (70, 90), (3, 3), (2, 2), (1, 1), (1, 1)),
    "lines of 16": Conv(35, 17, (16, 16), (3, 3), (1, 1), (1, 1), (1, 1)),
    "lines of 64, several windows": Conv(11, 33, (24, 64), (3, 3), (1, 1), (1, 1), (1, 1)),
    "one column": Conv(3, 5, (400, 1), (3, 1), (1, 1), (1, 0), (1, 1)),
    "planes of planes": Conv(2, 3, (5, 12, 20), (2, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1)),
    "one position": Conv(40, 33, (1, 1), (1, 1), (1, 1), (0, 0), (1, 1)),
    "a pointwise plane larger than a window": Conv(40, 33, (40, 30), (1, 1), (1, 1), (0, 0), (1, 1)),
    "more rows than a run": Conv(5, 1100, (4, 4), (3, 3), (1, 1), (1, 1), (1, 1)),
    "chunks of one kernel position": Conv(64, 300, (5, 4), (3, 3), (1, 1), (1, 1), (1, 1)),
    "chunks of one kernel position, stride": Conv(96, 257, (7, 9), (3, 2), (2, 3), (1, 0), (1, 2)),
    "chunks of one kernel position, groups": Conv(192, 96, (6, 6), (3, 3), (1, 1), (1, 1), (1, 1), groups=3),
    "chunks of one kernel position, volumes": Conv(32, 33, (3, 4, 5), (2, 3, 2), (1, 1, 1), (1, 1, 0), (1, 1, 1)),
    "chunks of two kernel positions": Conv(48, 300, (5, 4), (3, 3), (1, 1), (1, 1), (1, 1)),
    "chunks of half a block of channels": Conv(80, 70, (16, 16), (3, 3), (1, 1), (1, 1), (1, 1)),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rows_per_group", [1, 3])
@pytest.mark.parametrize("name", CUT)
def test_layers_that_are_cut_are_exact(name, rows_per_group, device):
    conv = CUT[name]
    a, g = layer_tensors(conv, 2 * rows_per_group, make=integers)
    for proj_dim, nnz in [(96, 1), (4096, 4)]:  # both roots are exact, as are the quotients
        actual = sketch_outer(a.to(device), g.to(device), proj_dim, 2, conv=conv.geometry, nnz=nnz)
        expected = reference.sketch_outer(
            a, g, proj_dim, KEY, rows_per_group=rows_per_group, conv=conv.geometry, nnz=nnz
        )
        assert torch.equal(actual.cpu().double(), expected)


@pytest.mark.parametrize("device", DEVICES)
def test_many_small_draws_of_a_sample_share_a_block(device):
    for size in (1, 2, 4):
        conv = Conv(33, 20, (size, size), (3, 3), (1, 1), (1, 1), (1, 1))
        a, g = layer_tensors(conv, 2 * 75, make=integers)
        actual = sketch_outer(a.to(device), g.to(device), 96, 2, conv=conv.geometry)
        expected = reference.sketch_outer(a, g, 96, KEY, rows_per_group=75, conv=conv.geometry)
        assert torch.equal(actual.cpu().double(), expected)


def test_the_number_of_threads_changes_no_bit():
    conv = CONVS["wide"]
    a, g = layer_tensors(conv, 3)
    big_a, big_g = randn(1, 300, 700, seed=1), randn(1, 300, 900, seed=2)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append((sketch_outer(a, g, 96, 3, conv=conv.geometry), sketch_outer(big_a, big_g, 96, 1)))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(x, y) for x, y in zip(found[0], other, strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_layers_of_millions_of_weights_are_exact(device):
    for rows, cols, groups in [(1500, 1501, 1), (3700, 64 * 9, 1), (4 * 1000, 64 * 9, 4)]:
        if cols % 9:
            conv, a, g = None, integers(2, 3, cols, seed=1), integers(2, 3, rows, seed=2)
        else:
            case = Conv(64 * groups, rows, (9, 9), (3, 3), (2, 2), (1, 1), (1, 1), groups)
            conv, (a, g) = case.geometry, layer_tensors(case, 2, make=integers)
        grads = torch.stack([weight_grad_by_autograd(*row, conv) for row in zip(a.split(1), g.split(1), strict=True)])
        expected = torch.zeros(2, 8192, device=device)
        ops.sketch_(expected, grads.to(device), key=KEY)
        assert torch.equal(sketch_outer(a.to(device), g.to(device), 8192, 2, conv=conv), expected)


@pytest.mark.parametrize("device", DEVICES)
def test_nan_stays_in_its_sample_and_does_not_vanish_in_padding(device):
    conv = CONVS["3x3"]
    a, g = layer_tensors(conv, 4, make=integers)
    clean = sketch_outer(a.to(device), g.to(device), 96, 2, conv=conv.geometry).cpu()
    a[3, 2, 0, 0] = torch.nan  # a corner: only some kernel elements see it
    actual = sketch_outer(a.to(device), g.to(device), 96, 2, conv=conv.geometry).cpu()
    expected = reference.sketch_outer(a, g, 96, KEY, rows_per_group=2, conv=conv.geometry)
    assert torch.equal(actual[0], clean[0])
    assert expected[1].isnan().any()
    assert torch.equal(actual[1].isnan(), expected[1].isnan())


# ------------------------------------------------------------------------------------------------ many


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_several_layers_are_the_scaled_sketches_of_each(dtype, device):
    layers = [(conv.geometry, *layer_tensors(conv, 4, dtype=dtype)) for conv in CONVS.values()]
    layers += [
        (None, randn(4, 9, 33, dtype=dtype), randn(4, 9, 40, dtype=dtype)),
        (None, randn(4, 0, 3), randn(4, 0, 2)),
    ]
    convs, a, g = (list(column) for column in zip(*layers, strict=True))
    a, g = [x.to(device) for x in a], [x.to(device) for x in g]
    keys, scales = list(range(len(layers))), [1.0 if i % 3 == 0 else 0.7 * i - 2 for i in range(len(layers))]
    for nnz in (1, 3):
        expected, actual = torch.zeros(2, 96, device=device), torch.zeros(2, 96, device=device)
        for conv, x, y, key, scale in zip(convs, a, g, keys, scales, strict=True):
            alone = torch.zeros(2, 96, device=device)
            ops.sketch_outer_(alone, x, y, key=key, nnz=nnz, conv=conv)
            expected.add_(alone, alpha=scale)
        sums = [torch.full((2, y.shape[2 if conv is None else 1]), torch.nan) for conv, _, y in layers]
        sums = [None if i % 3 == 1 else x.to(device) for i, x in enumerate(sums)]
        ops.sketch_outer_many_(actual, a, g, keys=keys, convs=convs, scales=scales, nnz=nnz, sums=sums)
        for (conv, _, y), into in zip(layers, sums, strict=True):
            if into is not None:
                terms = (y if conv is None else y.flatten(2).transpose(1, 2)).double().reshape(2, -1, into.shape[1])
                assert torch.all((into.cpu() - terms.sum(1)).abs() <= 2**-22 * terms.abs().sum(1))
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())
        ops.sketch_outer_many_(actual, [], [], keys=[], convs=[])
