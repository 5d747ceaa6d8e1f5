"""What is particular to the CUDA kernels: their own tile sizes, streams, devices, and equal bits run after run.

The properties that every device must have are in the tests of each operation, which run on CUDA devices too.
"""

from __future__ import annotations

import pytest
import torch
from cases import CONVS, DTYPES, HIGH_KEY, KEY, assert_as_exact_as_torch, integers, randn
from torch import Tensor

from journey import ops
from journey.ops import reference, reference_packed
from journey.ops.geometry import ConvGeometry

pytestmark = pytest.mark.cuda


def sketch(grads: Tensor, proj_dim: int = 1024, **options: int) -> Tensor:
    """Sketch into fresh zeros on the device of ``grads``. [batch, proj_dim]."""
    features = torch.zeros(grads.shape[0], proj_dim, device=grads.device)
    ops.sketch_(features, grads, key=KEY, **options)
    return features


def sketch_many(*grads: Tensor, proj_dim: int = 1024) -> Tensor:
    """Sketches of many parameters, summed: in one launch on CUDA, one by one on the CPU. [batch, proj_dim]."""
    features = torch.zeros(grads[0].shape[0], proj_dim, device=grads[0].device)
    keys = [KEY + i for i in range(len(grads))]
    if features.is_cuda:
        flat, shapes = torch.cat([x.flatten(1).float() for x in grads], 1), [tuple(x.shape[1:]) for x in grads]
        ops.sketch_many_(features, flat, keys=keys, shapes=shapes, nnz=4)
    else:
        for x, key in zip(grads, keys, strict=True):
            ops.sketch_(features, x, key=key, nnz=4)
    return features


def project(grads: Tensor, proj_dim: int = 256, kind: str = "rademacher") -> Tensor:
    """Dense projection into fresh zeros on the device of ``grads``. [batch, proj_dim]."""
    features = torch.zeros(grads.shape[0], proj_dim, device=grads.device)
    ops.project_(features, grads, key=KEY, kind=kind)
    return features


def sketch_outer(a: Tensor, g: Tensor, proj_dim: int = 1024, groups: int = 2, **options: object) -> Tensor:
    """Fused sketch into fresh zeros on the device of ``a``. [groups, proj_dim]."""
    features = torch.zeros(groups, proj_dim, device=a.device)
    ops.sketch_outer_(features, a, g, key=KEY, **options)
    return features


def gram(features: Tensor) -> Tensor:
    """Upper triangle of the Gram matrix, from fresh zeros. [proj_dim, proj_dim]."""
    result = torch.zeros(features.shape[1], features.shape[1], dtype=torch.float64, device=features.device)
    ops.accumulate_gram_(result, features)
    return result.triu()


def packed_products(queries: Tensor, rows: Tensor, bits: int) -> Tensor:
    """Products with rows that are packed on their device first, without the look at their scales that waits for it."""
    packed, scales = torch.ops.journey.pack_rows(rows, bits)
    out = torch.empty(len(queries), len(rows), device=rows.device)
    ops.packed_products_(out, queries, packed, torch.ones_like(scales), bits)  # exact on integers
    return out


# Each with work for many blocks and slices. Name: (operation, inputs in float32 on the CPU).
OPERATIONS = {
    "sketch": (lambda x: sketch(x, nnz=4), lambda make: [make(3, 300, 1700)]),
    "sketch of many": (sketch_many, lambda make: [make(3, 1, 1 + 7 * i, seed=i) for i in range(150)]),
    "project signs": (project, lambda make: [make(40, 20_011)]),
    "project normals": (lambda x: project(x, kind="normal"), lambda make: [make(40, 20_011)]),
    "sketch_outer, linear": (sketch_outer, lambda make: [make(6, 70, 301, seed=1), make(6, 70, 203, seed=2)]),
    "sketch_outer, convolution": (
        lambda a, g: sketch_outer(a, g, conv=CONVS["wide"].geometry),
        lambda make: [make(6, 33, 4, 4, seed=1), make(6, 67, 4, 4, seed=2)],
    ),
    "sketch_outer, many slices": (
        lambda a, g: sketch_outer(a, g, conv=CONVS["3x3"].geometry),
        lambda make: [make(6, 200, 8, 8, seed=1), make(6, 260, 8, 8, seed=2)],
    ),
    "gram": (gram, lambda make: [make(500, 257)]),
    "packed in 8 bits": (
        lambda x, y: packed_products(x.float(), y.float(), 8),
        lambda make: [make(9, 1056, seed=1), make(500, 1056, seed=2)],
    ),
    "packed in 4 bits": (
        lambda x, y: packed_products(x.float(), y.float(), 4),
        lambda make: [make(9, 1056, seed=1), make(500, 1056, seed=2)],
    ),
}


@pytest.fixture(params=OPERATIONS)
def operation(request: pytest.FixtureRequest):
    """One operation and a function that makes its inputs."""
    return OPERATIONS[request.param]


# ------------------------------------------------------------------------------------- run after run


def test_two_runs_give_equal_bits(operation):
    run, make_inputs = operation
    inputs = [x.cuda() for x in make_inputs(randn)]
    assert torch.equal(run(*inputs), run(*inputs))


def test_works_on_the_current_stream_and_waits_for_no_other(operation):
    run, make_inputs = operation
    inputs = [x.pin_memory() for x in make_inputs(randn)]
    expected = run(*(x.cuda() for x in inputs))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        # The inputs arrive late on this stream: a kernel on another one would read what was there before.
        late = [torch.full(x.shape, torch.nan, device="cuda") for x in inputs]
        torch.cuda._sleep(50_000_000)
        for x, source in zip(late, inputs, strict=True):
            x.copy_(source, non_blocking=True)
        actual = run(*late)
    stream.synchronize()
    assert torch.equal(actual, expected)


def test_can_be_captured_in_a_graph(operation):
    run, make_inputs = operation
    inputs = [x.cuda() for x in make_inputs(randn)]
    expected = run(*inputs)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(*inputs)
    for _ in range(2):
        captured.fill_(torch.nan)
        graph.replay()
        assert torch.equal(captured, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_both_devices_agree_to_the_last_bit_where_sums_are_exact(operation, dtype):
    run, make_inputs = operation
    if run is OPERATIONS["project normals"][0]:
        pytest.skip("products with normals round")
    inputs = [x.to(dtype) for x in make_inputs(integers)]
    # Powers of two scale exactly; sums of a few thousand small integers are exact in float32.
    assert torch.equal(run(*(x.cuda() for x in inputs)).cpu(), run(*inputs))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a second CUDA device")
def test_runs_where_the_tensors_are_and_gives_equal_bits_there(operation):
    run, make_inputs = operation
    inputs = make_inputs(randn)
    with torch.cuda.device(0):
        on_second = run(*(x.to("cuda:1") for x in inputs))
    assert on_second.device == torch.device("cuda:1")
    if torch.cuda.get_device_name(0) == torch.cuda.get_device_name(1):
        assert torch.equal(on_second.cpu(), run(*(x.to("cuda:0") for x in inputs)).cpu())


# ----------------------------------------------------------------------------------------- tile sizes


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("proj_dim", [32, 4064, 4096, 4128, 12_288])  # a block is 4096 buckets
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (127, 33), (128, 32), (129, 31), (7, 10_007), (1009, 63)])
def test_sketch_is_exact_on_integers(rows, cols, proj_dim, dtype):
    for batch, nnz in [(1, 1), (3, 4)]:
        grads = integers(batch, rows, cols).to(dtype)
        expected = reference.sketch(grads, proj_dim, KEY, nnz)
        assert torch.equal(sketch(grads.cuda(), proj_dim, nnz=nnz).cpu().double(), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_are_read_through_any_strides(dtype):
    grads = integers(5, 50, 128).to(dtype)
    for before, between in [(0, 0), (4, 4), (1, 0), (2, 4), (0, 3)]:  # read in vectors, or one by one
        buffer = torch.zeros(before + 5 * (50 * 128 + between), dtype=dtype, device="cuda")
        view = buffer[before:].as_strided((5, 50, 128), (50 * 128 + between, 128, 1))
        view.copy_(grads)
        assert torch.equal(sketch(view, nnz=4).cpu().double(), reference.sketch(grads, 1024, KEY, 4))
        flat = view.flatten(1) if between == 0 else view.as_strided((5, 50 * 128), (50 * 128 + between, 1))
        assert torch.equal(project(flat).cpu().double(), reference.project(grads.flatten(1), 256, KEY, "rademacher"))
        rows = view[0]
        assert torch.equal(gram(rows).cpu(), reference.gram(grads[0]).triu())


@pytest.mark.parametrize("batch", [0, 1, 15, 17, 63, 64, 65, 131])  # a block is 64 samples
@pytest.mark.parametrize("grad_dim", [0, 1, 31, 127, 128, 129, 4097, 9001])  # 128 entries a run, 4,096 or more a slice
@pytest.mark.parametrize("kind", ["rademacher", "normal"])
def test_project_is_as_exact_as_torch(batch, grad_dim, kind):
    matrix = {"rademacher": reference.rademacher_matrix, "normal": reference.normal_matrix}[kind]
    for proj_dim in (1, 127, 129):  # a block is 128 columns
        grads = randn(batch, grad_dim)
        entries = matrix(grad_dim, proj_dim, KEY)
        expected = grads.double() @ entries / proj_dim**0.5
        actual, plain = project(grads.cuda(), proj_dim, kind), grads @ entries.float() / proj_dim**0.5
        # A compiled normal differs from float64 by up to 4e-6 (csrc/common/normal.h).
        entry_atol = 4e-6 if kind == "normal" else 0.0
        slack = entry_atol * grads.double().abs().sum(1, keepdim=True) / proj_dim**0.5
        error = (actual.cpu() - expected).sign() * ((actual.cpu() - expected).abs() - slack).clamp(min=0)
        assert_as_exact_as_torch(expected + error, plain, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("d_in", "d_out"), [(63, 127), (64, 128), (65, 129), (72, 136), (257, 131)])  # tile: 64 x 128
@pytest.mark.parametrize("positions", [1, 15, 16, 17, 31, 33, 97])  # a stage is 16 or 32 positions
def test_fused_linear_is_exact_on_integers(positions, d_in, d_out, dtype):
    a, g = integers(4, positions, d_in, seed=1).to(dtype), integers(4, positions, d_out, seed=2).to(dtype)
    for proj_dim in (32, 4096, 32_768):  # sums in shared memory up to about 22,000
        expected = reference.sketch_outer(a, g, proj_dim, KEY, rows_per_group=2, nnz=4)
        assert torch.equal(sketch_outer(a.cuda(), g.cuda(), proj_dim, nnz=4).cpu().double(), expected)


@pytest.mark.parametrize("name", CONVS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_fused_convolution_is_exact_on_integers_in_both_memory_formats(name, memory_format):
    conv = CONVS[name]
    a, g = integers(4, conv.c_in, *conv.size, seed=1), integers(4, conv.c_out, *conv.size_out, seed=2)
    expected = reference.sketch_outer(a, g, 1024, KEY, rows_per_group=2, conv=conv.geometry)
    if len(conv.size) == 2:
        a, g = a.contiguous(memory_format=memory_format), g.contiguous(memory_format=memory_format)
    assert torch.equal(sketch_outer(a.cuda(), g.cuda(), conv=conv.geometry).cpu().double(), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_images_of_many_sizes_are_sketched_exactly_in_every_layout(kernel_size, dtype):
    conv = ConvGeometry((kernel_size,) * 2, (1, 1), (kernel_size // 2,) * 2, (1, 1))
    for height, width in [(1, 1), (2, 4), (4, 4), (8, 8), (7, 7), (3, 11), (16, 16)]:
        a = integers(6, 24, height, width, seed=1).to(dtype)
        g = integers(6, 136, height, width, seed=2).to(dtype)
        expected = reference.sketch_outer(a, g, 4096, KEY, rows_per_group=3, conv=conv)
        for memory_format in (torch.contiguous_format, torch.channels_last):
            views = [x.cuda().contiguous(memory_format=memory_format) for x in (a, g)]
            actual = sketch_outer(*views, proj_dim=4096, conv=conv).cpu().double()
            assert torch.equal(actual, expected), (height, width, memory_format)


def test_many_contracted_positions_stay_as_exact_as_torch():
    a, g = 1 + randn(2, 16_384, 40, seed=1), 1 + randn(2, 16_384, 33, seed=2)
    grads = torch.stack([g_.T @ a_ for a_, g_ in zip(a, g, strict=True)])
    buckets, signs = reference.sketch_map(KEY, 33, 40, 96)
    plain = torch.zeros(2, 96).index_add_(1, buckets.flatten(), (grads * signs.float()).flatten(1))
    expected = reference.sketch_outer(a, g, 96, KEY, rows_per_group=1)
    assert_as_exact_as_torch(sketch_outer(a.cuda(), g.cuda(), 96), plain, expected)


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0), reason="needs tensor cores for TF32"
)
def test_tf32_is_used_where_it_is_asked_for(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    a, g = randn(2, 50, 40, seed=1).cuda(), randn(2, 50, 33, seed=2).cuda()
    features = torch.zeros(1, 32 * 33 * 2, device="cuda")  # a bucket holds at most two entries
    ops.sketch_outer_(features, a, g, key=KEY)
    expected = reference.sketch_outer(a.cpu(), g.cpu(), features.shape[1], KEY, rows_per_group=2)
    magnitude = torch.einsum("npo,npi->oi", g.abs(), a.abs()).max().item()
    error = (features.cpu() - expected).abs().max().item()
    assert 2**-16 * magnitude < error <= 2 * 2.001 * 2**-11 * magnitude


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("proj_dim", [1, 63, 64, 65, 127, 128, 129, 512])  # a tile is 128 x 64
@pytest.mark.parametrize("num_samples", [0, 1, 15, 16, 17, 31, 32, 33, 511, 513])  # 512 samples are summed in float32
def test_gram_is_exact_on_integers(num_samples, proj_dim, dtype):
    features = integers(num_samples, proj_dim).to(dtype)
    assert torch.equal(gram(features.cuda()).cpu(), reference.gram(features).triu())


@pytest.mark.parametrize("proj_dim", [65, 512, 2048, 4100])  # in one pass, in one, in two, and without
def test_no_split_over_samples_shows_in_the_bits_of_a_gram(proj_dim):
    features = randn(5000, proj_dim).cuda()
    pieces = torch.zeros(proj_dim, proj_dim, dtype=torch.float64, device="cuda")
    for piece in features.split(512):  # as many as are summed in float32
        ops.accumulate_gram_(pieces, piece)
    assert torch.equal(gram(features), pieces.triu())


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("proj_dim", [32, 480, 512, 544, 1024, 1056, 4096, 16_384])  # a step is 512 or 1024 codes
def test_packed_rows_have_the_bits_of_the_cpu_and_exact_products(proj_dim, bits):
    for num_rows in (0, 1, 31, 63, 64, 65, 1000):  # a block is 64 rows
        rows = randn(num_rows, proj_dim)
        packed, scales = ops.pack_rows(rows.cuda(), bits)
        expected = ops.pack_rows(rows, bits)
        assert torch.equal(packed.cpu(), expected[0])
        assert torch.equal(scales.cpu(), expected[1])
        for num_queries in (1, 3, 8, 17):
            queries, ones = integers(num_queries, proj_dim), torch.ones(num_rows)
            out = torch.empty(num_queries, num_rows, device="cuda")
            ops.packed_products_(out, queries.cuda(), packed, ones.cuda(), bits)
            assert torch.equal(out.cpu().double(), reference_packed.packed_products(queries, packed.cpu(), ones, bits))


@pytest.mark.slow
def test_elements_beyond_2_to_the_31_are_found():
    stride, values = 2**30 + 640, integers(3, 60, 64)
    buffer = torch.empty(2 * stride + 60 * 64, dtype=torch.bfloat16, device="cuda")
    apart = buffer.as_strided((3, 60, 64), (stride, 64, 1))
    apart.copy_(values)
    assert torch.equal(sketch(apart), sketch(values.cuda()))
    flat = buffer.as_strided((3, 60 * 64), (stride, 1))
    assert torch.equal(project(flat), project(values.flatten(1).cuda()))
    assert torch.equal(gram(flat[:, :512]), gram(values.flatten(1)[:, :512].cuda()))
    features = sketch_outer(apart, apart, groups=3)
    assert torch.equal(features, sketch_outer(values.cuda(), values.cuda(), groups=3))


# ------------------------------------------------------------------------------------- random numbers


def test_words_and_noise_have_the_bits_of_the_cpu():
    keys = torch.arange(3001) * 0x9E3779B97F4A7C15
    minors = keys & 0xFFFFFFFF
    words = ops.philox_words(keys.cuda(), keys.cuda(), minors.cuda(), stream=5)
    assert torch.equal(words.cpu(), ops.philox_words(keys, keys, minors, stream=5))
    noise = ops.philox_normal(keys.cuda(), minors.cuda(), 1009)
    assert torch.equal(noise.cpu(), ops.philox_normal(keys, minors, 1009))


def test_projections_have_the_entries_of_the_cpu():
    one_hot = torch.eye(130)
    for kind in ("rademacher", "normal"):
        # A normal is multiplied as the sum of two numbers of 11 bits.
        rtol = 0 if kind == "rademacher" else 2**-22
        expected = project(one_hot, 300, kind)
        torch.testing.assert_close(project(one_hot.cuda(), 300, kind).cpu(), expected, rtol=rtol, atol=0)


def test_sketches_have_the_buckets_and_signs_of_the_reference():
    one_hot = torch.eye(37 * 70).reshape(-1, 37, 70)
    features = torch.zeros(37 * 70, 1056, device="cuda")
    ops.sketch_(features, one_hot.cuda(), key=HIGH_KEY, row_begin=2**45 + 3)
    expected = reference.sketch_matrix(HIGH_KEY, 37, 70, 1056, row_begin=2**45 + 3)
    assert torch.equal(features.cpu().double(), expected)
