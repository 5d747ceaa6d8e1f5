"""Builds the CUDA kernels for the CPU and calls them, each in three orders of warps, threads and blocks.

Arguments are CPU tensors. Every call checks what every kernel promises: all orders give the same bits (a race or a
missing barrier would not), the workspace may hold anything before, nothing outside outputs and workspace changes, and
nothing before or behind an input is read.
"""

from __future__ import annotations

import ctypes
import mmap
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import c_int64, c_uint64, c_void_p
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pybind11
import torch
from torch import Tensor

from journey.ops.cuda import CudaKernels
from journey.ops.geometry import LINEAR_NUMBERS, ConvGeometry

ROOT = Path(__file__).parents[3]
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
PRECISIONS = {"float32": 0, "tf32": 1}
KINDS = {"rademacher": 0, "normal": 1}

ORDERS = FORWARD, BACKWARD, SHUFFLED = 0, 1, 2  # of emulation::Order

_GUARD = 256  # entries around an output or a workspace that must keep what they held


class CudaError(RuntimeError):
    """A function of emulation_api.cpp returned something else than success; ``args[0]`` is the cudaError_t."""


class CheckedKernels(CudaKernels):
    """The ops over the emulated kernels, for CPU tensors: each run is checked to write within its workspace."""

    def __init__(self, bindings: ModuleType) -> None:
        self.library: ctypes.CDLL | None = None
        self.bindings = bindings  # as journey.ops._native.cuda, over the emulated kernels
        self.changes: dict[str, object] = {}
        self.workspace_floats: int | None = None
        self.beside: list[Tensor] = []  # what the next run writes beside its memory and workspace

    @contextmanager
    def changed(self, workspace_floats: int | None = None, **changes: object) -> Iterator[None]:
        """Tell kernels something else than what Python would, and give them a workspace of another size."""
        self.changes, self.workspace_floats = changes, workspace_floats
        yield
        self.changes, self.workspace_floats = {}, None

    def run(self, op: str, memory: Tensor, args: dict[str, object]) -> None:
        """Run a kernel with a poisoned workspace of the size that it asks for, and check what is around it."""
        given: list[Tensor] = []

        def allocate(floats: int) -> tuple[int, int]:
            size = floats if self.workspace_floats is None else self.workspace_floats
            given.append(_poisoned(size + 2 * _GUARD, torch.float32))
            self._watch(given[0], memory)
            return given[0][_GUARD:].data_ptr() if size else 0, size

        self._watch(memory)
        getattr(self.bindings, op)(self._changed(args), allocate, -1, 0)
        for workspace in given:
            outside = torch.cat([workspace[:_GUARD], workspace[-_GUARD:]])
            assert _same_bits(outside, _poisoned(2 * _GUARD, torch.float32)), "it wrote outside its workspace"

    def _changed(self, args: dict[str, object]) -> dict[str, object]:
        if "layers" in args:
            return {"layers": [layer | self.changes for layer in args["layers"]]}
        return args | self.changes

    def _watch(self, *written: Tensor) -> None:
        """Tell the race detector, if there is one, what the kernel writes."""
        if not hasattr(self.library, "add_output"):
            return
        self.library.clear_outputs()
        for x in (*written, *self.beside):
            self.library.add_output(c_void_p(x.data_ptr()), c_int64(_span(x) * x.element_size()))


_HERE = Path(__file__).parent
# Contraction off for equal bits; fortified longjmp would take a switch of fibers for a corrupt stack.
_FLAGS = ["-std=c++17", "-fPIC", "-ffp-contract=off", "-U_FORTIFY_SOURCE", "-Wno-unknown-pragmas"]
_FLAGS += ["-DJOURNEY_CUDA_EMULATION", "-fno-gnu-unique"]  # two libraries in a process: two of every variable
_FLAGS += [f"-I{path}" for path in (_HERE, pybind11.get_include(), sysconfig.get_path("include"))]
# What would be undefined on a device too is reported to emulation_api.cpp, accesses to memory to races.cpp.
_UNDEFINED = ["-O2", "-fsanitize=alignment,shift,signed-integer-overflow,integer-divide-by-zero,bounds"]
# Inline variables are this library's own, not those of one without the detector that the process has loaded before.
_RACES = ["-O2", "-fsanitize=thread", "-Wno-tsan", "-fno-gnu-unique"]


def compile_file(compiler: str, source: Path, folder: Path, *, races: bool = False) -> Path:
    """Compile one file to an object, which is returned."""
    checks = _RACES if races else _UNDEFINED
    if source.name in ("emulated_module.cpp", "races.cpp"):
        checks = []  # the bindings are slow to optimize and run once a call; the detector must not look at itself
    built = folder / f"{source.name}.o"
    subprocess.run([compiler, *_FLAGS, *checks, "-c", "-x", "c++", source, "-o", built], check=True)
    return built


def link(compiler: str, objects: list[Path], folder: Path) -> Emulated:
    """Link objects, without the libraries of the compiler's checks: ours take their calls."""
    library = folder / f"emulated{sysconfig.get_config_var('EXT_SUFFIX')}"
    subprocess.run([compiler, "-shared", *objects, "-o", library], check=True)
    return Emulated(library)


def build(compiler: str, folder: Path, *, races: bool = False) -> Emulated:
    """Compile every ``.cu`` file, the bindings and the test's C interface into one shared library.

    With ``races`` every access to shared memory and to what kernels write is looked at (races.h).
    """
    kernels = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
    sources = [*kernels, _HERE / "emulated_module.cpp", _HERE / "emulation_api.cpp"]
    if races:
        sources.append(_HERE / "races.cpp")
    return link(compiler, [compile_file(compiler, source, folder, races=races) for source in sources], folder)


class Emulated:
    """The launchers of ``csrc/cuda/kernels.h`` over CPU tensors, and the maps of ``csrc/common`` on the host."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))
        # pybind11 keeps modules by name: a second library of the same name would be the first one.
        name = f"{path.parent.name}.emulated"
        loader = ExtensionFileLoader(name, str(path))
        module = module_from_spec(spec_from_loader(name, loader))
        loader.exec_module(module)
        self.ops = CheckedKernels(module.cuda)
        self.ops.library = self.library

    @property
    def races(self) -> int:
        """Races that were seen so far; only of a library that was built to look for them."""
        self.library.count_races.restype = c_uint64
        return self.library.count_races()

    @property
    def accesses(self) -> int:
        """Accesses to memory that were looked at so far."""
        self.library.count_accesses.restype = c_uint64
        return self.library.count_accesses()

    def philox_words(self, keys: Tensor, indices: Tensor, minors: Tensor, stream: int) -> Tensor:
        """Words of each draw, int64. [n, 4]."""
        minors = minors.to(torch.int32)
        args = {"keys": keys.data_ptr(), "indices": indices.data_ptr(), "minors": minors.data_ptr(), "stream": stream}
        return self._overwritten("philox_words", args, torch.int64, len(keys), 4)

    def philox_normal(self, keys: Tensor, minors: Tensor, numel: int) -> Tensor:
        """Rows of normals. [n, numel]."""
        minors = minors.to(torch.int32)
        args = {"keys": keys.data_ptr(), "minors": minors.data_ptr(), "numel": numel}
        return self._overwritten("philox_normal", args, torch.float32, len(keys), numel)

    def sketch(self, grads: Tensor, proj_dim: int, key: int, *, row_begin: int = 0, nnz: int = 1) -> Tensor:
        """Sketch of gradients. [batch, proj_dim]."""
        return self._added(grads.shape[0], proj_dim, [grads], lambda x, y: self.ops.sketch_(x, y, key, row_begin, nnz))

    def sketch_many(
        self,
        parameters: list[tuple[Tensor, int, int]],
        batch: int,
        proj_dim: int,
        nnz: int = 1,
        scales: list[float] | None = None,
    ) -> Tensor:
        """Sketch of (gradients, key, row_begin), each times its scale, summed. [batch, proj_dim]."""
        grads, keys, row_begins = [list(column) for column in zip(*parameters, strict=True)] or [[], [], []]
        rows, cols = [x.shape[1] for x in grads], [x.shape[2] for x in grads]
        lists = keys, rows, cols, row_begins, scales or [1.0] * len(keys)
        flat = torch.cat([x.flatten(1).float() for x in grads], dim=1) if grads else torch.zeros(batch, 0)
        return self._added(batch, proj_dim, [flat], lambda x, y: self.ops.sketch_many_(x, y, *lists, nnz))

    def project(self, grads: Tensor, proj_dim: int, key: int, kind: str, *, row_begin: int = 0) -> Tensor:
        """Dense projection of gradients. [batch, proj_dim]."""
        return self._added(
            grads.shape[0], proj_dim, [grads], lambda x, y: self.ops.project_(x, y, key, KINDS[kind], row_begin)
        )

    def sketch_outer(
        self,
        a: Tensor,
        g: Tensor,
        proj_dim: int,
        key: int,
        groups: int,
        *,
        conv: ConvGeometry | None = None,
        nnz: int = 1,
        precision: str = "float32",
    ) -> Tensor:
        """Sketch of weight gradients; Linear where ``conv`` is None. [groups, proj_dim].

        The sums of output gradients that come beside it are looked at, too.
        """
        numbers = [*(LINEAR_NUMBERS if conv is None else conv.numbers)]
        channels = g.shape[2 if conv is None else 1]
        buffer = torch.empty(groups + 2, channels + 64)
        sums = buffer[1:-1, 32 : 32 + channels]

        def add(features: Tensor, a: Tensor, g: Tensor) -> None:
            buffer.copy_(_poisoned(buffer.numel(), torch.float32).view_as(buffer))
            self.ops.beside = [sums]
            self.ops.sketch_outer_many_(features, [a], [g], [key], numbers, [1.0], nnz, [sums], [0])
            self.ops.beside = []
            if a.numel() and g.numel():
                _check_sums(sums, g, conv is None)
            sums.copy_(_poisoned(sums.numel(), torch.float32).view_as(sums))
            assert _same_bits(buffer, _poisoned(buffer.numel(), torch.float32).view_as(buffer)), "it wrote outside"

        with self.ops.changed(precision=PRECISIONS[precision]):
            return self._added(groups, proj_dim, [a, g], add)

    def set_device(
        self, *, tensor_cores: bool = True, max_shared_bytes: int = 227 << 10, addend_bits: int = -1
    ) -> None:
        """What the emulated device can do, until the next call."""
        self.library.set_device(tensor_cores, max_shared_bytes, addend_bits)

    def accumulate_gram_(
        self, gram: Tensor, features: Tensor, *, precision: str = "float32", workspace_floats: int | None = None
    ) -> None:
        """Add the Gram matrix of the columns of features with contiguous rows to the upper triangle of ``gram``."""
        before, results = gram.clone(), []
        for order in ORDERS:
            gram.copy_(before)
            self.library.set_order(order)
            with self.ops.changed(workspace_floats, precision=PRECISIONS[precision]):
                self.ops.accumulate_gram_(gram, guarded(features, at_end=order != SHUFFLED), 1)
            results.append(gram.clone())
        assert all(_same_bits(results[0], other) for other in results), "the order shows in the result: a race"

    def norm_grads(self, x: Tensor, g: Tensor, *, groups: int, centered: bool, eps: float) -> Tensor:
        """Weight and bias gradients, in every order. [num_rows, 2, channels]."""
        results = []
        for order in ORDERS:
            self.library.set_order(order)
            inputs = [guarded(t, at_end=order != SHUFFLED) for t in (x, g)]
            channels, positions = x.shape[1:] if groups else x.shape[:0:-1]
            buffer = _poisoned(len(x) * 2 * channels + 2 * _GUARD, torch.float32)
            grads = buffer[_GUARD:-_GUARD]
            args = {"x": inputs[0].data_ptr(), "g": inputs[1].data_ptr(), "grads": grads.data_ptr(), "eps": eps}
            args |= {"num_rows": len(x), "channels": channels, "positions": positions, "dtype": DTYPES[x.dtype]}
            self.ops.run("norm_grads", grads, args | {"groups": groups, "centered": centered})
            results.append(grads.clone().view(len(x), 2, channels))
            grads.copy_(_poisoned(grads.numel(), torch.float32))
            assert _same_bits(buffer, _poisoned(buffer.numel(), torch.float32)), "it wrote outside"
        assert all(_same_bits(results[0], other) for other in results), "the order shows in the result: a race"
        return results[0]

    def pack_rows(self, rows: Tensor, bits: int) -> tuple[Tensor, Tensor]:
        """Codes and scales, written from poison in every order. [num_rows, proj_dim * bits / 8], [num_rows]."""
        (num_rows, proj_dim), results = rows.shape, []
        for order in ORDERS:
            self.library.set_order(order)
            given = self.ops.with_vectors(guarded(rows, at_end=order != SHUFFLED))
            codes = _poisoned(num_rows * proj_dim * bits // 8 + 2 * _GUARD, torch.uint8)
            buffer = _poisoned(num_rows + 2 * _GUARD, torch.float32)
            packed, scales = codes[_GUARD:-_GUARD], buffer[_GUARD:-_GUARD]
            args = {"rows": given.data_ptr(), "packed": packed.data_ptr(), "scales": scales.data_ptr(), "bits": bits}
            args |= {"num_rows": num_rows, "proj_dim": proj_dim, "rows_stride": given.stride(0)}
            self.ops.run("pack_rows", packed, args)
            results.append((packed.clone(), scales.clone()))
            for whole, written in ((codes, packed), (buffer, scales)):
                written.copy_(_poisoned(written.numel(), written.dtype))
                assert _same_bits(whole, _poisoned(whole.numel(), whole.dtype)), "it wrote outside its output"
        for other in results[1:]:
            assert all(map(_same_bits, results[0], other)), "the order shows in the result: a race"
        packed, scales = results[0]
        return packed.view(num_rows, proj_dim * bits // 8).view(torch.int8 if bits == 8 else torch.uint8), scales

    def packed_products(self, queries: Tensor, packed: Tensor, scales: Tensor, bits: int) -> Tensor:
        """Products, written from poison into a larger buffer in every order. [num_queries, num_rows]."""
        num_queries, num_rows = len(queries), len(packed)
        results = []
        for order in ORDERS:
            self.library.set_order(order)
            buffer = _poisoned((num_queries + 2) * (num_rows + 64), torch.float32).view(num_queries + 2, num_rows + 64)
            out = buffer[1:-1, 32 : 32 + num_rows]
            inputs = [guarded(x, at_end=order != SHUFFLED) for x in (queries, packed, scales)]
            self.ops.packed_products_(out, *inputs, bits)
            results.append(out.clone())
            out.copy_(_poisoned(out.numel(), torch.float32).view(out.shape))
            assert _same_bits(buffer, _poisoned(buffer.numel(), torch.float32).view(buffer.shape)), "it wrote outside"
        assert all(_same_bits(results[0], other) for other in results), "the order shows in the result: a race"
        return results[0]

    def mma(self, a: Tensor, b: Tensor, c: Tensor, dtype: torch.dtype) -> Tensor:
        """One warp product from the words of each lane, int32 [32, 4], [32, 2], and sums, float32 [32, 4]."""
        out = c.clone()
        _check(self.library.run_mma(DTYPES[dtype], *(c_void_p(x.data_ptr()) for x in (a, b, out))))
        return out

    def load_matrices(self, matrices: Tensor) -> Tensor:
        """Words of each lane from four matrices, int32. [4, 8, 4] -> [32, 4]."""
        words = torch.empty(32, 4, dtype=torch.int32)
        _check(self.library.run_load_matrices(c_void_p(matrices.data_ptr()), c_void_p(words.data_ptr())))
        return words

    def split_tf32(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Nearest TF32 numbers and those nearest to what is left, float32. [*shape], [*shape]."""
        high, low = x.clone(), torch.empty_like(x)
        self.library.split_tf32(c_void_p(high.data_ptr()), c_void_p(low.data_ptr()), c_int64(high.numel()))
        return high, low

    def exchange(self, order: int, *, before_reading: bool = True, before_writing: bool = True) -> Tensor:
        """What 64 threads read in 8 rounds, each what another wrote, with or without barriers. [64, 8]."""
        out = torch.empty(64, 8)
        self.library.set_order(order)
        _check(self.library.run_exchange(before_reading, before_writing, c_void_p(out.data_ptr())))
        return out

    def read_vector(self, source: Tensor) -> float:
        """The first of four floats that are read at once."""
        out = torch.empty(1)
        _check(self.library.run_misaligned(c_void_p(source.data_ptr()), c_void_p(out.data_ptr())))
        return out.item()

    def copy(self, source: Tensor, num_bytes: int, *, waits: bool = True) -> Tensor:
        """16 bytes after an asynchronous copy, uint8. [16]."""
        out = torch.zeros(16, dtype=torch.uint8)
        self.library.set_order(FORWARD)
        _check(self.library.run_copy(c_void_p(source.data_ptr()), num_bytes, waits, c_void_p(out.data_ptr())))
        return out

    def host_normal(self, key: int, minor: int, numel: int) -> Tensor:
        """One row of normals from ``csrc/common/normal.h``. [numel]."""
        out = torch.empty(numel)
        self.library.host_normal(c_uint64(key), minor, c_void_p(out.data_ptr()), c_int64(numel))
        return out

    def host_sketch_map(
        self, key: int, rows: int, cols: int, proj_dim: int, repetition: int = 0, *, row_begin: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Bucket and sign of every entry from ``csrc/common/sketch_map.h``. [rows, cols], [rows, cols]."""
        buckets, signs = torch.empty(rows, cols, dtype=torch.int64), torch.empty(rows, cols, dtype=torch.float64)
        sizes = [c_int64(size) for size in (row_begin, rows, cols, proj_dim)]
        pointers = c_void_p(buckets.data_ptr()), c_void_p(signs.data_ptr())
        self.library.host_sketch_map(c_uint64(key), repetition, *sizes, *pointers)
        return buckets, signs

    def host_projection(self, key: int, rows: int, columns: int, kind: str, *, row_begin: int = 0) -> Tensor:
        """Entries of a dense projection from ``csrc/common/dense_map.h``, float64. [rows, columns]."""
        out = torch.empty(rows, columns, dtype=torch.float64)
        sizes = [c_int64(size) for size in (row_begin, rows, columns)]
        self.library.host_projection(KINDS[kind], c_uint64(key), *sizes, c_void_p(out.data_ptr()))
        return out

    def _overwritten(self, op: str, args: dict[str, int], dtype: torch.dtype, n: int, columns: int) -> Tensor:
        """Run a kernel that overwrites its output [n, columns], from poison in every order."""
        results = []
        for order in ORDERS:
            self.library.set_order(order)
            buffer = _poisoned(n * columns + 2 * _GUARD, dtype)
            out = buffer[_GUARD:-_GUARD]
            self.ops.run(op, out, {**args, "n": n, "out": out.data_ptr()})
            results.append(out.clone())
            out.copy_(_poisoned(out.numel(), dtype))
            assert _same_bits(buffer, _poisoned(buffer.numel(), dtype)), "it wrote outside its output"
        assert all(_same_bits(results[0], other) for other in results), "the order shows in the result: a race"
        return results[0].reshape(n, columns)

    def _added(self, rows: int, proj_dim: int, inputs: list[Tensor], add: Callable[..., None]) -> Tensor:
        """Run an op that adds to features inside a larger buffer: twice onto zeros, then onto the result."""
        buffer = torch.zeros(rows + 2, proj_dim + 64)
        features = buffer[1 : rows + 1, 32 : 32 + proj_dim]
        results = []
        for order in (FORWARD, SHUFFLED, BACKWARD):
            if order == SHUFFLED:
                features.zero_()
            self.library.set_order(order)
            add(features, *(guarded(x, at_end=order != SHUFFLED) for x in inputs))
            results.append(features.clone())
        features.zero_()
        assert not buffer.any(), "it wrote outside the features"
        assert _same_bits(*results[:2]), "the order of threads or blocks shows in the result: a race"
        # x + x is exact, so the third run must give twice the second to the last bit.
        assert _same_bits(2 * results[1], results[2]), "the order of threads or blocks shows, or it does not add"
        return results[0]


def _check_sums(sums: Tensor, g: Tensor, channels_last: bool) -> None:
    """Hold sums of output gradients to those in float64: 16 terms by the tensor core, and these in float32."""
    terms = (g if channels_last else g.flatten(2).transpose(1, 2)).double()
    terms = terms.reshape(len(sums), -1, sums.shape[1])
    expected, finite = terms.sum(1), terms.sum(1).isfinite()
    assert torch.equal(sums.isfinite(), finite)
    units = 0 if torch.equal(terms, terms.round()) else terms.shape[1] / 16 + 8
    error = (sums - expected).abs()[finite]
    assert torch.all(error <= units * 2.0**-23 * terms.abs().sum(1)[finite]), "the sums of g are off"


def _span(x: Tensor) -> int:
    """Elements from the first to the last of a tensor."""
    return sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True)) + 1 if x.numel() else 0


def guarded(x: Tensor, *, at_end: bool) -> Tensor:
    """A copy at the same alignment beside a page that must not be touched: a read there ends the process.

    The page follows the last byte, or comes before the first, by less than 16 bytes. Large inputs are left as they are.
    """
    num_bytes, alignment, page = _span(x) * x.element_size(), x.data_ptr() % 16, mmap.PAGESIZE
    if not 0 < num_bytes < 1 << 24:
        return x
    inside = -(-(num_bytes + alignment) // page) * page
    memory = mmap.mmap(-1, inside + 2 * page)
    begin = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for guard in (begin, begin + page + inside):
        assert ctypes.CDLL(None).mprotect(c_void_p(guard), ctypes.c_size_t(page), 0) == 0
    slack = inside - num_bytes
    offset = page + (slack - (slack - alignment) % 16 if at_end else alignment)
    flat = torch.frombuffer(memory, dtype=x.dtype, count=_span(x), offset=offset)  # keeps the memory
    flat.copy_(x.as_strided((_span(x),), (1,)))
    return flat.as_strided(x.shape, x.stride())


def _poisoned(count: int, dtype: torch.dtype) -> Tensor:
    """All bits set, which is NaN in every floating dtype. [count]."""
    return torch.full((count * dtype.itemsize,), 0xFF, dtype=torch.uint8).view(dtype)


def _same_bits(first: Tensor, second: Tensor) -> bool:
    """Equality that holds for NaN too."""
    return torch.equal(first.contiguous().view(torch.uint8), second.contiguous().view(torch.uint8))


def _check(status: int) -> None:
    if status != 0:
        raise CudaError(status)
