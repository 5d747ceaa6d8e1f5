"""Which layers the gradients of a few training images are made of, and which of them are at fault."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from journey.features.layer_sizes import read_sizes
from journey.store.store import FeatureStore

_DOMINANT = 0.9  # share of one layer in the squared norms of which a warning tells
_SHOWN = 12  # layers in the table: the largest, and those with faults
_NAMED = 5  # layers in a warning


@dataclass(frozen=True)
class LayerHealth:
    """The gradients of one layer in the sampled images, one row for each image and bin.

    Attributes:
        name: The layer, a module with measured parameters of its own.
        share: Its part of the squared norms of all layers, bins weighted as in the whole range.
        norms: Median norm in each bin, over the finite rows; None where there is none.
        nan_rows: Images in each bin whose gradient has a NaN.
        inf_rows: Images whose gradient is infinite, without a NaN.
        zero_rows: Images whose gradient is zero in every entry.
        subnormal_rows: Images whose largest entry is below the smallest normal float32: digits were lost.
    """

    name: str
    share: float
    norms: list[float | None]
    nan_rows: list[int]
    inf_rows: list[int]
    zero_rows: list[int]
    subnormal_rows: list[int]

    @property
    def num_faults(self) -> int:
        """Rows of any fault."""
        return sum(map(sum, (self.nan_rows, self.inf_rows, self.zero_rows, self.subnormal_rows)))


@dataclass(frozen=True)
class LayersHealth:
    """The layers under one checkpoint.

    Attributes:
        num_images: Training images that were looked at, evenly spread.
        layers: In the order of their parameters.
    """

    num_images: int
    layers: list[LayerHealth]

    def lines(self) -> list[str]:
        """Return a text table of the largest layers and of those with faults."""
        ranked = sorted(self.layers, key=lambda layer: -layer.share)
        shown = ranked[:_SHOWN] + [layer for layer in ranked[_SHOWN:] if layer.num_faults][:_SHOWN]
        width = max(len("layer"), *(len(layer.name) for layer in shown))
        lines = [
            f"  layers, from {self.num_images} of the images",
            f"  {'layer':<{width}}   share  median norm    NaN    Inf   zero  subnormal",
        ]
        for layer in shown:
            faults = (layer.nan_rows, layer.inf_rows, layer.zero_rows, layer.subnormal_rows)
            nan, inf, zero, subnormal = map(sum, faults)
            norms = sorted(norm for norm in layer.norms if norm is not None)
            norm = norms[len(norms) // 2] if norms else math.nan
            lines.append(
                f"  {layer.name:<{width}} {layer.share:>7.1%} {norm:>12.3g} {nan:>6} {inf:>6} {zero:>6} {subnormal:>10}"
            )
        if len(shown) < len(self.layers):
            rest = sum(layer.share for layer in self.layers) - sum(layer.share for layer in shown)
            lines.append(f"  and {len(self.layers) - len(shown)} more with {max(0.0, rest):.1%} together")
        return lines

    def warnings(self, checkpoint: str) -> list[str]:
        """Return what deserves attention, in plain words.

        Args:
            checkpoint: What the checkpoint is called.
        """
        found = []
        for kind, words in (
            ("nan_rows", "NaN for {} of {} rows of images and bins: their scores mean nothing"),
            ("inf_rows", "infinite for {} of {} rows of images and bins: their scores mean nothing"),
            ("subnormal_rows", "too small for float32 for {} of {} rows of images and bins: digits were lost"),
        ):
            for layer in self.layers:
                count = sum(getattr(layer, kind))
                if count:
                    told = words.format(count, self.num_images * len(layer.norms))
                    found.append(f"checkpoint {checkpoint}, layer {layer.name}: the gradient is {told}")
        silent = [layer.name for layer in self.layers if min(layer.zero_rows) == self.num_images]
        if silent:
            found.append(
                f"checkpoint {checkpoint}, layers {_some(silent)}: the gradient is zero for every image; they may be "
                "unused or behind a gate that is zero, and tell no images apart"
            )
        largest = max(self.layers, key=lambda layer: layer.share)
        if len(self.layers) > 1 and largest.share > _DOMINANT:
            found.append(
                f"checkpoint {checkpoint}, layer {largest.name}: makes up {largest.share:.0%} of the squared gradient; "
                "scores are about this layer, leave it out with select=... to hear the others"
            )
        return found


def inspect_layers(store: FeatureStore, checkpoint: str, weights: Tensor) -> LayersHealth | None:
    """Summarize the layers of the sampled images.

    Args:
        store: The features.
        checkpoint: Name of the checkpoint.
        weights: Share of the timesteps in each bin, float64. [bins]

    Returns:
        The layers; None if the store has no sizes of them.

    Raises:
        CorruptShardError: If a file was damaged or belongs to another run.
    """
    found = read_sizes(store, checkpoint)
    if found is None:
        return None
    ids, (names, norms, largest) = found  # [num_images, bins, num_layers]
    finite = largest.isfinite()
    squares = torch.where(finite, norms.double() * weights[:, None], 0.0).square().sum((0, 1))
    shares = (squares / squares.sum().clamp(min=torch.finfo(torch.float64).tiny)).tolist()
    medians = [
        [None if math.isnan(norm) else norm for norm in row]
        for row in torch.where(finite, norms, torch.nan).nanmedian(0).values.T.tolist()
    ]
    faults = (
        largest.isnan(),
        largest.isinf(),
        largest == 0,
        (largest > 0) & (largest < torch.finfo(torch.float32).tiny),
    )
    counts = [kind.sum(0).T.tolist() for kind in faults]
    layers = [LayerHealth(*row) for row in zip(names, shares, medians, *counts, strict=True)]
    return LayersHealth(len(ids), layers)


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more"
