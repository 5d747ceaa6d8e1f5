"""The CUDA kernels, compiled for the CPU, against the reference: their arithmetic needs no device to be checked."""

from __future__ import annotations

import ctypes
import itertools
import math
import os
import shutil
import signal
from ctypes import c_int64

import pytest
import torch
from cases import CONVS, DTYPES, HIGH_KEY, KEY, MATRICES, Conv, assert_as_exact_as_torch, integers, randn
from cuda_emulation import emulated
from torch import Tensor

from journey.ops import cuda as _cuda_kernels
from journey.ops import reference, reference_norm, reference_packed
from journey.ops.checks import conv_arguments
from journey.ops.cuda import CudaKernels
from journey.ops.geometry import LINEAR_NUMBERS, ConvGeometry
from journey.ops.keys import to_signed


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory):
    """The emulated kernels."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    return emulated.build(compiler, tmp_path_factory.mktemp("cuda_emulation"))


@pytest.fixture
def any_device(kernels):
    """The emulated kernels on a device that the test may change."""
    yield kernels
    kernels.set_device()


@pytest.fixture
def old_device(any_device):
    """The emulated kernels on a device like sm_75: no tensor cores, 64 KiB of shared memory per block."""
    any_device.set_device(tensor_cores=False, max_shared_bytes=64 << 10)
    return any_device


def int64s(*values: int) -> Tensor:
    """64-bit integers as torch has them, in two's complement. [len(values)]."""
    return torch.tensor([(v + 2**63) % 2**64 - 2**63 for v in values], dtype=torch.int64)


# --------------------------------------------------------------------------------------- warp instructions


def words_of(matrix: Tensor) -> Tensor:
    """Neighbouring elements of the rows of a matrix as words of 4 bytes, int32. [rows, words]."""
    return matrix.contiguous().view(torch.int32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_fragments_lie_as_the_instruction_set_documents(kernels, dtype):
    depth = 32 // dtype.itemsize
    a, b, c = integers(16, depth, seed=1).to(dtype), integers(depth, 8, seed=2).to(dtype), integers(16, 8, seed=3)
    group, t = torch.arange(32) // 4, torch.arange(32) % 4
    left, right = words_of(a), words_of(b.T)  # [16, 8 words], [8 columns, 8 words]
    fragment_a = torch.stack([left[group, t], left[group + 8, t], left[group, t + 4], left[group + 8, t + 4]], 1)
    fragment_b = torch.stack([right[group, t], right[group, t + 4]], 1)
    place = [(group, 2 * t), (group, 2 * t + 1), (group + 8, 2 * t), (group + 8, 2 * t + 1)]
    product = kernels.mma(fragment_a, fragment_b, torch.stack([c[at] for at in place], 1), dtype)
    expected = a.float() @ b.float() + c
    assert torch.equal(product, torch.stack([expected[at] for at in place], 1))


def test_a_lane_receives_its_word_of_each_matrix(kernels):
    buffer = torch.arange(4 * 8 * 4 + 4, dtype=torch.int32)
    matrices = buffer[-buffer.data_ptr() // 4 % 4 :][: 4 * 8 * 4].view(4, 8, 4)
    lane = torch.arange(32)
    assert torch.equal(kernels.load_matrices(matrices), matrices[:, lane // 4, lane % 4].T)


def test_tf32_is_the_nearest_number_of_11_bits_ties_away_from_zero(kernels):
    ulp = 2.0**-10
    x = torch.tensor([1 + ulp / 2, 1 + ulp / 2 - 2**-23, -1 - ulp / 2, 3 - 2**-22, 0.0, math.inf])
    assert kernels.split_tf32(x)[0].tolist() == [1 + ulp, 1.0, -1 - ulp, 3.0, 0.0, math.inf]


def test_two_tf32_numbers_hold_23_bits_of_a_float(kernels):
    x = randn(10_000)
    high, low = kernels.split_tf32(x)
    assert torch.all((x.double() - high - low).abs() <= 2**-23 * x.abs())


def test_a_nan_of_any_bits_stays_one_in_its_lower_part(kernels):
    x = torch.tensor([0x7FFFFFFF, -1, 0x7F800001, 0x7FC00000], dtype=torch.int32).view(torch.float32)
    assert kernels.split_tf32(x)[1].isnan().all()


def test_divisions_as_products_are_exact(kernels):
    for divisor in (1, 2, 3, 7, 9, 31, 32, 33, 4095, 65_537, 2**28 + 1, 2**29 - 1, 2**29):
        for quotient in (0, 1, 2, (2**31 - 1) // divisor):
            for n in (quotient * divisor - 1, quotient * divisor, quotient * divisor + 1, 2**31 - 1):
                if 0 <= n < 2**31:
                    assert kernels.library.divide(n, c_int64(divisor)) == n // divisor, (n, divisor)


def test_products_of_the_emulation_read_tf32_and_round_towards_zero(kernels):
    ones, c = torch.ones(32, 4).view(torch.int32), torch.full((32, 4), 2.0**24)
    # 8 products of 1 with 1 + 2^-11, which is 1 to TF32: 2^24 + 8. Of halves of them: 2^24 + 4, which floats have.
    almost_one = torch.full((32, 2), 1 + 2.0**-11).view(torch.int32)
    assert torch.all(kernels.mma(ones, almost_one, c, torch.float32) == 2.0**24 + 8)
    eighths = torch.full((32, 2), 3 / 8).view(torch.int32)  # 3 in all, between 2^24 + 2 and 2^24 + 4
    assert torch.all(kernels.mma(ones, eighths, c, torch.float32) == 2.0**24 + 2)


def test_addends_are_cut_to_the_bits_of_the_largest(any_device):
    ones, c = torch.ones(32, 4).view(torch.int32), torch.full((32, 4), 2.0**24)
    eighths = torch.full((32, 2), 7 / 8).view(torch.int32)  # 7 in all, and floats near 2^24 are two apart
    for bits, kept in [(-1, 6), (0, 0), (1, 0), (2, 4)]:
        any_device.set_device(addend_bits=bits)
        assert torch.all(any_device.mma(ones, eighths, c, torch.float32) == 2.0**24 + kept), bits


def test_copies_of_the_emulation_arrive_late_and_end_in_zeros(kernels):
    buffer = torch.arange(1, 33, dtype=torch.uint8)
    source = buffer[-buffer.data_ptr() % 16 :][:16]
    assert torch.equal(kernels.copy(source, 16), source)
    assert torch.equal(kernels.copy(source, 6), torch.where(torch.arange(16) < 6, source, 0))
    with pytest.raises(emulated.CudaError):  # it ended before its copies
        kernels.copy(source, 16, waits=False)


def test_a_missing_barrier_shows_in_the_order_of_warps(kernels):
    thread, round_ = torch.arange(64).unsqueeze(1), torch.arange(8)
    expected = (100 * round_ + (thread ^ 33)).float()
    for order in emulated.ORDERS:
        assert torch.equal(kernels.exchange(order), expected)
        assert not torch.equal(kernels.exchange(order, before_reading=False), expected)
        assert not torch.equal(kernels.exchange(order, before_writing=False), expected)


def test_what_is_undefined_on_a_device_is_an_error_here(kernels):
    values = torch.arange(8.0)
    assert kernels.read_vector(values[4:]) == 4.0
    with pytest.raises(emulated.CudaError):  # not aligned to 16 bytes
        kernels.read_vector(values[1:])


@pytest.mark.parametrize("at_end", [False, True])
def test_a_read_beside_an_input_ends_the_process(at_end):
    x = emulated.guarded(torch.arange(4.0), at_end=at_end)
    assert x.tolist() == [0.0, 1.0, 2.0, 3.0]
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)  # without pytest's report
        ctypes.string_at(x.data_ptr() + (16 if at_end else -1), 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGSEGV


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


@pytest.mark.parametrize("dtype", DTYPES)
def test_sketch_does_not_depend_on_how_gradients_lie(kernels, dtype):
    for cols in (4, 28, 100, 128):
        grads = integers(2, 50, cols).to(dtype)
        expected = reference.sketch(grads, 96, KEY, 4)
        for before, between in [(0, 0), (4, 4), (1, 0), (2, 4), (0, 3)]:  # four columns are read at a time, or one
            buffer = torch.zeros(before + 2 * (50 * cols + between), dtype=dtype)
            view = buffer[before:].as_strided((2, 50, cols), (50 * cols + between, cols, 1))
            view.copy_(grads)
            assert torch.equal(kernels.sketch(view, 96, KEY, nnz=4).double(), expected), (cols, before, between)


def test_one_launch_sketches_many_parameters(kernels):
    shapes = [(1, 1), (1, 31), (1, 32), (1, 33), (1, 1009), (0, 5), (5, 0), (13, 40), (97, 3)]
    dtypes = itertools.cycle(DTYPES)
    for count, nnz, proj_dim in [(0, 1, 96), (1, 1, 32), (len(shapes), 4, 96), (150, 1, 1024)]:
        parameters, expected = [], torch.zeros(2, proj_dim, dtype=torch.float64)
        for i, (rows, cols), dtype in zip(range(count), itertools.cycle(shapes), dtypes, strict=False):
            grads = integers(3, rows, cols, seed=i).to(dtype)[::2]
            parameters.append((grads, HIGH_KEY - i, 0))
            expected += reference.sketch(grads, proj_dim, HIGH_KEY - i, nnz)
        assert torch.equal(kernels.sketch_many(parameters, 2, proj_dim, nnz).double(), expected)


def test_small_gradients_are_scaled_before_they_are_summed(kernels):
    parameters, scales = [(randn(2, 3, 45, seed=i), KEY + i, 0) for i in range(3)], [0.1, -3.7, 1.0]
    scaled = [(x * scale, key, 0) for (x, key, _), scale in zip(parameters, scales, strict=True)]
    assert torch.equal(kernels.sketch_many(parameters, 2, 96, scales=scales), kernels.sketch_many(scaled, 2, 96))


def test_rows_of_a_small_parameter_may_come_in_pieces(kernels):
    grads = integers(2, 80, 37)
    pieces = [(grads[:, :30], KEY, 0), (grads[:, 30:77], KEY, 30), (grads[:, 77:], KEY, 77)]
    assert torch.equal(kernels.sketch_many(pieces, 2, 96), kernels.sketch(grads, 96, KEY))


def test_sketch_of_many_parameters_does_not_depend_on_the_batch(kernels):
    grads = [randn(3, 2, 500, seed=i) for i in range(5)]
    whole = kernels.sketch_many([(x, KEY + i, 0) for i, x in enumerate(grads)], 3, 64)
    alone = [kernels.sketch_many([(x[b : b + 1], KEY + i, 0) for i, x in enumerate(grads)], 1, 64) for b in range(3)]
    assert torch.equal(whole, torch.cat(alone))


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
    scaled = torch.tensor(1 / math.sqrt(proj_dim)) * expected.float()
    # A normal is multiplied as the sum of two numbers of 11 bits.
    torch.testing.assert_close(actual, scaled, rtol=0 if kind == "rademacher" else 2**-22, atol=0)
    matrix = {"rademacher": reference.rademacher_matrix, "normal": reference.normal_matrix}[kind]
    error = (expected - matrix(grad_dim, proj_dim, KEY, row_begin=row_begin)).abs().max()
    assert error == 0 if kind == "rademacher" else error < 4e-6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("batch", "grad_dim"), [(0, 5), (3, 0), (1, 1), (2, 31), (17, 127), (63, 128), (65, 129), (5, 4097)]
)
def test_signed_sums_are_exact_on_integers(kernels, batch, grad_dim, dtype):
    grads = integers(batch, grad_dim).to(dtype)
    for proj_dim in (4, 256):  # powers of four scale exactly
        expected = reference.project(grads, proj_dim, HIGH_KEY, "rademacher")
        assert torch.equal(kernels.project(grads, proj_dim, HIGH_KEY, "rademacher").double(), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_signed_sums_do_not_depend_on_how_gradients_lie(kernels, dtype):
    grads = integers(17, 300).to(dtype)  # three runs of 128
    expected = reference.project(grads, 16, KEY, "rademacher")
    for before, after in [(0, 4), (8, 12), (0, 1), (1, 19), (7, 0)]:  # rows are read 16 bytes at a time, or one by one
        view = torch.nn.functional.pad(grads, (before, after))[:, before : before + 300]
        assert torch.equal(kernels.project(view, 16, KEY, "rademacher").double(), expected), (before, after)


@pytest.mark.parametrize("kind", ["rademacher", "normal"])
def test_devices_without_tensor_cores_project_too(old_device, kind):
    grads = 1 + randn(18, 4500)
    matrix = old_device.host_projection(KEY, 4500, 130, kind)
    expected, plain = grads.double() @ matrix / 130**0.5, grads @ matrix.float() / 130**0.5
    assert_as_exact_as_torch(old_device.project(grads, 130, KEY, kind), plain, expected)
    for dtype in DTYPES:
        grads = integers(5, 77).to(dtype)
        actual = old_device.project(grads, 256, KEY, "rademacher")
        assert torch.equal(actual.double(), reference.project(grads, 256, KEY, "rademacher"))


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
    for grads, sizes in [(randn(66, 150), [1, 1, 64]), (randn(3, 4500), [1, 2])]:  # a block is 64 samples
        whole = kernels.project(grads, 40, KEY, kind)
        parts = [kernels.project(part, 40, KEY, kind) for part in grads.split(sizes)]
        assert torch.equal(whole, torch.cat(parts))


# ----------------------------------------------------------------------------------------- sketch_outer


def layer_tensors(conv: Conv, rows: int, make=integers) -> tuple[Tensor, Tensor]:
    """Input and output gradient of a convolution. [rows, c_in, *size], [rows, c_out, *size_out]."""
    return make(rows, conv.c_in, *conv.size, seed=1), make(rows, conv.c_out, *conv.size_out, seed=2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("positions", "d_in", "d_out"),
    # A stage is 16 or 32 positions, a tile 128 x 64; channels that are multiples of 8 are read 16 bytes at a time.
    [
        (1, 1, 1),
        (1, 31, 33),
        (5, 32, 64),
        (7, 33, 65),
        (33, 13, 101),
        (3, 257, 67),
        (17, 64, 128),
        (2, 72, 136),
        (0, 4, 4),
    ],
)
def test_linear_gradients_are_sketched_exactly_on_integers(kernels, positions, d_in, d_out, dtype):
    for groups, rows_per_group, proj_dim, nnz in [(1, 1, 32, 1), (2, 3, 96, 4), (2, 1, 1024, 1), (0, 1, 32, 1)]:
        rows = groups * rows_per_group
        a = integers(rows, positions, d_in, seed=1).to(dtype)
        g = integers(rows, positions, d_out, seed=2).to(dtype)
        actual = kernels.sketch_outer(a, g, proj_dim, HIGH_KEY, groups, nnz=nnz)
        expected = reference.sketch_outer(a, g, proj_dim, HIGH_KEY, rows_per_group=rows_per_group, nnz=nnz)
        assert torch.equal(actual.double(), expected)


@pytest.mark.parametrize("addend_bits", [0, 1, 2])
def test_tensor_cores_that_cut_every_addend_keep_what_is_promised(any_device, addend_bits):
    kernels = any_device
    kernels.set_device(addend_bits=addend_bits)
    a, g = 1 + randn(2, 300, 24, seed=1), 1 + randn(2, 300, 16, seed=2)
    grads = torch.stack([g_.T @ a_ for a_, g_ in zip(a, g, strict=True)])
    buckets, signs = reference.sketch_map(KEY, 16, 24, 96)
    plain = torch.zeros(2, 96).index_add_(1, buckets.flatten(), (grads * signs.float()).flatten(1))
    expected = reference.sketch_outer(a, g, 96, KEY, rows_per_group=1)
    assert_as_exact_as_torch(kernels.sketch_outer(a, g, 96, KEY, 2), plain, expected)
    for dtype in DTYPES:
        features = (1 + randn(600, 33)).to(dtype)
        gram = torch.zeros(33, 33, dtype=torch.float64)
        kernels.accumulate_gram_(gram, features)
        magnitudes = features.double().abs().T @ features.double().abs()
        # csrc/cuda/gram.cu promises so many units of 2^-23 of the sum of magnitudes.
        units = 64 if addend_bits == 0 else 48
        assert ((gram - reference.gram(features)).abs() / magnitudes).triu().max() <= units * 2**-23


@pytest.mark.parametrize("name", [name for name, conv in CONVS.items() if len(conv.size) < 3])
def test_convolution_gradients_are_sketched_exactly_on_integers(kernels, name):
    conv = CONVS[name]
    for groups, rows_per_group, proj_dim, nnz in [(1, 3, 32, 1), (2, 2, 96, 4)]:
        a, g = layer_tensors(conv, groups * rows_per_group)
        actual = kernels.sketch_outer(a, g, proj_dim, KEY, groups, conv=conv.geometry, nnz=nnz)
        options = {"rows_per_group": rows_per_group, "nnz": nnz, "conv": conv.geometry}
        assert torch.equal(actual.double(), reference.sketch_outer(a, g, proj_dim, KEY, **options))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("channels", "groups"), [(64, 1), (96, 1), (80, 1), (128, 2)])
def test_tiles_of_one_kernel_position_and_of_two_are_sketched_exactly(kernels, channels, groups, memory_format, dtype):
    conv = Conv(channels, 16, (4, 5), (3, 2), (1, 2), (1, 0), (1, 2), groups)
    a, g = (x.to(dtype).contiguous(memory_format=memory_format) for x in layer_tensors(conv, 4))
    actual = kernels.sketch_outer(a, g, 96, KEY, 2, conv=conv.geometry)
    expected = reference.sketch_outer(a, g, 96, KEY, rows_per_group=2, conv=conv.geometry)
    assert torch.equal(actual.double(), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows_per_group", [1, 3])
def test_images_of_many_sizes_are_sketched_exactly_in_every_layout(kernels, rows_per_group, dtype):
    pointwise, square = ConvGeometry((1, 1), (1, 1), (0, 0), (1, 1)), ConvGeometry((3, 3), (1, 1), (1, 1), (1, 1))
    strided = ConvGeometry((1, 1), (2, 2), (0, 0), (1, 1))
    for height, width in [(1, 1), (2, 4), (4, 4), (4, 8), (3, 11), (5, 8)]:
        for conv, c_in, c_out in [(pointwise, 72, 40), (square, 8, 24), (strided, 16, 8)]:
            out = [(size - 1) // conv.stride[0] + 1 for size in (height, width)]
            a = integers(2 * rows_per_group, c_in, height, width, seed=1).to(dtype)
            g = integers(2 * rows_per_group, c_out, *out, seed=2).to(dtype)
            expected = reference.sketch_outer(a, g, 96, KEY, rows_per_group=rows_per_group, conv=conv)
            for memory_format in (torch.contiguous_format, torch.channels_last):
                views = [x.contiguous(memory_format=memory_format) for x in (a, g)]
                assert torch.equal(kernels.sketch_outer(*views, 96, KEY, 2, conv=conv).double(), expected)


def test_devices_without_tensor_cores_sketch_layers_too(old_device):
    for name in ("wide", "3x3, stride", "groups", "depthwise", "every axis different", "1x1"):
        conv = CONVS[name]
        for dtype, proj_dim in itertools.product(DTYPES, (96, 4096)):  # in shared memory and beyond it
            a, g = (x.to(dtype) for x in layer_tensors(conv, 4))
            expected = reference.sketch_outer(a, g, proj_dim, KEY, rows_per_group=2, conv=conv.geometry, nnz=4)
            actual = old_device.sketch_outer(a, g, proj_dim, KEY, 2, conv=conv.geometry, nnz=4)
            assert torch.equal(actual.double(), expected)


def test_sums_in_memory_and_in_shared_memory_hold_the_same(kernels, old_device):
    a, g = integers(4, 9, 75, seed=1), integers(4, 9, 300, seed=2)  # 3 x 2 tiles
    expected = reference.sketch_outer(a, g, 4096, KEY, rows_per_group=2)
    assert torch.equal(old_device.sketch_outer(a, g, 4096, KEY, 2).double(), expected)
    kernels.set_device(max_shared_bytes=64 << 10)
    assert torch.equal(kernels.sketch_outer(a, g, 4096, KEY, 2).double(), expected)


def test_nan_and_infinity_stay_in_the_entries_that_hold_them(kernels):
    for name, dtype in itertools.product(("3x3", "wide", "1x1"), DTYPES):
        conv = CONVS[name]
        a, g = (x.to(dtype) for x in layer_tensors(conv, 4))
        clean = kernels.sketch_outer(a, g, 1024, KEY, 2, conv=conv.geometry)
        a[3, 2, 0, 0], g[2, 1, 0, 1] = math.nan, math.inf
        actual = kernels.sketch_outer(a, g, 1024, KEY, 2, conv=conv.geometry)
        expected = reference.sketch_outer(a, g, 1024, KEY, rows_per_group=2, conv=conv.geometry)
        assert torch.equal(actual[0], clean[0])
        assert torch.equal(actual[1].isfinite(), expected[1].isfinite())


def test_tf32_errs_as_much_as_operands_of_11_bits(kernels):
    a, g = randn(2, 50, 40, seed=1), randn(2, 50, 33, seed=2)
    one_bucket_each = 32 * 33 * 2  # no two entries of one tile collide, and there are two tiles of columns
    actual = kernels.sketch_outer(a, g, one_bucket_each, KEY, 1, precision="tf32").double()
    expected = reference.sketch_outer(a, g, one_bucket_each, KEY, rows_per_group=2)
    magnitude = torch.einsum("npo,npi->oi", g.abs(), a.abs()).double().max()
    error = (actual - expected).abs().max()
    # Each operand is off by at most 2^-11 of itself, a bucket holds at most two entries; and it is not the other path.
    assert 2**-16 * magnitude < error <= 2 * 2.001 * 2**-11 * magnitude
    (a, _), (g, _) = kernels.split_tf32(a), kernels.split_tf32(g)
    rounded = reference.sketch_outer(a, g, one_bucket_each, KEY, rows_per_group=2)
    assert (actual - rounded).abs().max() <= 100 * 2**-23 * magnitude


def test_sums_that_do_not_fit_in_shared_memory_are_exact_too(kernels):
    a, g = integers(4, 9, 75, seed=1), integers(4, 9, 130, seed=2)
    for proj_dim in (23_168, 23_200, 32_768):  # two copies and the stages fill 227 KiB
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


# ------------------------------------------------------------------------------------------------- norm


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("groups", "centered"), [(1, True), (4, True), (0, True), (0, False)])
def test_norm_gradients_are_those_of_autograd(kernels, groups, centered, dtype):
    # A chunk is 32 positions and a slice 128, a warp takes 32 vectors of up to 8.
    for num_rows, channels, positions in [(1, 8, 1), (3, 12, 16), (2, 8, 33), (1, 20, 64), (1, 4, 300), (2, 264, 7)]:
        shape = (num_rows, channels, positions) if groups else (num_rows, positions, channels)
        x, g = (randn(*shape, seed=1) + 3).to(dtype), (randn(*shape, seed=2) + 1).to(dtype)
        options = {"groups": groups, "centered": centered, "eps": 0.1}
        actual, expected = kernels.norm_grads(x, g, **options), reference_norm.norm_grads(x, g, **options)
        magnitudes = g.double().abs().sum(2 if groups else 1).unsqueeze(1)
        assert torch.all((actual - expected).abs() <= 2**-18 * magnitudes), (num_rows, channels, positions)


def test_norm_gradients_do_not_depend_on_the_other_rows_or_on_how_they_lie(kernels):
    for groups, shape in [(2, (3, 8, 72)), (0, (3, 300, 6))]:
        x, g = randn(*shape, seed=1), randn(*shape, seed=2)
        options = {"groups": groups, "centered": True, "eps": 1e-5}
        whole = kernels.norm_grads(x, g, **options)
        alone = [kernels.norm_grads(x[i : i + 1], g[i : i + 1], **options) for i in range(3)]
        assert torch.equal(torch.cat(alone), whole)
        apart = [torch.nn.functional.pad(t.flatten(), (1, 0))[1:].view(shape) for t in (x, g)]  # no vectors
        torch.testing.assert_close(kernels.norm_grads(*apart, **options), whole, rtol=1e-5, atol=1e-4)


def test_a_mean_far_from_zero_costs_no_digits_of_a_norm(kernels):
    for groups, shape in [(2, (1, 8, 64)), (0, (1, 64, 8))]:
        x, g = 1000 + randn(*shape, seed=1).double(), randn(*shape, seed=2).double()
        options = {"groups": groups, "centered": True, "eps": 1e-5}
        actual = kernels.norm_grads(x.float(), g.float(), **options)
        expected = reference_norm.norm_grads(x.float(), g.float(), **options)
        assert (actual - expected).abs().max() <= 1e-3 * expected.abs().max()  # the mean is off by up to 2^-14


# ------------------------------------------------------------------------------------------------- gram


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("num_samples", "proj_dim"),
    [(0, 5), (1, 1), (15, 63), (16, 64), (17, 65), (32, 127), (33, 128), (100, 129), (5, 264)],
)
def test_gram_is_exact_on_integers_and_leaves_the_lower_triangle_alone(kernels, num_samples, proj_dim, dtype):
    aligned = integers(num_samples, proj_dim // 8 * 8 + 16).to(dtype)[:, :proj_dim]  # 16 bytes at a time if 8 divide
    assert_gram_is_exact(kernels, aligned)
    assert_gram_is_exact(kernels, integers(num_samples, proj_dim + 3).to(dtype)[:, 1:-2])


def test_devices_without_tensor_cores_sum_grams_too(old_device):
    for dtype in DTYPES:
        assert_gram_is_exact(old_device, integers(35, 136).to(dtype))


def assert_gram_is_exact(kernels, features: Tensor) -> None:
    """Check the Gram matrix of integers, added to a matrix inside a larger one."""
    proj_dim = features.shape[1]
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


@pytest.mark.parametrize("dtype", DTYPES)
def test_gram_of_many_samples_errs_like_a_sum_of_512(kernels, dtype):
    features = (1 + randn(1500, 65)).to(dtype)
    gram = torch.zeros(65, 65, dtype=torch.float64)
    kernels.accumulate_gram_(gram, features)
    magnitudes = features.double().abs().T @ features.double().abs()
    # csrc/cuda/gram.cu promises 48 units of 2^-23 of the sum of magnitudes.
    error = ((gram - reference.gram(features)).abs() / magnitudes).triu().max()
    assert error <= 48 * 2**-23
    if dtype == torch.float32:
        gram.zero_()
        kernels.accumulate_gram_(gram, features, precision="tf32")
        error = ((gram - reference.gram(features)).abs() / magnitudes).triu().max()
        assert 2**-16 < error <= 2.001 * 2**-11 + 48 * 2**-23


def test_no_split_over_samples_shows_in_the_bits_of_a_gram(kernels):
    features, gram = randn(1040, 200).bfloat16(), torch.zeros(200, 200, dtype=torch.float64)
    kernels.accumulate_gram_(gram, features)  # three runs at once
    run_floats = 6 * 128 * 64  # six tiles, of which one is half empty
    for workspace_floats in (2 * run_floats - 1, 2 * run_floats):  # without passes, and in two
        other = torch.zeros_like(gram)
        kernels.accumulate_gram_(other, features, workspace_floats=workspace_floats)
        assert torch.equal(other, gram)
    pieces = torch.zeros_like(gram)
    for piece in features.split(512):
        kernels.accumulate_gram_(pieces, piece)
    assert torch.equal(pieces, gram)


# ---------------------------------------------------------------------------------------------- packed


def assert_close_enough(found: Tensor, queries: Tensor, packed: Tensor, scales: Tensor, bits: int) -> None:
    """Hold products to what csrc/cuda/packed_products.cu promises."""
    rows = reference_packed.unpack_rows(packed, scales, bits)
    error = (found.double() - queries.double() @ rows.T).abs()
    assert torch.all(error <= (queries.shape[1] / 32 + 40) * 2**-24 * (queries.double().abs() @ rows.abs().T))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("num_rows", "proj_dim"), [(0, 32), (1, 32), (7, 96), (9, 128), (3, 1056)])
def test_packed_rows_have_the_bits_of_the_reference(kernels, num_rows, proj_dim, bits):
    rows = randn(num_rows, proj_dim)
    rows[1::4], rows[2::4], rows[3::4] = rows[1::4].pow(5), rows[2::4] * 1e-29, 0.0
    for given in (rows, torch.nn.functional.pad(rows, (3, 2))[:, 3:-2]):  # aligned, or copied
        for found, expected in zip(kernels.pack_rows(given, bits), reference_packed.pack_rows(rows, bits), strict=True):
            assert torch.equal(found, expected)


@pytest.mark.parametrize("bits", [8, 4])
def test_rows_that_are_not_finite_have_no_scale(kernels, bits):
    rows = randn(5, 64)
    rows[1, 3], rows[2, 0], rows[4, 63] = math.nan, math.inf, -math.inf
    packed, scales = kernels.pack_rows(rows, bits)
    assert scales.isnan().tolist() == [False, True, True, False, True]
    assert not packed[scales.isnan()].any()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("num_rows", "proj_dim"), [(1, 32), (5, 480), (65, 512), (70, 544), (3, 2080)])
def test_products_with_packed_rows_are_exact_on_integers_and_close_otherwise(kernels, num_rows, proj_dim, bits):
    for num_queries in (1, 2, 5, 9):  # blocks of one, four and eight
        rows, queries = randn(num_rows, proj_dim), integers(num_queries, proj_dim, seed=1)
        packed, scales = reference_packed.pack_rows(rows, bits)
        ones = torch.ones(num_rows)
        expected = reference_packed.packed_products(queries, packed, ones, bits)
        assert torch.equal(kernels.packed_products(queries, packed, ones, bits).double(), expected)
        queries = randn(num_queries, proj_dim, seed=2)
        assert_close_enough(kernels.packed_products(queries, packed, scales, bits), queries, packed, scales, bits)


@pytest.mark.parametrize("bits", [8, 4])
def test_nothing_beside_a_row_and_a_query_changes_a_bit_of_their_product(any_device, bits):
    queries, (packed, scales) = randn(9, 1056), reference_packed.pack_rows(randn(70, 1056, seed=1), bits)
    whole = any_device.packed_products(queries, packed, scales, bits)
    for some_queries, some_rows in [(slice(0, 1), slice(3, 70)), (slice(2, 5), slice(69, 70)), (slice(8, 9), slice(5))]:
        part = any_device.packed_products(queries[some_queries], packed[some_rows], scales[some_rows], bits)
        assert torch.equal(part, whole[some_queries, some_rows])
    any_device.set_device(tensor_cores=False, max_shared_bytes=64 << 10)
    assert torch.equal(any_device.packed_products(queries, packed, scales, bits), whole)


# ------------------------------------------------------------------------------------------ from Python


@pytest.fixture
def device_ops(kernels, monkeypatch):
    """What torch dispatches CUDA tensors to, over the emulated kernels: for CPU tensors here."""
    kernels.library.set_order(emulated.SHUFFLED)
    monkeypatch.setattr(_cuda_kernels, "_kernels", lambda: kernels.ops.bindings)
    monkeypatch.setattr(_cuda_kernels, "_stream", lambda tensor: 0)
    return CudaKernels()


def test_python_hands_random_numbers_what_they_ask_for(device_ops):
    keys, minors = int64s(KEY, HIGH_KEY, 7), int64s(2**32 - 1, 3, 0)
    indices = torch.arange(6)[::2]
    assert torch.equal(device_ops.philox_words(keys, indices, minors, 5), reference.philox(keys, indices, minors, 5))
    noise = device_ops.philox_normal(keys, minors, 70)
    for row, key, minor in zip(noise, (KEY, HIGH_KEY, 7), minors.tolist(), strict=True):
        assert torch.all((row - reference.noise(key, minor, 70)).abs() < 4e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_python_hands_sketches_and_projections_what_they_ask_for(device_ops, dtype):
    grads = integers(3, 70, 45).to(dtype)[:, 2:-1].transpose(1, 2)  # [3, 45, 67], to be made contiguous
    for proj_dim in (64, 8224):  # the second is more than one launch takes for many parameters
        features = torch.zeros(3, proj_dim + 8)[:, :proj_dim]
        device_ops.sketch_(features, grads, to_signed(HIGH_KEY), 5, 4)
        expected = reference.sketch(torch.nn.functional.pad(grads, (0, 0, 5, 0)), proj_dim, HIGH_KEY, 4)
        assert torch.equal(features.double(), expected)
        keys, flat = [KEY, to_signed(HIGH_KEY)], torch.cat([grads.flatten(1), grads[:, :9].flatten(1)], 1).float()
        device_ops.sketch_many_(features, flat, keys, [45, 9], [67, 67], [0, 0], [2.0, -0.5], 4)
        expected += 2 * reference.sketch(grads, proj_dim, KEY, 4)
        expected -= 0.5 * reference.sketch(grads[:, :9], proj_dim, HIGH_KEY, 4)
        assert torch.equal(features.double(), expected)
    flat, features = grads.flatten(1), torch.zeros(3, 16)
    device_ops.project_(features, flat, to_signed(HIGH_KEY), 0, 0)
    assert torch.equal(features.double(), reference.project(flat, 16, HIGH_KEY, "rademacher"))


@pytest.mark.parametrize("name", [name for name, conv in CONVS.items() if len(conv.size) < 3])
def test_python_hands_layers_what_they_ask_for(device_ops, name):
    conv = CONVS[name]
    a, g = layer_tensors(conv, 4)
    features = torch.zeros(2, 96)
    device_ops.sketch_outer_(features, a, g, to_signed(HIGH_KEY), 4, *conv_arguments(conv.geometry))
    expected = reference.sketch_outer(a, g, 96, HIGH_KEY, rows_per_group=2, nnz=4, conv=conv.geometry)
    assert torch.equal(features.double(), expected)


def test_python_hands_linear_layers_and_grams_what_they_ask_for(device_ops):
    a, g, features = integers(4, 9, 33, seed=1), integers(4, 9, 40, seed=2), torch.zeros(2, 96)
    device_ops.sketch_outer_(features, a, g, KEY, 1, [], [], [], [], 1)
    assert torch.equal(features.double(), reference.sketch_outer(a, g, 96, KEY, rows_per_group=2))
    rows, gram = integers(1100, 131)[::2, :-2], torch.zeros(129, 140, dtype=torch.float64)[:, :129]
    device_ops.accumulate_gram_(gram, rows, block_size=7)
    assert torch.equal(gram, reference.gram(rows).triu())


@pytest.mark.parametrize("groups", [3, 0])
def test_python_hands_norms_what_they_ask_for(device_ops, groups):
    x, g = randn(2, 6, 9).transpose(1, 2), randn(2, 6, 9, seed=1).transpose(1, 2)  # to be made contiguous
    actual = device_ops.norm_grads(x, g, groups, True, 0.1)
    expected = reference_norm.norm_grads(x, g, groups=groups, eps=0.1).float()
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_python_hands_many_layers_what_they_ask_for(device_ops):
    for names in (["3x3", "wide"], ["3x3", "3d"]):
        a, g = (list(column) for column in zip(*(layer_tensors(CONVS[name], 4) for name in names), strict=True))
        a, g = [*a, integers(4, 9, 33, seed=1)], [*g, integers(4, 9, 40, seed=2)]
        convs = [*(CONVS[name].geometry for name in names), None]
        numbers = [n for conv in convs for n in (LINEAR_NUMBERS if conv is None else conv.numbers)]
        features, expected = torch.zeros(2, 96), torch.zeros(2, 96, dtype=torch.float64)
        scales = [1.0, -2.0, 0.5]
        sums = [torch.empty(2, g[0].shape[1]), torch.empty(2, 50)[:, :40]]
        device_ops.sketch_outer_many_(features, a, g, [to_signed(HIGH_KEY), KEY, 7], numbers, scales, 4, sums, [0, 2])
        assert torch.equal(sums[0], g[0].flatten(2).sum(2).unflatten(0, (2, 2)).sum(1))
        assert torch.equal(sums[1], g[2].sum(1).unflatten(0, (2, 2)).sum(1))
        for x, y, key, conv, scale in zip(a, g, [HIGH_KEY, KEY, 7], convs, scales, strict=True):
            expected += scale * reference.sketch_outer(x, y, 96, key, rows_per_group=2, nnz=4, conv=conv)
        assert torch.equal(features.double(), expected)


def test_layers_summed_together_have_the_bits_of_each_alone(kernels):
    layers = [(randn(4, 9, 33, seed=i), randn(4, 9, 40, seed=100 + i)) for i in range(70)]  # of one launch 64
    a, g = (list(column) for column in zip(*layers, strict=True))
    keys, scales = list(range(70)), [0.1 * i + 0.3 for i in range(70)]
    kernels.library.set_order(emulated.SHUFFLED)
    together, alone = torch.zeros(2, 96), torch.zeros(2, 96)
    kernels.ops.sketch_outer_many_(together, a, g, keys, [*LINEAR_NUMBERS] * 70, scales, 2, [], [])
    for x, y, key, scale in zip(a, g, keys, scales, strict=True):
        kernels.ops.sketch_outer_many_(alone, [x], [y], [key], [*LINEAR_NUMBERS], [scale], 2, [], [])
    assert torch.equal(together, alone)


def test_a_kernel_runs_on_its_tensors_device_and_gives_back_the_one_before(kernels):
    told = Told()
    told.sketch_(torch.zeros(1, 32), torch.zeros(1, 0, 5), KEY, 0, 1)
    assert kernels.library.get_current_device() == 0
    kernels.ops.bindings.sketch(told.args, no_workspace, 5, 0)
    assert kernels.library.get_current_device() == 0
    with pytest.raises(RuntimeError, match="cudaErrorInvalidValue"):  # there is none
        kernels.ops.bindings.sketch(told.args, no_workspace, 8, 0)


@pytest.mark.parametrize("bits", [8, 4])
def test_python_hands_packed_rows_what_they_ask_for(device_ops, bits):
    rows = integers(66, 200)[::2, 3:-5]  # rows begin at no multiple of 16 bytes
    packed, scales = device_ops.pack_rows(rows, bits)
    assert all(map(torch.equal, (packed, scales), reference_packed.pack_rows(rows, bits)))
    wide = torch.nn.functional.pad(packed, (1, 2))[:, 1:-2]
    queries, out = integers(10, 193)[:, 1:], torch.zeros(10, 40)
    scales = torch.ones(33, 2)[:, 0]
    device_ops.packed_products_(out[:, 4:37], queries, wide, scales, bits)
    assert torch.equal(out[:, 4:37].double(), reference_packed.packed_products(queries, packed, scales, bits))
    assert not out[:, :4].any()
    assert not out[:, 37:].any()


# ----------------------------------------------------------------------------------------------- errors


def no_workspace(floats: int) -> tuple[int, int]:
    """Nothing, as an allocator."""
    return 0, 0


class Told(CudaKernels):
    """Keeps what a kernel would be told: null pointers, which would crash if anything were read."""

    def run(self, op, memory, args):
        self.op, self.args = op, args | {name: 0 for name in ("grads", "a", "g", "features", "gram") if name in args}


def test_what_a_launch_cannot_do_is_an_error_and_nothing_is_touched(kernels):
    def refuses(error: str, floats: int = 0, **changes: object) -> None:
        with pytest.raises(RuntimeError, match=f"{told.op} failed .* cudaError{error},"):
            getattr(kernels.ops.bindings, told.op)(told.args | changes, lambda _: (0, floats), 0, 0)

    told, features = Told(), torch.zeros(1, 32)
    told.sketch_(features, torch.zeros(1, 1000, 1000), KEY, 0, 1)
    refuses("InvalidValue")  # needs a workspace
    refuses("InvalidValue", rows=0, proj_dim=33)
    refuses("InvalidValue", rows=0, nnz=0)
    told.sketch_many_(features, torch.zeros(1, 5), [KEY], [1], [5], [0], [1.0], 1)
    refuses("InvalidValue")  # needs a workspace
    for changes in ({"proj_dim": 33}, {"nnz": 0}, {"cols": [2**31]}, {"rows": [-1]}):
        refuses("InvalidValue", **changes)
    for name in ("rows", "cols", "row_begins", "keys", "scales"):  # a number for each parameter
        refuses("InvalidValue", **{name: []})
    told.project_(features, torch.zeros(1, 10_000), KEY, 0, 0)
    refuses("InvalidValue")  # needs a workspace
    refuses("InvalidValue", grad_dim=10, kind=2)
    told.sketch_outer_(features, torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), KEY, 1, *[[1, 1]] * 4, 1)
    refuses("InvalidValue")  # needs a workspace
    refuses("InvalidValue", rows_per_group=0, conv_groups=0)
    for name in ("kernel", "in_size", "out_size"):  # in three dimensions
        refuses("InvalidValue", rows_per_group=0, **{name: [2, 1, 1]})
    layer, told.op, told.args = told.args, "sketch_outer_many", {}
    refuses("InvalidValue", layers=[layer])  # needs a workspace
    nothing = layer | {"rows_per_group": 0}
    for name in ("features", "num_groups", "features_stride", "proj_dim", "nnz"):  # must be alike
        refuses("InvalidValue", layers=[nothing, nothing | {name: 64}])
    told.norm_grads(torch.zeros(1, 200, 4), torch.zeros(1, 200, 4), 0, True, 0.1)
    refuses("InvalidValue")  # needs a workspace
    refuses("InvalidValue", groups=3)
    refuses("InvalidValue", groups=-1)
    refuses("InvalidValue", positions=0)
    told.accumulate_gram_(torch.zeros(1, 1).double(), torch.zeros(600, 1), 1)
    refuses("InvalidValue", dtype=3)
    refuses("InvalidValue", precision=2)
    refuses("InvalidValue", floats=2**20)  # says more than null holds
    refuses("InvalidConfiguration", num_samples=1, proj_dim=128 * 65_536)  # more tiles of rows than a grid has
    told.pack_rows(torch.zeros(0, 32), 8)
    refuses("InvalidValue", bits=2)
    refuses("InvalidValue", proj_dim=33)
    refuses("InvalidConfiguration", num_rows=2**40)
    told.packed_products_(torch.zeros(1, 0), torch.zeros(1, 32), torch.zeros(0, 32).char(), torch.zeros(0), 8)
    refuses("InvalidValue", bits=2)
    refuses("InvalidValue", proj_dim=33)
    refuses("InvalidConfiguration", num_rows=2**40)
