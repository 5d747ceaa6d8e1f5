"""The CUDA kernels, compiled for the CPU, against the reference: their arithmetic needs no device to be checked."""

from __future__ import annotations

import itertools
import math
import shutil

import pytest
import torch
from cases import CONVS, DTYPES, HIGH_KEY, KEY, MATRICES, Conv, assert_as_exact_as_torch, integers, randn
from cuda_emulation import emulated
from torch import Tensor

from journey import reference


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory):
    """The emulated kernels."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    return emulated.build(compiler, tmp_path_factory.mktemp("cuda_emulation"))


def int64s(*values: int) -> Tensor:
    """64-bit integers as torch has them, in two's complement. [len(values)]."""
    return torch.tensor([(v + 2**63) % 2**64 - 2**63 for v in values], dtype=torch.int64)


# ----------------------------------------------------------------------------------------------- random


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_words_are_the_published_vectors(kernels, counter, key, expected):
    c, k = ([int(word, 16) for word in text.split()] for text in (counter, key))
    words = kernels.philox_words(int64s(k[0] | k[1] << 32), int64s(c[0] | c[1] << 32), int64s(c[2]), c[3])
    assert " ".join(f"{word:08x}" for word in words[0].tolist()) == expected


@pytest.mark.parametrize("n", [0, 1, 255, 256, 257, 1009])
def test_words_equal_the_reference_bit_for_bit(kernels, n):
    keys = torch.arange(n) * 0x9E3779B97F4A7C15
    indices, minors = keys ^ 0x5555, (torch.arange(n) * 0x9E3779B9) & 0xFFFFFFFF
    assert torch.equal(kernels.philox_words(keys, indices, minors, 3), reference.philox(keys, indices, minors, 3))


@pytest.mark.parametrize("numel", [0, 1, 15, 17, 63, 64, 65, 127, 1009])
def test_normals_equal_the_host_bit_for_bit_and_the_reference_within_their_promise(kernels, numel):
    keys, minors = [KEY, HIGH_KEY, 0, KEY, 2**64 - 1], [0, 2**32 - 1, 7, 1, 5]
    actual = kernels.philox_normal(int64s(*keys), int64s(*minors), numel)
    for row, key, minor in zip(actual, keys, minors, strict=True):
        assert torch.equal(row, kernels.host_normal(key, minor, numel))
        # csrc/common/normal.h promises 4e-6; another order of elements shows as errors around 1.
        assert torch.all((row - reference.noise(key, minor, numel)).abs() < 4e-6)


# ----------------------------------------------------------------------------------------------- sketch


@pytest.mark.parametrize(
    ("rows", "cols", "proj_dim", "row_begin"),
    [(1, 1, 32, 0), (3, 33, 32, 0), (5, 31, 96, 2**45 + 3), (40, 7, 1024, 31), (2, 65, 8192, 2**31 - 1)],
)
def test_every_entry_has_the_bucket_and_the_sign_of_host_and_reference(kernels, rows, cols, proj_dim, row_begin):
    one_hot = torch.eye(rows * cols).reshape(-1, rows, cols)
    actual = kernels.sketch(one_hot, proj_dim, HIGH_KEY, row_begin=row_begin).double()
    buckets, signs = kernels.host_sketch_map(HIGH_KEY, rows, cols, proj_dim, row_begin=row_begin)
    expected = torch.zeros(rows * cols, proj_dim, dtype=torch.float64)
    assert torch.equal(actual, expected.scatter_(1, buckets.reshape(-1, 1), signs.reshape(-1, 1)))
    assert torch.equal(actual, reference.sketch_matrix(HIGH_KEY, rows, cols, proj_dim, row_begin=row_begin))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "cols"), MATRICES)
def test_sketch_is_exact_on_integers(kernels, rows, cols, dtype):
    for batch, proj_dim, nnz in [(0, 96, 1), (1, 32, 1), (3, 96, 4), (2, 1024, 1), (2, 4160, 4)]:
        grads = integers(batch, rows, cols).to(dtype)
        expected = reference.sketch(grads, proj_dim, KEY, nnz)  # sqrt(4) is exact too
        assert torch.equal(kernels.sketch(grads, proj_dim, KEY, nnz=nnz).double(), expected)


def test_sketch_in_many_slices_stays_as_exact_as_torch(kernels):
    grads = 1 + randn(2, 97, 1601)  # a mean far from zero; 64 slices of 78 tiles
    expected = reference.sketch(grads, 32, KEY)
    buckets, signs = reference.sketch_map(KEY, 97, 1601, 32)
    plain = torch.zeros(2, 32).index_add_(1, buckets.flatten(), (grads * signs.float()).reshape(2, -1))
    assert_as_exact_as_torch(kernels.sketch(grads, 32, KEY), plain, expected)


@pytest.mark.parametrize(("rows", "cols"), [(1, 4099), (131, 37)])
def test_sketch_does_not_depend_on_the_batch_or_its_stride(kernels, rows, cols):
    grads = randn(5, rows, cols)
    whole = kernels.sketch(grads, 96, KEY, nnz=2)
    alone = [kernels.sketch(sample.unsqueeze(0), 96, KEY, nnz=2) for sample in grads]
    assert torch.equal(whole, torch.cat(alone))
    assert torch.equal(whole[::2], kernels.sketch(grads[::2], 96, KEY, nnz=2))


def test_pieces_of_rows_add_up_to_the_sketch_of_the_whole(kernels):
    grads = integers(2, 80, 70)
    for edges in ([0, 1, 80], [0, 31, 32, 65, 80], [0, 3, 3, 77, 80]):
        pieces = torch.zeros(2, 96)
        for begin, end in itertools.pairwise(edges):
            pieces += kernels.sketch(grads[:, begin:end], 96, KEY, row_begin=begin)
        assert torch.equal(pieces, kernels.sketch(grads, 96, KEY))


def test_samples_more_than_2_to_the_31_elements_apart_are_found(kernels):
    # Only the pages of the three samples are touched, so this costs address space and no memory.
    stride, values = 2**30 + 640, integers(3, 60, 64)
    grads = torch.empty(2 * stride + 4096, dtype=torch.bfloat16).as_strided((3, 60, 64), (stride, 64, 1))
    grads.copy_(values)
    assert torch.equal(kernels.sketch(grads, 96, KEY), kernels.sketch(values, 96, KEY))
    flat = grads.flatten(1)  # a copy
    apart = grads.as_strided((3, 60 * 64), (stride, 1))
    assert torch.equal(kernels.project(apart, 5, KEY, "rademacher"), kernels.project(flat, 5, KEY, "rademacher"))


# ---------------------------------------------------------------------------------------------- project


@pytest.mark.parametrize("kind", ["rademacher", "normal"])
@pytest.mark.parametrize(("grad_dim", "proj_dim", "row_begin"), [(1, 1, 0), (70, 129, 2**45 + 3), (33, 300, 2**32 - 7)])
def test_every_entry_of_the_projection_has_the_bits_of_the_host(kernels, grad_dim, proj_dim, row_begin, kind):
    actual = kernels.project(torch.eye(grad_dim), proj_dim, KEY, kind, row_begin=row_begin)
    expected = kernels.host_projection(KEY, grad_dim, proj_dim, kind, row_begin=row_begin)
    assert torch.equal(actual, torch.tensor(1 / math.sqrt(proj_dim)) * expected.float())
    matrix = {"rademacher": reference.rademacher_matrix, "normal": reference.normal_matrix}[kind]
    error = (expected - matrix(grad_dim, proj_dim, KEY, row_begin=row_begin)).abs().max()
    assert error == 0 if kind == "rademacher" else error < 4e-6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "grad_dim"), [(0, 5), (3, 0), (1, 1), (2, 31), (31, 32), (33, 257), (5, 4097)])
def test_signed_sums_are_exact_on_integers(kernels, batch, grad_dim, dtype):
    grads = integers(batch, grad_dim).to(dtype)
    for proj_dim in (4, 256):  # powers of four scale exactly
        expected = reference.project(grads, proj_dim, HIGH_KEY, "rademacher")
        assert torch.equal(kernels.project(grads, proj_dim, HIGH_KEY, "rademacher").double(), expected)


@pytest.mark.parametrize("kind", ["rademacher", "normal"])
@pytest.mark.parametrize(
    ("batch", "grad_dim", "proj_dim"), [(3, 257, 127), (33, 100, 65), (2, 9001, 33), (2, 20_011, 1)]
)
def test_projection_is_as_exact_as_torch(kernels, batch, grad_dim, proj_dim, kind):
    grads = 1 + randn(batch, grad_dim)
    matrix = kernels.host_projection(KEY, grad_dim, proj_dim, kind)
    expected, plain = grads.double() @ matrix / proj_dim**0.5, grads @ matrix.float() / proj_dim**0.5
    assert_as_exact_as_torch(kernels.project(grads, proj_dim, KEY, kind), plain, expected)


@pytest.mark.parametrize("kind", ["rademacher", "normal"])
def test_projection_does_not_depend_on_the_batch(kernels, kind):
    grads = randn(35, 4500)
    whole = kernels.project(grads, 40, KEY, kind)
    parts = [kernels.project(part, 40, KEY, kind) for part in grads.split([1, 2, 32])]
    assert torch.equal(whole, torch.cat(parts))


# ----------------------------------------------------------------------------------------- sketch_outer


def layer_tensors(conv: Conv, rows: int, make=integers) -> tuple[Tensor, Tensor]:
    """Input and output gradient of a convolution. [rows, c_in, *size], [rows, c_out, *size_out]."""
    return make(rows, conv.c_in, *conv.size, seed=1), make(rows, conv.c_out, *conv.size_out, seed=2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("positions", "d_in", "d_out"),
    [(1, 1, 1), (1, 31, 33), (5, 32, 64), (7, 33, 65), (129, 13, 101), (3, 257, 67), (0, 4, 4)],
)
def test_linear_gradients_are_sketched_exactly_on_integers(kernels, positions, d_in, d_out, dtype):
    for groups, rows_per_group, proj_dim, nnz in [(1, 1, 32, 1), (2, 3, 96, 4), (2, 1, 1024, 1), (0, 1, 32, 1)]:
        rows = groups * rows_per_group
        a = integers(rows, positions, d_in, seed=1).to(dtype)
        g = integers(rows, positions, d_out, seed=2).to(dtype)
        actual = kernels.sketch_outer(a, g, proj_dim, HIGH_KEY, groups, nnz=nnz)
        expected = reference.sketch_outer(a, g, proj_dim, HIGH_KEY, rows_per_group=rows_per_group, nnz=nnz)
        assert torch.equal(actual.double(), expected)


@pytest.mark.parametrize("name", [name for name, conv in CONVS.items() if len(conv.size) < 3])
def test_convolution_gradients_are_sketched_exactly_on_integers(kernels, name):
    conv = CONVS[name]
    for groups, rows_per_group, proj_dim, nnz in [(1, 3, 32, 1), (2, 2, 96, 4)]:
        a, g = layer_tensors(conv, groups * rows_per_group)
        actual = kernels.sketch_outer(a, g, proj_dim, KEY, groups, conv=conv.geometry, nnz=nnz)
        options = {"rows_per_group": rows_per_group, "nnz": nnz, "conv": conv.geometry}
        assert torch.equal(actual.double(), reference.sketch_outer(a, g, proj_dim, KEY, **options))


def test_sums_that_do_not_fit_in_shared_memory_are_exact_too(kernels):
    a, g = integers(4, 9, 75, seed=1), integers(4, 9, 130, seed=2)
    for proj_dim in (8192, 8224):
        expected = reference.sketch_outer(a, g, proj_dim, KEY, rows_per_group=2, nnz=4)
        assert torch.equal(kernels.sketch_outer(a, g, proj_dim, KEY, 2, nnz=4).double(), expected)


def test_layers_are_read_through_any_strides(kernels):
    conv = CONVS["3x3, stride"]
    a, g = layer_tensors(conv, 4)
    expected = kernels.sketch_outer(a, g, 96, KEY, 2, conv=conv.geometry)
    views = {
        "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
        "inside a larger tensor": lambda x: torch.nn.functional.pad(x, (2, 3, 1, 1), value=9.0)[..., 1:-1, 2:-3],
        "every other row": lambda x: x.repeat_interleave(2, dim=0)[::2],
        "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        "backwards channels of a larger tensor": lambda x: torch.stack([x, x + 1], dim=2)[:, :, 0],
    }
    for what, view in views.items():
        assert torch.equal(kernels.sketch_outer(view(a), view(g), 96, KEY, 2, conv=conv.geometry), expected), what


def test_contracted_positions_stay_as_exact_as_torch(kernels):
    a, g = 1 + randn(6, 700, 40, seed=1), 1 + randn(6, 700, 33, seed=2)  # 2,100 terms per entry, 64 tiles in slices
    actual = kernels.sketch_outer(a, g, 96, KEY, 2)
    grads = [(g_.flatten(0, 1).T @ a_.flatten(0, 1)) for a_, g_ in zip(a.split(3), g.split(3), strict=True)]
    buckets, signs = reference.sketch_map(KEY, 33, 40, 96)
    plain = torch.zeros(2, 96).index_add_(1, buckets.flatten(), (torch.stack(grads) * signs.float()).flatten(1))
    assert_as_exact_as_torch(actual, plain, reference.sketch_outer(a, g, 96, KEY, rows_per_group=3))


def test_fused_sketch_does_not_depend_on_the_batch(kernels):
    conv = CONVS["wide"]
    a, g = layer_tensors(conv, 6, randn)
    whole = kernels.sketch_outer(a, g, 96, KEY, 3, conv=conv.geometry)
    alone = [kernels.sketch_outer(a[i : i + 2], g[i : i + 2], 96, KEY, 1, conv=conv.geometry) for i in (0, 2, 4)]
    assert torch.equal(whole, torch.cat(alone))


# ------------------------------------------------------------------------------------------------- gram


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("num_samples", "proj_dim"), [(0, 5), (1, 1), (31, 63), (32, 64), (33, 65), (100, 129), (5, 200)]
)
def test_gram_is_exact_on_integers_and_leaves_the_lower_triangle_alone(kernels, num_samples, proj_dim, dtype):
    features = integers(num_samples, proj_dim + 3).to(dtype)[:, 1:-2]
    upper = torch.ones(proj_dim, proj_dim).triu().bool()
    before = integers(proj_dim, proj_dim, seed=3).double().masked_fill(~upper, torch.nan)
    buffer = torch.full((proj_dim + 2, proj_dim + 5), 7.0, dtype=torch.float64)
    gram = buffer[1:-1, 2:-3]
    gram.copy_(before)
    kernels.accumulate_gram_(gram, features)
    assert torch.equal(gram[upper], (before + reference.gram(features))[upper])
    assert gram[~upper].isnan().all()
    gram.fill_(7.0)
    assert (buffer == 7.0).all(), "it wrote outside the matrix"


def test_gram_of_many_samples_errs_like_a_sum_of_32(kernels):
    features = 1 + randn(3000, 65)
    gram = torch.zeros(65, 65, dtype=torch.float64)
    kernels.accumulate_gram_(gram, features)
    # Each float32 sum of 32 products errs by at most 32 half-ulps of the sum of their sizes.
    bound = 32 * torch.finfo(torch.float32).eps / 2 * (features.double().abs().T @ features.double().abs())
    assert torch.all((gram - reference.gram(features)).abs().triu() <= bound)


# ----------------------------------------------------------------------------------------------- errors


def test_what_a_launch_cannot_do_is_an_error_and_nothing_is_touched(kernels):
    run = kernels.library.run_accumulate_gram
    int64 = emulated.c_int64
    # 65,536 tiles of columns do not fit a grid; null pointers would crash if anything were read.
    many = int64(64 * 65_536)
    assert run(None, None, 0, int64(1), many, many, many) == emulated.INVALID_CONFIGURATION
    assert run(None, None, 3, int64(1), int64(1), int64(1), int64(1)) == emulated.INVALID_VALUE  # no such dtype
    sketch, project, outer = emulated.SketchArgs, emulated.ProjectArgs, emulated.SketchOuterArgs
    matrix = {"batch": 1, "rows": 1000, "cols": 1000, "nnz": 1}
    invalid = [
        (kernels.library.run_sketch, sketch(**{**matrix, "proj_dim": 33})),
        (kernels.library.run_sketch, sketch(**{**matrix, "proj_dim": 32, "nnz": 0})),
        (kernels.library.run_sketch, sketch(**{**matrix, "proj_dim": 32})),  # needs a workspace
        (kernels.library.run_project, project(batch=1, grad_dim=10_000, proj_dim=8)),  # needs a workspace
        (kernels.library.run_project, project(batch=1, grad_dim=10, proj_dim=8, kind=2)),
        (kernels.library.run_sketch_outer, outer(num_groups=1, proj_dim=32, nnz=1)),  # no convolution groups
    ]
    for launch, args in invalid:
        assert launch(emulated.byref(args)) == emulated.INVALID_VALUE
