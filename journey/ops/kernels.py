"""What each op tells its kernel, the same for host and device memory: the fields of csrc/common/args.h by their names.

Arguments were checked in ``journey.ops``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from journey.ops.geometry import LINEAR_NUMBERS, three
from journey.ops.keys import to_unsigned

_DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_NUMBERS = len(LINEAR_NUMBERS)  # of a layer's geometry
# Products of float32 tensors to the rounding of float32, or of operands rounded to 11 bits (faster).
FLOAT32, TF32 = 0, 1


class Kernels(ABC):
    """The ops over the compiled kernels for one kind of memory."""

    layers_of_any_strides: ClassVar[bool]

    @abstractmethod
    def run(self, op: str, memory: Tensor, args: dict[str, Any]) -> None:
        """Run a kernel where ``memory`` lies; what ``args`` point to must live until it returns."""

    def precision(self, convolution: bool = False) -> int:
        """How products of float32 tensors are formed, those of a convolution or others."""
        return FLOAT32

    def philox_words(self, keys: Tensor, indices: Tensor, minors: Tensor, stream: int) -> Tensor:
        """Words of each draw. [num_draws, 4]"""
        keys, indices, minors = keys.contiguous(), indices.contiguous(), minors.to(torch.int32)
        words = torch.empty(keys.shape[0], 4, dtype=torch.int64, device=keys.device)
        args = {"keys": keys.data_ptr(), "indices": indices.data_ptr(), "minors": minors.data_ptr()}
        self.run("philox_words", keys, {**args, "out": words.data_ptr(), "n": keys.shape[0], "stream": stream})
        return words

    def philox_normal(self, keys: Tensor, minors: Tensor, numel: int) -> Tensor:
        """Rows of noise. [num_rows, numel]"""
        keys, minors = keys.contiguous(), minors.to(torch.int32)
        noise = torch.empty(keys.shape[0], numel, device=keys.device, dtype=torch.float32)
        args = {"keys": keys.data_ptr(), "minors": minors.data_ptr(), "out": noise.data_ptr()}
        self.run("philox_normal", keys, {**args, "n": keys.shape[0], "numel": numel})
        return noise

    def sketch_(self, features: Tensor, grads: Tensor, key: int, row_begin: int, nnz: int) -> None:
        """Count sketch of one parameter's gradients."""
        grads = with_contiguous_rows(grads)
        self.run("sketch", features, sketch_args(features, grads, key, row_begin, nnz))

    def sketch_many_(
        self,
        features: Tensor,
        grads: Tensor,
        keys: list[int],
        rows: list[int],
        cols: list[int],
        row_begins: list[int],
        scales: list[float],
        nnz: int,
    ) -> None:
        """Count sketches of the gradients of many small parameters, which lie side by side."""
        grads = with_contiguous_rows(grads)
        args = {
            "grads": grads.data_ptr(),
            "features": features.data_ptr(),
            "batch": grads.shape[0],
            "grads_stride": grads.stride(0),
            "features_stride": features.stride(0),
            "proj_dim": features.shape[1],
            "nnz": nnz,
            "rows": rows,
            "cols": cols,
            "row_begins": row_begins,
            "keys": [to_unsigned(key) for key in keys],
            "scales": scales,
        }
        self.run("sketch_many", features, args)

    def project_(self, features: Tensor, grads: Tensor, key: int, kind: int, row_begin: int) -> None:
        """Dense random projection."""
        grads = with_contiguous_rows(grads)
        args = {
            "grads": grads.data_ptr(),
            "features": features.data_ptr(),
            "dtype": _DTYPES[grads.dtype],
            "kind": kind,
            "batch": grads.shape[0],
            "grad_dim": grads.shape[1],
            "proj_dim": features.shape[1],
            "grads_stride": grads.stride(0),
            "features_stride": features.stride(0),
            "row_begin": row_begin,
            "key": to_unsigned(key),
        }
        self.run("project", features, args)

    def sketch_outer_(
        self,
        features: Tensor,
        a: Tensor,
        g: Tensor,
        key: int,
        nnz: int,
        kernel_size: list[int],
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        groups: int,
    ) -> None:
        """Weight gradients multiplied out in registers and sketched, never stored."""
        a, g = self.as_read(a), self.as_read(g)
        walk = (*three(kernel_size, 1), *three(stride, 1), *three(padding, 0), *three(dilation, 1))
        numbers = (len(kernel_size), *walk, groups)
        args = layer_args(a, g, key, numbers, 1.0, self.shared_args(features, nnz))
        args["precision"] = self.precision(convolution=numbers[0] > 0)
        self.run("sketch_outer", features, args)

    def sketch_outer_many_(
        self,
        features: Tensor,
        a: list[Tensor],
        g: list[Tensor],
        keys: list[int],
        geometries: list[int],
        scales: list[float],
        nnz: int,
        sums: list[Tensor],
        summed: list[int],
    ) -> None:
        """Sketches of the weight gradients of several layers; ``geometries`` are their numbers, one after the other."""
        a, g = [self.as_read(x) for x in a], [self.as_read(x) for x in g]
        shared, layers = self.shared_args(features, nnz), []
        precisions = self.precision(), self.precision(convolution=True)
        for i, (x, y, key, scale) in enumerate(zip(a, g, keys, scales, strict=True)):
            numbers = tuple(geometries[i * _NUMBERS : (i + 1) * _NUMBERS])
            layers.append(layer_args(x, y, key, numbers, scale, shared))
            layers[-1]["precision"] = precisions[numbers[0] > 0]
        for i, into in zip(summed, sums, strict=True):
            layers[i] |= {"sums": into.data_ptr(), "sums_stride": into.stride(0)}
        self.run("sketch_outer_many", features, {"layers": layers})

    def as_read(self, x: Tensor) -> Tensor:
        """A layer's tensor, or a copy if the kernels could not read it. [*x.shape]"""
        return x if self.layers_of_any_strides else x.contiguous()

    def shared_args(self, features: Tensor, nnz: int) -> dict[str, Any]:
        """Fields of SketchOuterArgs that all layers have in common."""
        return {
            "features": features.data_ptr(),
            "num_groups": features.shape[0],
            "features_stride": features.stride(0),
            "proj_dim": features.shape[1],
            "nnz": nnz,
        }

    def norm_grads(self, x: Tensor, g: Tensor, groups: int, centered: bool, eps: float) -> Tensor:
        """Weight and bias gradients of a normalisation layer. [num_rows, 2, channels]"""
        x, g = x.contiguous(), g.contiguous()
        num_rows, (channels, positions) = x.shape[0], x.shape[1:] if groups else x.shape[:0:-1]
        grads = torch.empty(num_rows, 2, channels, dtype=torch.float32, device=x.device)
        args = {"x": x.data_ptr(), "g": g.data_ptr(), "grads": grads.data_ptr(), "dtype": _DTYPES[x.dtype]}
        args |= {"num_rows": num_rows, "channels": channels, "positions": positions}
        self.run("norm_grads", grads, args | {"groups": groups, "centered": centered, "eps": eps})
        return grads

    def accumulate_gram_(self, gram: Tensor, features: Tensor, block_size: int) -> None:
        """Upper triangle only, all samples at once, whatever ``block_size`` is."""
        features = with_contiguous_rows(features)
        args = {
            "features": features.data_ptr(),
            "gram": gram.data_ptr(),
            "dtype": _DTYPES[features.dtype],
            "precision": self.precision(),
            "num_samples": features.shape[0],
            "proj_dim": features.shape[1],
            "features_stride": features.stride(0),
            "gram_stride": gram.stride(0),
        }
        self.run("accumulate_gram", gram, args)

    def pack_rows(self, rows: Tensor, bits: int) -> tuple[Tensor, Tensor]:
        """Codes and scales, NaN of a row that is not finite. [num_rows, proj_dim * bits / 8], [num_rows]"""
        rows = self.with_vectors(rows)
        (num_rows, proj_dim), dtype = rows.shape, torch.int8 if bits == 8 else torch.uint8
        packed = torch.empty(num_rows, proj_dim * bits // 8, dtype=dtype, device=rows.device)
        scales = torch.empty(num_rows, dtype=torch.float32, device=rows.device)
        args = {"rows": rows.data_ptr(), "packed": packed.data_ptr(), "scales": scales.data_ptr(), "bits": bits}
        args |= {"num_rows": num_rows, "proj_dim": proj_dim, "rows_stride": rows.stride(0)}
        self.run("pack_rows", packed, args)
        return packed, scales

    def packed_products_(self, out: Tensor, queries: Tensor, packed: Tensor, scales: Tensor, bits: int) -> None:
        """Products of queries with packed rows."""
        queries, packed, scales = self.with_vectors(queries), self.with_vectors(packed), scales.contiguous()
        args = {
            "queries": queries.data_ptr(),
            "packed": packed.data_ptr(),
            "scales": scales.data_ptr(),
            "out": out.data_ptr(),
            "bits": bits,
            "num_queries": queries.shape[0],
            "num_rows": packed.shape[0],
            "proj_dim": queries.shape[1],
            "queries_stride": queries.stride(0),
            "packed_stride": packed.stride(0),
            "out_stride": out.stride(0),
        }
        self.run("packed_products", out, args)

    def with_vectors(self, rows: Tensor) -> Tensor:
        """The tensor, or a copy if the kernels could not read vectors of its rows. [*rows.shape]"""
        return with_contiguous_rows(rows)


def with_contiguous_rows(x: Tensor) -> Tensor:
    """The tensor, or a copy if it holds an item along the first dimension that is not contiguous. [*x.shape]"""
    return x if x.is_contiguous() or x[0:1].is_contiguous() else x.contiguous()


def sketch_args(features: Tensor, grads: Tensor, key: int, row_begin: int, nnz: int) -> dict[str, int]:
    """Fields of SketchArgs for gradients with contiguous rows."""
    batch, rows, cols = grads.shape
    return {
        "grads": grads.data_ptr(),
        "features": features.data_ptr(),
        "dtype": _DTYPES[grads.dtype],
        "batch": batch,
        "rows": rows,
        "cols": cols,
        "grads_batch_stride": grads.stride(0),
        "features_stride": features.stride(0),
        "row_begin": row_begin,
        "proj_dim": features.shape[1],
        "key": to_unsigned(key),
        "nnz": nnz,
    }


def layer_args(
    a: Tensor, g: Tensor, key: int, numbers: tuple[int, ...], scale: float, shared: dict[str, Any]
) -> dict[str, Any]:
    """Fields of SketchOuterArgs of a layer of a geometry (``ConvGeometry.numbers``)."""
    layout = _layer_layout(a.shape, a.stride(), g.shape, g.stride(), numbers, shared["num_groups"])
    pointers = {"a": a.data_ptr(), "g": g.data_ptr(), "dtype": _DTYPES[a.dtype]}
    return {**shared, **layout, **pointers, "key": to_unsigned(key), "scale": scale}


@lru_cache(maxsize=1 << 12)  # every pass asks for those of all layers
def _layer_layout(
    a_shape: tuple[int, ...],
    a_strides: tuple[int, ...],
    g_shape: tuple[int, ...],
    g_strides: tuple[int, ...],
    numbers: tuple[int, ...],
    num_groups: int,
) -> dict[str, Any]:
    """Fields of SketchOuterArgs that are the same in every pass. Not to be changed: it is kept."""
    dims = numbers[0]
    c_in, in_size, a_strides = _layout(a_shape, a_strides, dims)
    c_out, out_size, g_strides = _layout(g_shape, g_strides, dims)
    return {
        "channels_last": dims == 0,
        "a_strides": a_strides,
        "g_strides": g_strides,
        "rows_per_group": a_shape[0] // max(1, num_groups),
        "c_in": c_in,
        "c_out": c_out,
        "conv_groups": numbers[13],
        "in_size": in_size,
        "out_size": out_size,
        "kernel": numbers[1:4],
        "stride": numbers[4:7],
        "padding": numbers[7:10],
        "dilation": numbers[10:13],
        "sums": 0,
        "sums_stride": 0,
    }


def _layout(
    shape: tuple[int, ...], strides: tuple[int, ...], dims: int
) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """Channels of a layer's tensor, its size in three dimensions, and its strides of rows, channels, lines, columns."""
    if dims == 0:  # channels last, and one line of positions
        return shape[2], (1, 1, shape[1]), (strides[0], strides[2], 0, strides[1])
    return shape[1], three(shape[2:], 1), (*strides[:2], *(0, *strides[2:])[-2:])
