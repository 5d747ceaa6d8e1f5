"""What all operations owe their callers: clear refusals, torch's rules, the same bits on every processor."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import pytest
import torch
from cases import CONVS, DEVICES, DTYPES, KEY, MATRICES, integers, layer_tensors, randn
from torch import Tensor

from journey import ops
from journey.ops import _native, reference, reference_packed
from journey.ops.cpu import CpuKernels
from journey.ops.geometry import LINEAR_NUMBERS, ConvGeometry

# ------------------------------------------------------------------------------------------------ errors


def good() -> dict[str, dict[str, object]]:
    """Arguments of each operation that are right. Each test spoils one of them."""
    a, g = layer_tensors(CONVS["groups"], 4)
    return {
        "philox_words": {"keys": torch.arange(3), "indices": torch.arange(3), "minors": torch.arange(3), "stream": 1},
        "philox_normal": {"keys": torch.arange(3), "minors": torch.arange(3), "numel": 5},
        "sketch_": {"features": torch.zeros(2, 96), "grads": randn(2, 5, 7), "key": 1},
        "sketch_many_": {
            "features": torch.zeros(2, 96),
            "grads": randn(2, 127),
            "keys": [1, 2],
            "shapes": [(1, 7), (3, 40)],
            "row_begins": [0, 5],
            "scales": [1.0, 0.5],
        },
        "project_": {"features": torch.zeros(2, 50), "grads": randn(2, 7), "key": 1, "kind": "normal"},
        "sketch_outer_": {"features": torch.zeros(2, 96), "a": randn(4, 5, 6), "g": randn(4, 5, 7), "key": 1},
        "sketch_outer_ conv": {
            "features": torch.zeros(2, 96),
            "a": a,
            "g": g,
            "key": 1,
            "conv": CONVS["groups"].geometry,
        },
        "sketch_outer_many_": {
            "features": torch.zeros(2, 96),
            "a": [a, randn(4, 5, 6)],
            "g": [g, randn(4, 5, 7)],
            "keys": [1, 2],
            "convs": [CONVS["groups"].geometry, None],
            "scales": [1.0, 0.5],
            "sums": [None, torch.zeros(2, 7)],
        },
        "norm_grads": {"x": randn(2, 6, 5), "g": randn(2, 6, 5), "groups": 3, "eps": 0.1},
        "accumulate_gram_": {"gram": torch.zeros(7, 7, dtype=torch.float64), "features": randn(5, 7)},
        "pack_rows": {"rows": randn(3, 64), "bits": 4},
        "unpack_rows": {"packed": torch.ones(3, 64).char(), "scales": torch.ones(3), "bits": 8},
        "packed_products_": {
            "out": torch.zeros(2, 3),
            "queries": randn(2, 64),
            "packed": torch.ones(3, 64).char(),
            "scales": torch.ones(3),
            "bits": 8,
        },
    }


SKETCHES = ("sketch_", "sketch_many_", "sketch_outer_", "sketch_outer_ conv", "sketch_outer_many_")
INT32 = torch.arange(3).int()
SPOILT: list[tuple[str, dict[str, object], type[Exception], str]] = [
    ("philox_words", {"keys": INT32}, TypeError, "keys must be int64, got torch.int32"),
    ("philox_words", {"minors": INT32}, TypeError, "minors must be int64, got torch.int32"),
    ("philox_words", {"indices": torch.arange(4)}, ValueError, r"indices must be \[3\], got \[4\]"),
    ("philox_words", {"minors": torch.arange(3)[None]}, ValueError, r"minors must be \[3\], got \[1, 3\]"),
    ("philox_words", {"stream": 2**32}, ValueError, r"stream must be in \[0, 2\*\*32\), got 4294967296"),
    ("philox_words", {"stream": -1}, ValueError, r"stream must be in \[0, 2\*\*32\), got -1"),
    ("philox_normal", {"keys": torch.zeros(3)}, TypeError, "keys must be int64, got torch.float32"),
    ("philox_normal", {"minors": torch.arange(2)}, ValueError, r"minors must be \[3\], got \[2\]"),
    ("philox_normal", {"numel": -1}, ValueError, "numel must not be negative, got -1"),
    ("sketch_", {"grads": randn(2, 35)}, ValueError, r"grads must be \[batch, rows, cols\], got \[2, 35\]"),
    ("sketch_", {"grads": randn(3, 5, 7)}, ValueError, "features must have one row for each of the 3 in batch, got 2"),
    ("sketch_", {"grads": randn(2, 5, 7).double()}, TypeError, "grads must be .*, got torch.float64"),
    ("sketch_", {"features": torch.zeros(2, 96).half()}, TypeError, "features must be float32, got torch.float16"),
    ("sketch_", {"features": torch.zeros(96)}, ValueError, r"features must be \[batch, proj_dim\], got \[96\]"),
    ("sketch_", {"features": torch.zeros(96, 2).T}, ValueError, "features must have contiguous rows, got strides"),
    (
        "sketch_",
        {"features": torch.zeros(2, 100)},
        ValueError,
        r"proj_dim must be a positive multiple of 32, got .*\[2, 100\]",
    ),
    ("sketch_", {"key": -1}, ValueError, r"key must be in \[0, 2\*\*64\), got -1"),
    ("sketch_", {"key": 2**64}, ValueError, r"key must be in \[0, 2\*\*64\), got 18446744073709551616"),
    ("sketch_", {"nnz": 0}, ValueError, "nnz must be between 1 and 64, got 0"),
    ("sketch_", {"nnz": 65}, ValueError, "nnz must be between 1 and 64, got 65"),
    ("sketch_", {"row_begin": -1}, ValueError, "row_begin must not be negative, got -1"),
    ("sketch_many_", {"shapes": [(1, 7)]}, ValueError, "shapes must have one item for each of 2 in keys, got 1"),
    ("sketch_many_", {"row_begins": [0]}, ValueError, "row_begins must have one item for each of 2 in keys, got 1"),
    ("sketch_many_", {"scales": [1.0]}, ValueError, "scales must have one item for each of 2 in keys, got 1"),
    ("sketch_many_", {"scales": [1.0, math.nan]}, ValueError, r"scales must be finite, got \[1.0, nan\]"),
    ("sketch_many_", {"grads": randn(2, 1, 127)}, ValueError, r"grads must be \[batch, entries\], got \[2, 1, 127\]"),
    ("sketch_many_", {"grads": randn(3, 127)}, ValueError, "features must have one row for each of the 3 in batch"),
    (
        "sketch_many_",
        {"grads": randn(2, 126)},
        ValueError,
        r"grads must have the 127 entries of shapes, got \[2, 126\]",
    ),
    ("sketch_many_", {"grads": randn(2, 127).half()}, TypeError, "grads must be float32, got torch.float16"),
    ("sketch_many_", {"keys": [1, -1]}, ValueError, r"key must be in \[0, 2\*\*64\), got -1"),
    ("sketch_many_", {"row_begins": [0, -1]}, ValueError, r"row_begins must not be negative, got .*\[0, -1\]"),
    ("sketch_many_", {"shapes": [(-1, 7), (3, 40)]}, ValueError, r"shapes .* must not be negative, got \[\(-1, 7\)"),
    ("sketch_many_", {"features": torch.zeros(2, 100)}, ValueError, "proj_dim must be a positive multiple of 32"),
    ("sketch_many_", {"nnz": 65}, ValueError, "nnz must be between 1 and 64, got 65"),
    ("sketch_outer_many_", {"keys": [1]}, ValueError, "keys must have one item for each of 2 in a, got 1"),
    ("sketch_outer_many_", {"convs": [None]}, ValueError, "convs must have one item for each of 2 in a, got 1"),
    ("sketch_outer_many_", {"scales": [1.0, math.inf]}, ValueError, r"scales must be finite, got \[1.0, inf\]"),
    ("sketch_outer_many_", {"keys": [1, 2**64]}, ValueError, r"key must be in \[0, 2\*\*64\), got 1844"),
    ("sketch_outer_many_", {"convs": [None, None]}, ValueError, r"a\[0\] must be \[num_rows, positions, d_in\], got"),
    ("sketch_outer_many_", {"features": torch.zeros(3, 96)}, ValueError, r"a\[0\] must hold a whole number of rows"),
    ("sketch_outer_many_", {"sums": [None]}, ValueError, "sums must have one item for each of 2 in a, got 1"),
    (
        "sketch_outer_many_",
        {"sums": [None, torch.zeros(2, 8)]},
        ValueError,
        r"sums\[1\] must be \[2, 7\], got \[2, 8\]",
    ),
    (
        "sketch_outer_many_",
        {"sums": [None, torch.zeros(2, 7).half()]},
        TypeError,
        r"sums\[1\] must be float32 on cpu, got",
    ),
    ("sketch_outer_many_", {"sums": [None, torch.zeros(7, 2).T]}, ValueError, r"sums\[1\] must have contiguous rows"),
    ("sketch_outer_many_", {"nnz": 0}, ValueError, "nnz must be between 1 and 64, got 0"),
    ("project_", {"grads": randn(2, 5, 7)}, ValueError, r"grads must be \[batch, grad_dim\], got \[2, 5, 7\]"),
    ("project_", {"grads": randn(7)}, ValueError, "features must have one row for each of the 7 in batch, got 2"),
    ("project_", {"grads": torch.ones(2, 7).int()}, TypeError, "grads must be .*, got torch.int32"),
    ("project_", {"features": torch.zeros(2, 50).double()}, TypeError, "features must be float32, got torch.float64"),
    ("project_", {"features": torch.zeros(2, 100)[:, ::2]}, ValueError, "features must have contiguous rows"),
    ("project_", {"kind": "gauss"}, ValueError, "kind must be one of 'rademacher', 'normal', got 'gauss'"),
    ("project_", {"key": 2**64}, ValueError, r"key must be in \[0, 2\*\*64\), got 18446744073709551616"),
    ("project_", {"row_begin": -3}, ValueError, "row_begin must not be negative, got -3"),
    ("sketch_outer_", {"a": randn(4, 6)}, ValueError, r"a must be \[num_rows, positions, d_in\], got \[4, 6\]"),
    ("sketch_outer_", {"g": randn(4, 7)}, ValueError, r"g must be \[num_rows, positions, d_out\], got \[4, 7\]"),
    ("sketch_outer_", {"g": randn(4, 4, 7)}, ValueError, r"a and g must agree .* got \[4, 5, 6\] and \[4, 4, 7\]"),
    ("sketch_outer_", {"g": randn(3, 5, 7)}, ValueError, r"a and g must agree .* got \[4, 5, 6\] and \[3, 5, 7\]"),
    ("sketch_outer_", {"a": randn(4, 5, 6).double()}, TypeError, "a must be .*, got torch.float64"),
    ("sketch_outer_", {"g": randn(4, 5, 7).double()}, TypeError, "g must be .*, got torch.float64"),
    ("sketch_outer_", {"g": randn(4, 5, 7).bfloat16()}, TypeError, "a and g must have the same dtype, got .*bfloat16"),
    ("sketch_outer_", {"features": torch.zeros(3, 96)}, ValueError, "whole number of rows .* 4 rows for 3 groups"),
    ("sketch_outer_", {"features": torch.zeros(0, 96)}, ValueError, "whole number of rows .* 4 rows for 0 groups"),
    ("sketch_outer_", {"features": torch.zeros(2, 95)}, ValueError, r"proj_dim must be .* 32, got .*\[2, 95\]"),
    ("sketch_outer_", {"features": torch.zeros(96)}, ValueError, r"features must be \[num_groups, .*, got \[96\]"),
    ("sketch_outer_", {"features": torch.zeros(2, 96).double()}, TypeError, "features must be float32, got .*float64"),
    ("sketch_outer_", {"key": -1}, ValueError, r"key must be in \[0, 2\*\*64\), got -1"),
    ("sketch_outer_", {"nnz": 0}, ValueError, "nnz must be between 1 and 64, got 0"),
    ("sketch_outer_ conv", {"a": randn(4, 6, 5)}, ValueError, r"a must be \[num_rows, c_in, .*, got \[4, 6, 5\]"),
    ("sketch_outer_ conv", {"g": randn(4, 9, 4, 5)}, ValueError, r"g must be \[4, c_out, 5, 5\] .* got \[4, 9, 4, 5\]"),
    ("sketch_outer_ conv", {"g": randn(3, 9, 5, 5)}, ValueError, r"g must be \[4, c_out, 5, 5\] .* got \[3, 9, 5, 5\]"),
    ("sketch_outer_ conv", {"g": randn(4, 9, 5)}, ValueError, r"g must be \[4, c_out, 5, 5\] .* got \[4, 9, 5\]"),
    ("sketch_outer_ conv", {"a": randn(4, 5, 5, 5)}, ValueError, "divisible by 3 groups, got 5, 9"),
    ("sketch_outer_ conv", {"g": randn(4, 8, 5, 5)}, ValueError, "divisible by 3 groups, got 6, 8"),
    ("norm_grads", {"x": randn(2, 30)}, ValueError, r"x must be \[num_rows, channels, positions\], got \[2, 30\]"),
    ("norm_grads", {"x": randn(2, 6, 5).double()}, TypeError, "x must be .*, got torch.float64"),
    ("norm_grads", {"g": randn(2, 6, 4)}, ValueError, r"g must be \[2, 6, 5\] .* like x, got \[2, 6, 4\]"),
    (
        "norm_grads",
        {"g": randn(2, 6, 5).half()},
        ValueError,
        r"g must be .* torch.float32 like x, got .* torch.float16",
    ),
    ("norm_grads", {"groups": 4}, ValueError, "groups must divide the 6 channels, got 4"),
    ("norm_grads", {"groups": -1}, ValueError, "groups must divide the 6 channels, got -1"),
    ("accumulate_gram_", {"gram": torch.zeros(7).double()}, ValueError, r"gram must be \[proj_dim, .*, got \[7\]"),
    ("accumulate_gram_", {"gram": torch.zeros(7, 8).double()}, ValueError, r"gram must be .*, got \[7, 8\]"),
    ("accumulate_gram_", {"gram": torch.zeros(7, 7)}, TypeError, "gram must be float64, got torch.float32"),
    ("accumulate_gram_", {"features": randn(7)}, ValueError, r"features must be \[num_samples, proj_dim\], got \[7\]"),
    ("accumulate_gram_", {"features": randn(5, 8)}, ValueError, r"features must be \[num_samples, 7\], got \[5, 8\]"),
    ("accumulate_gram_", {"features": randn(5, 7).double()}, TypeError, "features must be .*, got torch.float64"),
    ("accumulate_gram_", {"block_size": 0}, ValueError, "block_size must be positive, got 0"),
    ("pack_rows", {"rows": randn(64)}, ValueError, r"rows must be \[num_rows, proj_dim\], got \[64\]"),
    ("pack_rows", {"rows": randn(3, 64).half()}, TypeError, "rows must be float32, got torch.float16"),
    ("pack_rows", {"rows": randn(3, 48)}, ValueError, r"multiple of 32, got 48 of rows \[3, 48\]"),
    ("pack_rows", {"rows": randn(3, 0)}, ValueError, r"positive multiple of 32, got 0 of rows \[3, 0\]"),
    ("pack_rows", {"bits": 5}, ValueError, "bits must be 8 or 4, got 5"),
    ("unpack_rows", {"bits": 16}, ValueError, "bits must be 8 or 4, got 16"),
    ("unpack_rows", {"packed": torch.ones(3, 64)}, TypeError, "packed must be int8, got torch.float32"),
    ("unpack_rows", {"bits": 4}, TypeError, "packed must be uint8, got torch.int8"),
    ("unpack_rows", {"packed": torch.ones(64).char()}, ValueError, r"packed must be \[num_rows, proj_dim .* \[64\]"),
    ("unpack_rows", {"packed": torch.ones(3, 33).char()}, ValueError, r"32, got 33 of packed \[3, 33\]"),
    ("unpack_rows", {"packed": torch.ones(3, 8).byte(), "bits": 4}, ValueError, r"32, got 16 of packed \[3, 8\]"),
    ("unpack_rows", {"scales": torch.ones(4)}, ValueError, r"scales must be \[3\], one for each .*, got \[4\]"),
    ("unpack_rows", {"scales": torch.ones(3).double()}, TypeError, "scales must be float32, got torch.float64"),
    ("packed_products_", {"out": torch.zeros(3, 2)}, ValueError, r"out must be \[2, 3\], got \[3, 2\]"),
    ("packed_products_", {"out": torch.zeros(6)}, ValueError, r"out must be \[num_queries, num_rows\], got \[6\]"),
    ("packed_products_", {"out": torch.zeros(2, 3).double()}, TypeError, "out must be float32, got torch.float64"),
    ("packed_products_", {"out": torch.zeros(3, 2).T}, ValueError, "out must have contiguous rows, got strides"),
    ("packed_products_", {"out": torch.zeros(1, 3).expand(2, 3)}, ValueError, "out must have rows that do not overlap"),
    ("packed_products_", {"queries": randn(64)}, ValueError, r"queries must be \[num_queries, .*, got \[64\]"),
    ("packed_products_", {"queries": randn(2, 32)}, ValueError, r"queries must be \[num_queries, 64\] .* \[2, 32\]"),
    ("packed_products_", {"queries": randn(2, 64).half()}, TypeError, "queries must be float32, got torch.float16"),
    ("packed_products_", {"packed": torch.ones(3, 64).byte()}, TypeError, "packed must be int8, got torch.uint8"),
    ("packed_products_", {"scales": torch.ones(3, 1)}, ValueError, r"scales must be \[3\], .*, got \[3, 1\]"),
    ("packed_products_", {"bits": 3}, ValueError, "bits must be 8 or 4, got 3"),
    *((op, {"features": torch.zeros(2, 0)}, ValueError, r"positive multiple of 32, got .*\[2, 0\]") for op in SKETCHES),
]


@pytest.mark.parametrize(("channels", "gradients"), [(0, 7), (6, 0), (0, 0)])
@pytest.mark.parametrize("conv", [None, ConvGeometry((3, 3), (1, 1), (1, 1), (1, 1))], ids=["linear", "conv"])
def test_a_layer_without_channels_adds_nothing(conv, channels, gradients):
    features = randn(2, 96)
    before = features.clone()
    shapes = ((4, 5, channels), (4, 5, gradients)) if conv is None else ((4, channels, 8, 8), (4, gradients, 8, 8))
    ops.sketch_outer_(features, *map(torch.zeros, shapes), key=1, conv=conv)
    assert torch.equal(features, before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stride": (0, 1)}, r"stride must be 2 numbers of at least 1, .* got \(0, 1\)"),
        ({"dilation": (1,)}, r"dilation must be 2 numbers of at least 1, .* got \(1,\)"),
        ({"padding": (-1, 0)}, r"padding must be 2 numbers of at least 0, .* got \(-1, 0\)"),
        ({"kernel_size": ()}, r"kernel_size must be 1, 2 or 3 numbers"),
        ({"groups": 0}, "groups must be positive, got 0"),
    ],
)
def test_a_walk_that_leads_nowhere_is_refused(changes, message):
    fields = {"kernel_size": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}
    with pytest.raises(ValueError, match=message):
        ConvGeometry(**fields | changes)


@pytest.mark.parametrize("case", good())
def test_the_arguments_that_the_next_test_spoils_are_right(case):
    getattr(ops, case.split()[0])(**good()[case])


@pytest.mark.parametrize(("case", "spoilt", "error", "message"), SPOILT)
def test_bad_arguments_are_named_with_what_came_and_what_is_right(case, spoilt, error, message):
    arguments = good()[case] | spoilt
    before = {name: value.clone() for name, value in arguments.items() if isinstance(value, Tensor)}
    with pytest.raises(error, match=message):
        getattr(ops, case.split()[0])(**arguments)
    assert all(torch.equal(arguments[name], value) for name, value in before.items()), "written to before the check"


@pytest.mark.parametrize(
    ("case", "name"), [(case, name) for case in good() for name, x in good()[case].items() if isinstance(x, Tensor)]
)
def test_what_is_no_tensor_is_named(case, name):
    with pytest.raises(TypeError, match=f"{name} must be a tensor, got list"):
        getattr(ops, case.split()[0])(**good()[case] | {name: [1.0, 2.0]})


def test_what_is_no_tensor_among_several_is_named():
    with pytest.raises(TypeError, match=r"a\[1\] must be a tensor, got ndarray"):
        ops.sketch_outer_many_(**good()["sketch_outer_many_"] | {"a": [randn(4, 6, 5, 5), randn(4, 5, 6).numpy()]})


@pytest.mark.parametrize(
    ("changes", "without", "message"),
    [
        ({}, "num_samples", "GramArgs: num_samples is missing"),
        ({"samples": 5}, None, "GramArgs: samples is not one of features, gram, dtype, .*, gram_stride"),
        ({"samples": 5}, "num_samples", "GramArgs: num_samples is missing"),
        ({"num_samples": 5.0}, None, "GramArgs: num_samples must fit long, got 5.0"),
        ({"num_samples": 2**63}, None, "GramArgs: num_samples must fit long, got 9223372036854775808"),
        ({"gram": "x"}, None, r"GramArgs: gram must fit double\*, got 'x'"),
        ({"dtype": torch.float32}, None, "GramArgs: dtype must fit journey::DType, got torch.float32"),
    ],
)
def test_a_kernel_names_the_argument_that_it_was_not_told_right(changes, without, message):
    fields = "features", "gram", "dtype", "precision", "num_samples", "proj_dim", "features_stride", "gram_stride"
    args = dict.fromkeys(fields, 0) | changes
    args.pop(without, None)
    with pytest.raises(TypeError, match=message):
        _native.cpu.accumulate_gram(args, 1)


def test_a_kernel_takes_three_numbers_for_three_dimensions(monkeypatch):
    told = {}
    monkeypatch.setattr(CpuKernels, "run", lambda _, op, memory, args: told.update(args))
    CpuKernels().sketch_outer_(torch.zeros(1, 32), randn(1, 2, 3), randn(1, 2, 3), KEY, 1, [], [], [], [], 1)
    for size in ([1, 1], [1, 1, 1, 1], 1, [1, 1, 1.5]):
        with pytest.raises(TypeError, match=r"SketchOuterArgs: kernel must fit long *\[3\], got "):
            _native.cpu.sketch_outer(told | {"kernel": size}, 1)


@pytest.mark.cuda
@pytest.mark.parametrize("case", good())
def test_tensors_on_two_devices_are_refused(case):
    tensors = [name for name, value in good()[case].items() if isinstance(value, Tensor)]
    for name in tensors:
        arguments = good()[case]
        arguments[name] = arguments[name].cuda()
        with pytest.raises(ValueError, match="must be on"):
            getattr(ops, case.split()[0])(**arguments)


# ------------------------------------------------------------------------------------------ torch's rules


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "name",
    [
        "philox_words",
        "philox_normal",
        "sketch_",
        "many",
        "project_",
        "outer",
        "layers",
        "conv",
        "norm",
        "gram",
        "pack",
        "products",
    ],
)
def test_is_a_well_behaved_torch_op(name, device):
    ids = torch.arange(3)
    conv = CONVS["groups"]
    walk = (list(conv.kernel_size), list(conv.stride), list(conv.padding), list(conv.dilation), conv.groups)
    registered = torch.ops.journey
    op, arguments = {
        "philox_words": (registered.philox_words, (ids, ids, ids, 1)),
        "philox_normal": (registered.philox_normal, (ids, ids, 70)),
        "sketch_": (registered.sketch_, (torch.zeros(2, 96), randn(2, 5, 7), -3, 4, 2)),
        "many": (
            registered.sketch_many_,
            (torch.zeros(2, 96), randn(2, 127), [3, -4], [1, 3], [7, 40], [0, 5], [1.0, 0.5], 2),
        ),
        "layers": (
            registered.sketch_outer_many_,
            (
                *(torch.zeros(2, 96), [randn(4, 5, 6)], [randn(4, 5, 7)]),
                *([-3], [*LINEAR_NUMBERS], [0.5], 2, [torch.zeros(2, 7)], [0]),
            ),
        ),
        "project_": (registered.project_, (torch.zeros(2, 50), randn(2, 7), -3, 1, 4)),
        "outer": (
            registered.sketch_outer_,
            (torch.zeros(2, 96), randn(4, 5, 6), randn(4, 5, 7), 3, 2, [], [], [], [], 1),
        ),
        "conv": (registered.sketch_outer_, (torch.zeros(2, 96), *layer_tensors(conv, 4), 3, 2, *walk)),
        "norm": (registered.norm_grads, (randn(2, 6, 5), randn(2, 6, 5), 3, True, 0.1)),
        "gram": (registered.accumulate_gram_, (torch.zeros(7, 7, dtype=torch.float64), randn(5, 7), 4)),
        "pack": (registered.pack_rows, (randn(3, 64), 4)),
        "products": (
            registered.packed_products_,
            (torch.zeros(2, 3), randn(2, 64), torch.ones(3, 64).char(), torch.ones(3), 8),
        ),
    }[name]
    arguments = torch.utils._pytree.tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, arguments)
    torch.library.opcheck(op.default, arguments)


@pytest.mark.parametrize("device", DEVICES)
def test_gradients_that_autograd_still_tracks_are_taken_and_nothing_is_recorded(device):
    features, tracked = torch.zeros(2, 96, device=device), randn(2, 5, 7).to(device).requires_grad_()
    ops.sketch_(features, tracked, key=1)
    assert not features.requires_grad


# --------------------------------------------------------------------------------------- instruction sets


@pytest.fixture
def use_isa() -> Iterator[Callable[[str], None]]:
    """A function that switches the instruction set of the CPU kernels, undone after the test."""
    before = _native.cpu.isa()
    yield _native.cpu.set_isa
    _native.cpu.set_isa(before)


def available_isas() -> list[str]:
    """The instruction sets of this build on this processor, the widest first."""
    before, found = _native.cpu.isa(), []
    for name in ("amx", "avx512", "avx2", "baseline"):
        try:
            _native.cpu.set_isa(name)
        except ValueError:
            continue
        found.append(name)
    _native.cpu.set_isa(before)
    return found


def everything() -> Iterator[tuple[str, Tensor]]:
    """One result of every vectorised kernel whose arithmetic is exact or fixed, at every kind of size and dtype."""
    for numel in (0, 1, 15, 17, 64, 65, 1009):
        yield f"normals {numel}", ops.philox_normal(torch.arange(3) * 12345, torch.arange(3), numel)
    for dtype in DTYPES:
        for rows, cols in [*MATRICES, (600, 700)]:
            for proj_dim in (32, 96, 1024):
                features = torch.zeros(2, proj_dim)
                ops.sketch_(features, randn(2, rows, cols, dtype=dtype), key=KEY, nnz=2)
                yield f"sketch {rows} x {cols}, {proj_dim}, {dtype}", features
        for name, conv in CONVS.items():
            a, g = layer_tensors(conv, 4, make=integers)
            features = torch.zeros(2, 96)
            ops.sketch_outer_(features, a.to(dtype), g.to(dtype), key=KEY, conv=conv.geometry)
            yield f"sketch_outer {name}, {dtype}", features
        for positions, d_in, d_out in [(1, 31, 17), (300, 70, 33)]:
            features = torch.zeros(2, 96)
            a, g = integers(4, positions, d_in, seed=1).to(dtype), integers(4, positions, d_out, seed=2).to(dtype)
            ops.sketch_outer_(features, a, g, key=KEY)
            yield f"sketch_outer {positions} x {d_in} x {d_out}, {dtype}", features
        for grad_dim, proj_dim in itertools.product((1, 31, 129, 300), (1, 33, 128, 257)):
            features = torch.zeros(19, proj_dim)
            ops.project_(features, integers(19, grad_dim).to(dtype), key=KEY, kind="rademacher")
            yield f"project {grad_dim}, {proj_dim}, {dtype}", features
        for num_samples, proj_dim in [(1, 1), (5, 25), (300, 170), (129, 600)]:
            gram = torch.zeros(proj_dim, proj_dim, dtype=torch.float64)
            ops.accumulate_gram_(gram, randn(num_samples, proj_dim, dtype=dtype))  # exact products in a fixed order
            yield f"gram {num_samples} x {proj_dim}, {dtype}", gram
    for bits, proj_dim in itertools.product((8, 4), (32, 96, 1056)):
        rows = randn(7, proj_dim) * 2.0 ** torch.tensor([-140, -101, -90, 0, 1, 60, 120]).unsqueeze(1)
        packed, scales = ops.pack_rows(rows, bits)
        yield f"codes of {bits} bits, {proj_dim}", packed
        yield f"scales of {bits} bits, {proj_dim}", scales
        for num_queries in (1, 2, 3, 8, 13):
            out = torch.zeros(num_queries, 7)
            ops.packed_products_(out, integers(num_queries, proj_dim), packed, torch.ones(7), bits)
            yield f"products of {num_queries} queries with {bits} bits, {proj_dim}", out


def test_every_instruction_set_gives_the_same_bits(use_isa):
    widest, *others = available_isas()
    use_isa(widest)
    expected = dict(everything())
    for isa in others:
        use_isa(isa)
        for what, actual in everything():
            assert torch.equal(actual, expected[what]), f"{isa} differs from {widest}: {what}"


@pytest.mark.parametrize("grad_dim", [1, 31, 129, 300])
@pytest.mark.parametrize("proj_dim", [1, 33, 128, 257])
def test_normal_projections_of_all_instruction_sets_agree_to_rounding(grad_dim, proj_dim, use_isa):
    # Not in bits: one set fuses a product and its sum, another rounds in between.
    grads = randn(19, grad_dim)
    expected = reference.project(grads, proj_dim, KEY, "normal")
    matrix = reference.normal_matrix(grad_dim, proj_dim, KEY)
    plain_error = ((grads @ matrix.float()) / proj_dim**0.5 - expected).abs().max()
    # Entries of the matrix err by 4e-6 at their very worst, see tests/ops/test_philox.py.
    entry_error = 4e-6 * grads.abs().sum(1).max() / proj_dim**0.5
    for isa in available_isas():
        use_isa(isa)
        features = torch.zeros(19, proj_dim)
        ops.project_(features, grads, key=KEY, kind="normal")
        assert (features - expected).abs().max() <= 2 * plain_error + entry_error, isa


@pytest.mark.parametrize("bits", [8, 4])
def test_products_with_packed_rows_of_all_instruction_sets_keep_the_promised_error(bits, use_isa):
    # Not in bits: a wider register has more sums side by side.
    queries, (packed, scales) = randn(9, 4096), ops.pack_rows(1 + randn(5, 4096, seed=1), bits)
    rows = reference_packed.unpack_rows(packed, scales, bits)
    for isa in available_isas():
        use_isa(isa)
        out = torch.zeros(9, 5)
        ops.packed_products_(out, queries, packed, scales, bits)
        error = (out - queries.double() @ rows.T).abs()
        assert torch.all(error <= (4096 / 8 + 8) * 2.0**-24 * (queries.double().abs() @ rows.abs().T)), isa


def test_an_instruction_set_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"isa must be one .* got mmx"):
        _native.cpu.set_isa("mmx")
