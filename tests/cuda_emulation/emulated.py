"""Builds the CUDA kernels for the CPU and calls them, each in three orders of warps, threads and blocks.

Arguments are CPU tensors. Every call checks what every kernel promises: all orders give the same bits (a race or a
missing barrier would not), the workspace may hold anything before, and nothing outside outputs and workspace changes.
"""

from __future__ import annotations

import ctypes
import subprocess
import sysconfig
from collections.abc import Callable
from ctypes import POINTER, Structure, byref, c_int, c_int64, c_uint64, c_void_p
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pybind11
import torch
from torch import Tensor

ROOT = Path(__file__).parents[2]
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
PRECISIONS = {"float32": 0, "tf32": 1}
KINDS = {"rademacher": 0, "normal": 1}
SUCCESS, INVALID_VALUE, INVALID_CONFIGURATION = 0, 1, 9  # of cudaError_t

ORDERS = FORWARD, BACKWARD, SHUFFLED = 0, 1, 2  # of emulation::Order

_GUARD = 256  # entries around an output or a workspace that must keep what they held


def _pointers(names: str) -> list[tuple[str, type]]:
    return [(name, c_void_p) for name in names.split()]


def _int64s(names: str) -> list[tuple[str, type]]:
    return [(name, c_int64) for name in names.split()]


class SketchArgs(Structure):
    """journey::cuda::SketchArgs."""

    _fields_ = (
        *_pointers("grads features workspace"),
        ("dtype", c_int),
        *_int64s("batch rows cols grads_batch_stride features_stride row_begin proj_dim"),
        ("key", c_uint64),
        ("nnz", c_int64),
    )


class SmallParameter(Structure):
    """journey::cuda::SmallParameter."""

    _fields_ = (
        *_pointers("grads"),
        ("dtype", c_int),
        *_int64s("rows cols grads_batch_stride row_begin"),
        ("key", c_uint64),
    )


class SketchManyArgs(Structure):
    """journey::cuda::SketchManyArgs."""

    _fields_ = (
        ("parameters", POINTER(SmallParameter)),
        *_int64s("num_parameters"),
        *_pointers("features workspace"),
        *_int64s("batch features_stride proj_dim nnz"),
    )


class ProjectArgs(Structure):
    """journey::cuda::ProjectArgs."""

    _fields_ = (
        *_pointers("grads features workspace"),
        ("dtype", c_int),
        ("kind", c_int),
        *_int64s("batch grad_dim proj_dim grads_stride features_stride row_begin"),
        ("key", c_uint64),
    )


class SketchOuterArgs(Structure):
    """journey::cuda::SketchOuterArgs; a_strides and g_strides are (row, channel, y, x)."""

    _fields_ = (
        *_pointers("a g features workspace"),
        ("dtype", c_int),
        ("precision", c_int),
        ("a_strides", c_int64 * 4),
        ("g_strides", c_int64 * 4),
        *_int64s("num_groups rows_per_group in_channels in_height in_width out_channels out_height out_width"),
        *_int64s("kernel_h kernel_w stride_h stride_w pad_h pad_w dilation_h dilation_w conv_groups"),
        *_int64s("features_stride proj_dim"),
        ("key", c_uint64),
        ("nnz", c_int64),
    )


class GramArgs(Structure):
    """journey::cuda::GramArgs."""

    _fields_ = (
        *_pointers("features gram workspace"),
        *_int64s("workspace_floats"),
        ("dtype", c_int),
        ("precision", c_int),
        *_int64s("num_samples proj_dim features_stride gram_stride"),
    )


class CudaError(RuntimeError):
    """A launcher returned something else than success; ``args[0]`` is the cudaError_t."""


def build(compiler: str, folder: Path) -> Emulated:
    """Compile every ``.cu`` file, the bindings and the test's C interface into one shared library."""
    library = folder / f"emulated{sysconfig.get_config_var('EXT_SUFFIX')}"
    here = Path(__file__).parent
    includes = [here, pybind11.get_include(), sysconfig.get_path("include")]
    # Contraction off for equal bits; fortified longjmp would take a switch of fibers for a corrupt stack. What would be
    # undefined on a device too is reported to emulation_api.cpp.
    flags = ["-std=c++17", "-fPIC", "-ffp-contract=off", "-U_FORTIFY_SOURCE", "-Wno-unknown-pragmas"]
    flags += ["-DJOURNEY_CUDA_EMULATION", *(f"-I{path}" for path in includes)]
    flags += ["-fsanitize=alignment,shift,signed-integer-overflow,integer-divide-by-zero,bounds"]
    bindings = folder / "bindings.o"
    module = here / "emulated_module.cpp"
    subprocess.run([compiler, *flags, "-c", module, "-o", bindings], check=True)  # slow to optimize, run once a call
    sources = [*sorted((ROOT / "csrc" / "cuda").glob("*.cu")), here / "emulation_api.cpp"]
    command = [compiler, *flags, "-O2", "-shared", bindings, "-x", "c++", *sources]
    subprocess.run([*command, "-o", library], check=True)
    return Emulated(library)


class Emulated:
    """The launchers of ``csrc/cuda/kernels.h`` over CPU tensors, and the maps of ``csrc/common`` on the host."""

    def __init__(self, path: Path) -> None:
        self.library = library = ctypes.CDLL(str(path))
        loader = ExtensionFileLoader("emulated", str(path))
        module = module_from_spec(spec_from_loader("emulated", loader))
        loader.exec_module(module)
        self.bindings = module.cuda  # as journey._native.cuda, over the same kernels
        for name in ("sketch", "sketch_many", "project", "sketch_outer", "gram"):
            getattr(library, f"{name}_workspace").restype = c_int64

    def philox_words(self, keys: Tensor, indices: Tensor, minors: Tensor, stream: int) -> Tensor:
        """Words of each draw, int64. [n, 4]."""
        minors = minors.to(torch.int32)
        pointers = [c_void_p(tensor.data_ptr()) for tensor in (keys, indices, minors)]
        n = len(keys)
        return self._overwritten(
            (n, 4), torch.int64, lambda out: self.library.run_philox_words(*pointers, out, c_int64(n), stream)
        )

    def philox_normal(self, keys: Tensor, minors: Tensor, numel: int) -> Tensor:
        """Rows of normals. [n, numel]."""
        minors = minors.to(torch.int32)
        pointers = [c_void_p(tensor.data_ptr()) for tensor in (keys, minors)]
        n = len(keys)
        return self._overwritten(
            (n, numel),
            torch.float32,
            lambda out: self.library.run_philox_normal(*pointers, out, c_int64(n), c_int64(numel)),
        )

    def sketch(self, grads: Tensor, proj_dim: int, key: int, *, row_begin: int = 0, nnz: int = 1) -> Tensor:
        """Sketch of gradients whose matrices are contiguous. [batch, proj_dim]."""
        args = SketchArgs(grads=grads.data_ptr(), dtype=DTYPES[grads.dtype], row_begin=row_begin, key=key, nnz=nnz)
        args.batch, args.rows, args.cols = grads.shape
        args.grads_batch_stride, args.proj_dim = grads.stride(0), proj_dim
        return self._added(args, args.batch, self.library.run_sketch, self.library.sketch_workspace)

    def sketch_many(self, parameters: list[tuple[Tensor, int, int]], batch: int, proj_dim: int, nnz: int = 1) -> Tensor:
        """Sketch of (gradients with contiguous matrices, key, row_begin), summed. [batch, proj_dim]."""
        items = (SmallParameter * len(parameters))()
        for item, (grads, key, row_begin) in zip(items, parameters, strict=True):
            item.grads, item.dtype, item.key, item.row_begin = grads.data_ptr(), DTYPES[grads.dtype], key, row_begin
            _, item.rows, item.cols = grads.shape
            item.grads_batch_stride = grads.stride(0)
        args = SketchManyArgs(parameters=items, num_parameters=len(items), batch=batch, proj_dim=proj_dim, nnz=nnz)
        return self._added(args, batch, self.library.run_sketch_many, self.library.sketch_many_workspace)

    def project(self, grads: Tensor, proj_dim: int, key: int, kind: str, *, row_begin: int = 0) -> Tensor:
        """Dense projection of gradients with contiguous rows. [batch, proj_dim]."""
        args = ProjectArgs(grads=grads.data_ptr(), dtype=DTYPES[grads.dtype], kind=KINDS[kind], key=key)
        args.batch, args.grad_dim = grads.shape
        args.grads_stride, args.proj_dim, args.row_begin = grads.stride(0), proj_dim, row_begin
        return self._added(args, args.batch, self.library.run_project, self.library.project_workspace)

    def sketch_outer(
        self,
        a: Tensor,
        g: Tensor,
        proj_dim: int,
        key: int,
        groups: int,
        *,
        conv: object = None,
        nnz: int = 1,
        precision: str = "float32",
    ) -> Tensor:
        """Sketch of weight gradients; Linear where ``conv`` is None. [groups, proj_dim]."""
        if conv is None:  # [rows, positions, channels] is an image of one column and as many rows as positions
            a, g = a.transpose(1, 2).unsqueeze(3), g.transpose(1, 2).unsqueeze(3)
            kernel_size = stride = dilation = (1, 1)
            padding, conv_groups = (0, 0), 1
        elif a.dim() == 3:
            a, g = a.unsqueeze(2), g.unsqueeze(2)
            kernel_size, stride, dilation = (1, *conv.kernel_size), (1, *conv.stride), (1, *conv.dilation)
            padding, conv_groups = (0, *conv.padding), conv.groups
        else:
            kernel_size, stride, dilation = conv.kernel_size, conv.stride, conv.dilation
            padding, conv_groups = conv.padding, conv.groups
        args = SketchOuterArgs(a=a.data_ptr(), g=g.data_ptr(), dtype=DTYPES[a.dtype], key=key, nnz=nnz)
        args.a_strides, args.g_strides = (c_int64 * 4)(*a.stride()), (c_int64 * 4)(*g.stride())
        args.num_groups, args.rows_per_group = groups, a.shape[0] // groups if groups else 0
        _, args.in_channels, args.in_height, args.in_width = a.shape
        _, args.out_channels, args.out_height, args.out_width = g.shape
        (args.kernel_h, args.kernel_w), (args.stride_h, args.stride_w) = kernel_size, stride
        (args.pad_h, args.pad_w), (args.dilation_h, args.dilation_w) = padding, dilation
        args.conv_groups, args.proj_dim, args.precision = conv_groups, proj_dim, PRECISIONS[precision]
        return self._added(args, groups, self.library.run_sketch_outer, self.library.sketch_outer_workspace)

    def set_device(self, *, tensor_cores: bool = True, max_shared_bytes: int = 227 << 10) -> None:
        """What the emulated device can do, until the next call."""
        self.library.set_device(tensor_cores, max_shared_bytes)

    def accumulate_gram_(
        self, gram: Tensor, features: Tensor, *, precision: str = "float32", workspace_floats: int | None = None
    ) -> None:
        """Add the Gram matrix of the columns of features with contiguous rows to the upper triangle of ``gram``."""
        args = GramArgs(features=features.data_ptr(), gram=gram.data_ptr(), dtype=DTYPES[features.dtype])
        args.num_samples, args.proj_dim = features.shape
        args.features_stride, args.gram_stride = features.stride(0), gram.stride(0)
        args.precision = PRECISIONS[precision]
        if workspace_floats is None:
            workspace_floats = self.library.gram_workspace(byref(args))
        args.workspace_floats = workspace_floats
        before, results = gram.clone(), []
        for order in ORDERS:
            gram.copy_(before)
            self._run_with_workspace(args, order, self.library.run_accumulate_gram, lambda _: workspace_floats)
            results.append(gram.clone())
        assert all(_same_bits(results[0], other) for other in results), "the order shows in the result: a race"

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

    def _overwritten(self, shape: tuple[int, ...], dtype: torch.dtype, run: Callable[[c_void_p], int]) -> Tensor:
        """Run a kernel that overwrites its output, from poison in every order."""
        results = []
        for order in ORDERS:
            self.library.set_order(order)
            buffer = _poisoned(torch.Size(shape).numel() + 2 * _GUARD, dtype)
            out = buffer[_GUARD:-_GUARD]
            _check(run(c_void_p(out.data_ptr())))
            results.append(out.clone())
            out.copy_(_poisoned(out.numel(), dtype))
            assert _same_bits(buffer, _poisoned(buffer.numel(), dtype)), "it wrote outside its output"
        assert all(_same_bits(results[0], other) for other in results), "the order shows in the result: a race"
        return results[0].reshape(shape)

    def _added(
        self,
        args: SketchArgs | SketchManyArgs | ProjectArgs | SketchOuterArgs,
        rows: int,
        run: Callable[[object], int],
        workspace_size: Callable[[object], int],
    ) -> Tensor:
        """Run a kernel that adds to features inside a larger buffer: twice onto zeros, then onto the result."""
        buffer = torch.zeros(rows + 2, args.proj_dim + 64)
        features = buffer[1 : rows + 1, 32 : 32 + args.proj_dim]
        args.features, args.features_stride = features.data_ptr(), features.stride(0)
        results = []
        for order in (FORWARD, SHUFFLED, BACKWARD):
            if order == SHUFFLED:
                features.zero_()
            self._run_with_workspace(args, order, run, workspace_size)
            results.append(features.clone())
        features.zero_()
        assert not buffer.any(), "it wrote outside the features"
        assert _same_bits(*results[:2]), "the order of threads or blocks shows in the result: a race"
        # x + x is exact, so the third run must give twice the second to the last bit.
        assert _same_bits(2 * results[1], results[2]), "the order of threads or blocks shows, or it does not add"
        return results[0]

    def _run_with_workspace(
        self,
        args: SketchArgs | SketchManyArgs | ProjectArgs | SketchOuterArgs | GramArgs,
        order: int,
        run: Callable[[object], int],
        workspace_size: Callable[[object], int],
    ) -> None:
        """Run a launcher with a poisoned workspace of the size that it asks for, and check what is around it."""
        size = workspace_size(byref(args))
        workspace = _poisoned(size + 2 * _GUARD, torch.float32)
        args.workspace = workspace[_GUARD:].data_ptr() if size else None
        self.library.set_order(order)
        _check(run(byref(args)))
        outside = torch.cat([workspace[:_GUARD], workspace[_GUARD + size :]])
        assert _same_bits(outside, _poisoned(2 * _GUARD, torch.float32)), "it wrote outside its workspace"


def _poisoned(count: int, dtype: torch.dtype) -> Tensor:
    """All bits set, which is NaN in every floating dtype. [count]."""
    return torch.full((count * dtype.itemsize,), 0xFF, dtype=torch.uint8).view(dtype)


def _same_bits(first: Tensor, second: Tensor) -> bool:
    """Equality that holds for NaN too."""
    return torch.equal(first.contiguous().view(torch.uint8), second.contiguous().view(torch.uint8))


def _check(status: int) -> None:
    if status != SUCCESS:
        raise CudaError(status)
