"""Which rows (draws of images) go through a network at once, and how many where memory is short."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from journey.errors import CoverageError
from journey.files.fingerprint import plain_parts
from journey.gradients.engine import RowValues
from journey.gradients.memory import default_budget, is_out_of_memory
from journey.gradients.rules import find_rule
from journey.locks import exclusively

# What autograd may keep for the backward pass of one batch where nobody says how many rows it has; the pass itself
# takes about a third more. The same on every machine, so that batches are too; a GPU has room for more, or for less.
_KEPT_BYTES = 4 << 30

_T = TypeVar("_T")


class RowBudget:
    """How many rows go through a network at once: as many as its owner says, or as memory is for.

    Where nobody says, they keep 4 GiB for the backward pass, on CUDA half of the memory that is free at first.

    Args:
        network: The network.
        most: Rows at most, at least one; None leaves it to the network's needs.
    """

    def __init__(self, network: nn.Module, most: int | None = None) -> None:
        self.network = network
        self.most = most
        self._by_shape: dict[tuple[int, ...], int] = {}

    def run(self, work: Callable[[int], _T], values: RowValues, num_rows: int, shape: tuple[int, ...]) -> _T:
        """Do work on rows, again with half as many at once when memory runs out, which then holds for all that follows.

        Args:
            work: Takes how many rows may go through the network at once.
            values: Runs the network on some of the rows, differentiably.
            num_rows: How many there are.
            shape: That of an image, for which what the network needs is asked once.

        Returns:
            What the work returns.
        """
        rows = min(self.at_once(values, shape), num_rows)
        while True:
            try:
                return work(rows)
            except Exception as error:
                if rows == 1 or not is_out_of_memory(error):
                    raise
                text = str(error)
            # Out here the tensors of the failed pass are freed.
            self.most = rows // 2
            warnings.warn(f"memory ran out with {rows} draws at once; going on with {self.most}: {text}", stacklevel=3)
            rows = self.most

    def at_once(self, values: RowValues, shape: tuple[int, ...]) -> int:
        """Return how many rows may go through at once, of images of a shape."""
        return self.most or self._by_need(values, shape)

    def _by_need(self, values: RowValues, shape: tuple[int, ...]) -> int:
        if shape not in self._by_shape:
            kept = kept_bytes(self.network, lambda: values(slice(0, 1)))
            self._by_shape[shape] = max(1, self._bytes() // max(1, kept))
        return self._by_shape[shape]

    def _bytes(self) -> int:
        device = next((p.device for p in self.network.parameters()), torch.device("cpu"))
        return default_budget(device) if device.type == "cuda" else _KEPT_BYTES


def split_rows(num_groups: int, rows_per_group: int, most: int) -> Iterator[slice]:
    """Yield slices of rows that hold several whole groups each, or else a part of one group.

    Args:
        num_groups: Groups of consecutive rows.
        rows_per_group: Rows of each.
        most: Rows of a slice at most.

    Yields:
        The slices, in order; together they hold every row once.
    """
    unit, size = num_groups * rows_per_group, most // rows_per_group * rows_per_group
    if size == 0:
        unit, size = rows_per_group, most
    for begin in range(0, num_groups * rows_per_group, unit):
        for first in range(begin, begin + unit, size):
            yield slice(first, min(first + size, begin + unit))


def groups_of(part: slice, rows_per_group: int) -> int:
    """Return how many groups the rows of such a slice belong to."""
    num_rows: int = part.stop - part.start
    return max(1, num_rows // rows_per_group)


def shifted(values: RowValues, part: slice) -> RowValues:
    """Return the values of the rows of a part, which count from its begin."""
    return lambda rows: values(slice(part.start + rows.start, part.start + rows.stop))


def kept_bytes(network: nn.Module, run: Callable[[], object]) -> int:
    """Return how many bytes are kept for the backward pass of a run, without the network's own tensors.

    By autograd, and by the hooks on layers with trainable parameters, which hold the layers' inputs. They are mostly
    the same tensors; under gradient checkpointing autograd keeps few and the hooks all.

    Args:
        network: The network.
        run: Runs it; what it returns holds the graph.

    Returns:
        The bytes.

    Raises:
        CoverageError: If a layer runs inside ``torch.vmap``.
    """
    tensors = (*network.parameters(), *network.buffers())
    own = {part.untyped_storage().data_ptr() for x in tensors for _, part in plain_parts(x)}
    kept: dict[int, int] = {}

    def count(x: Tensor) -> None:
        for _, part in plain_parts(x):
            if torch._C._functorch.is_batchedtensor(part):
                raise CoverageError(
                    "layers of the network must be called with the whole batch, got one inside torch.vmap, where rows "
                    "cannot be told apart; call it without vmap"
                )
            storage = part.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()

    def keep(x: Tensor) -> Tensor:
        count(x)
        return x.detach()

    def hold(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        x = args[0] if args else next(iter(kwargs.values()))
        count(x)
        inputs.append(x.detach())

    inputs: list[Tensor] = []
    trained = [m for m in network.modules() if any(p.requires_grad for p in m.parameters(recurse=False))]
    handles = [m.register_forward_hook(hold, with_kwargs=True) for m in trained if find_rule(m) is not None]
    try:
        with exclusively(network), torch.enable_grad(), saved_tensors_hooks(keep, lambda x: x):
            graph = run()  # held, as inputs are: what is kept must not be freed and its address taken again
    finally:
        for handle in handles:
            handle.remove()
    del graph
    # Of parameters by themselves each row gets one of its own (``journey.gradients.per_row``), and a gradient.
    own_of_rows = [p for m in trained if find_rule(m) is None for p in m.parameters(recurse=False) if p.requires_grad]
    return sum(kept.values()) + sum(p.nbytes for p in own_of_rows)
