"""The size of every layer's gradient, and the layer in which a fault begins.

Features are sums over layers and no longer tell one from another. So the gradients of a few images are gauged before
they are projected, and after a fault the image is looked at again, draw by draw.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from journey.gradients.engine import GradientEngine, RowValues
from journey.gradients.rows import gradient_tiles
from journey.gradients.rules import Contribution
from journey.projectors.base import ParameterSlot


class LayerSizes(NamedTuple):
    """How large the gradients of each layer are; a layer is a module with measured parameters of its own.

    Attributes:
        layers: Names of the layers, in the order of their parameters.
        norms: Norm of each gradient, float32. [num_groups, num_layers]
        largest: Its largest entry in size, float32; NaN if any entry is. [num_groups, num_layers]
    """

    layers: list[str]
    norms: Tensor
    largest: Tensor


class Fault(NamedTuple):
    """Where a number first is NaN or infinite.

    Attributes:
        row: Which row of the batch.
        layer: Name of the layer.
        part: What of it: ``"input"`` or ``"output"`` in the forward pass, or ``"gradient"``.
    """

    row: int
    layer: str
    part: str


def layer_names(engine: GradientEngine) -> list[str]:
    """Return the names of the measured layers, in the order of their parameters."""
    return list(dict.fromkeys(map(_layer_of, engine.slots)))


def _layer_of(parameter: str) -> str:
    return parameter.rpartition(".")[0] or parameter


def gauge_layers(engine: GradientEngine, values: RowValues, *, num_rows: int, num_groups: int) -> LayerSizes:
    """Measure the gradient of each layer for every group of rows, exactly: nothing is projected.

    Memory: as for projecting the gradients; besides, of layers that are called several times in one forward pass their
    inputs and output gradients, and the gradient of one of their weights for every group.

    Args:
        engine: The model's gradients.
        values: As for ``GradientEngine.add_gradients_``.
        num_rows: Rows of the batch.
        num_groups: Groups of consecutive rows; the gradient of each is that of its mean value.

    Returns:
        The sizes, on the model's device.
    """
    layers = layer_names(engine)
    column = {name: layers.index(_layer_of(name)) for name in engine.slots}
    device = next(engine.model.parameters()).device
    # In float64, because the squares of small float32 numbers vanish.
    squares = torch.zeros(num_groups, len(layers), dtype=torch.float64, device=device)
    largest = torch.zeros(num_groups, len(layers), device=device, dtype=torch.float32)

    def gauge(slot: ParameterSlot, contributions: list[Contribution]) -> None:
        for tile, begin, _ in gradient_tiles(slot, contributions, num_groups):
            here = slice(begin, begin + len(tile)), column[slot.name]
            squares[here] += torch.linalg.vector_norm(tile, dim=(1, 2), dtype=torch.float64).square()
            largest[here] = torch.maximum(largest[here], tile.abs().amax((1, 2)).float())

    engine.for_each_parameter(values, num_rows=num_rows, num_groups=num_groups, receive=gauge)
    return LayerSizes(layers, squares.sqrt().float(), largest)


def find_fault(engine: GradientEngine, values: RowValues, rows: range) -> Fault | None:
    """Find the first number that is NaN or infinite: in the forward pass, else in the backward pass.

    Args:
        engine: The model's gradients.
        values: As for ``GradientEngine.add_gradients_``.
        rows: Which rows of the batch to look at, one after the other.

    Returns:
        The fault of the first row that has one; None if each row is finite by itself.
    """
    for row in rows:
        trace = _Trace()

        def alone(part: slice, row: int = row) -> Tensor:
            return values(slice(row + part.start, row + part.stop))

        handles = [
            hook
            for name, module in engine.model.named_modules()
            if not any(True for _ in module.children())
            for hook in trace.watch(name, module)
        ]
        try:
            sizes = gauge_layers(engine, alone, num_rows=1, num_groups=1)
        finally:
            for handle in handles:
                handle.remove()
        if trace.first is not None:
            return Fault(row, *trace.first)
        finite = torch.isfinite(sizes.largest[0]).tolist()
        broken = {layer for layer, sound in zip(sizes.layers, finite, strict=True) if not sound}
        if broken:
            # The backward pass meets first what the forward pass called last.
            called = [name for name in reversed(trace.order) if name in broken]
            return Fault(row, (called or sorted(broken))[0], "gradient")
    return None


class _Trace:
    """Remembers which layers were called, and the first input or output that is not finite."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.first: tuple[str, str] | None = None

    def watch(self, name: str, module: nn.Module) -> list[Any]:
        """Hook a module; returns the handles."""

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.order.append(name)
            self._look(name, "input", (*args, *kwargs.values()))

        def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._look(name, "output", output if isinstance(output, tuple) else (output,))

        return [module.register_forward_pre_hook(before, with_kwargs=True), module.register_forward_hook(after)]

    def _look(self, name: str, part: str, found: tuple[Any, ...]) -> None:
        tensors = [x for x in found if isinstance(x, Tensor) and x.is_floating_point()]
        if self.first is None and not all(bool(torch.isfinite(x).all()) for x in tensors):
            self.first = (name, part)
