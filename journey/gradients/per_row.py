"""Parameters that a network uses by itself, outside any layer with a rule: each row of a batch gets one of its own.

Tables, register tokens, learned positions and scales enter by broadcasting, wherever the network's code wants them. So
for a pass the code finds in a parameter's place a value that is another for every row, though equal in all of them:
operations on it alone are done for every row at once, and where it meets the batch, each row meets its own. Its
gradient then is that of every row, as autograd has it, with no rule for what the code does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from journey.errors import CoverageError
from journey.gradients.memory import is_out_of_memory
from journey.gradients.names import name_some

# These take no values from their second tensor.
_LIKE = (Tensor.to, Tensor.type_as)

# These make a tensor of their own, of the same kind.
_NEW = (Tensor.new_empty, Tensor.new_full, Tensor.new_ones, Tensor.new_tensor, Tensor.new_zeros)

# These make a batch of one value, if they are told the number of its rows.
_REPEATED = (Tensor.expand, Tensor.repeat, torch.broadcast_to, Tensor.tile, torch.tile)


class UnservedParameters(CoverageError):  # noqa: N818 caught, or raised as what it is
    """Parameters that meet the batch in a way that does not tell its rows apart.

    Args:
        names: Of the parameters.
        why: In what way.
    """

    def __init__(self, names: frozenset[str], why: str) -> None:
        super().__init__(
            f"no gradient rule for {name_some(sorted(names))}, and {why}. Leave them out with select=..., or measure "
            'them with uncovered="autograd" (one forward and backward pass per sample)'
        )
        self.names = names


class Meetings:
    """Which arguments of the operations on parameters are batches, pass by pass.

    A table may happen to have as many rows as a batch. It does not in batches of another size, for which the same
    operations are done, counted for each parameter; what was no batch once is none again. In the very first pass the
    check finds it.
    """

    def __init__(self) -> None:
        self._seen: dict[tuple[frozenset[str], int, str, int], tuple[list[bool], list[bool]]] = {}
        self._done: Counter[frozenset[str]] = Counter()
        self._own: set[int] = set()
        self.num_rows = 0

    def begin(self, model: nn.Module, num_rows: int) -> None:
        """Begin a pass of so many rows; what the model owns is no batch."""
        self._done, self.num_rows = Counter(), num_rows
        self._own = {id(x) for x in (*model.parameters(), *model.buffers())}

    def batches(self, names: frozenset[str], func: Callable[..., Any], flat: list[Any]) -> list[int]:
        """Return which arguments of the next operation are batches, or numbers of rows for one to make.

        Args:
            names: The parameters that take part.
            func: The operation.
            flat: Its arguments.

        Returns:
            Their positions.

        Raises:
            ValueError: If the rows of an argument are not its first dimension.
        """
        free = [] if func in _LIKE else [x for x in flat if self._is_free(x)]
        found = [any(x is other for other in free) and x.shape[0] == self.num_rows for x in flat]
        sizes = [i for i, x in enumerate(flat) if type(x) is int and x == self.num_rows] if func in _REPEATED else []
        found = [batch or i in sizes[:1] for i, batch in enumerate(found)]
        elsewhere = [any(x is other for other in free) and self.num_rows in x.shape[1:] for x in flat]
        key = names, self._done[names], func.__name__, len(flat)
        was_batch, was_elsewhere = self._seen.get(key, (found, elsewhere))
        found = [now and then for now, then in zip(found, was_batch, strict=True)]
        elsewhere = [now and then for now, then in zip(elsewhere, was_elsewhere, strict=True)]
        self._seen[key] = found, elsewhere
        self._done[names] += 1
        strays = [_requires_grad(x) or other for x, other in zip(flat, elsewhere, strict=True)]
        if any(stray and not batch for stray, batch in zip(strays, found, strict=True)):
            raise ValueError("it finds the batch elsewhere than in the first dimension")
        return [i for i, batch in enumerate(found) if batch]

    def _is_free(self, x: Any) -> bool:
        """Whether a tensor may be a batch."""
        return isinstance(x, Tensor) and not isinstance(x, PerRow) and x.dim() > 0 and id(x) not in self._own


class PerRow(Tensor):
    """A value that is another for every row of a batch; to the network's code it looks like one of them.

    Attributes:
        rows: The values. [num_rows, *shape]
        names: The parameters that they are made of.
        meetings: What is known of the batch.
    """

    rows: Tensor
    names: frozenset[str]
    meetings: Meetings

    @staticmethod
    def of(rows: Tensor, names: frozenset[str], meetings: Meetings) -> PerRow:
        """Return the value of some rows. [num_rows, *shape] -> [*shape]"""
        value: PerRow = Tensor._make_subclass(PerRow, rows.detach()[0], rows.requires_grad)
        value.rows, value.names, value.meetings = rows, names, meetings
        if rows.requires_grad:

            def refuse(_: Tensor) -> None:
                raise UnservedParameters(names, "an operation of the network's own uses them past torch's functions")

            with torch._C.DisableTorchFunctionSubclass():
                value.register_hook(refuse)
        return value

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Do an operation for every row; where a batch takes part in it, the result is a batch."""
        flat, spec = tree_flatten((args, kwargs or {}))
        own = [x for x in flat if isinstance(x, PerRow)]
        names, meetings = frozenset[str]().union(*(x.names for x in own)), own[0].meetings
        with torch._C.DisableTorchFunctionSubclass():
            if not all(x.is_leaf for x in own):  # made by a torch.autograd.Function, in which rows get no gradient
                raise UnservedParameters(names, "an autograd.Function uses them")
        if func in _NEW or (func in _LIKE and not isinstance(flat[0], PerRow)):
            args, kwargs = tree_unflatten([_plain(x) for x in flat], spec)
            return func(*args, **kwargs)
        if func in _LIKE:
            flat[1:] = [x.detach() if isinstance(x, Tensor) else x for x in flat[1:]]
        try:
            batches = meetings.batches(names, func, flat)
            flat = [1 if i in batches and type(x) is int else x for i, x in enumerate(flat)]
            places = [
                i for i, x in enumerate(flat) if isinstance(x, PerRow) or (isinstance(x, Tensor) and i in batches)
            ]
            found, made, spec = _for_every_row(func, flat, spec, places)
            if batches and any(isinstance(x, Tensor) and (x.dim() == 0 or x.shape[0] != 1) for x in found):
                raise ValueError("it does not keep the batch as its first dimension")
        except (RuntimeError, ValueError) as error:
            if is_out_of_memory(error):
                raise
            raise UnservedParameters(names, f"{func.__name__} cannot be done row by row: {error}") from error
        for i, rows in made.items():
            found[i] = rows.flatten(0, 1) if batches else PerRow.of(rows, names, meetings)
        return tree_unflatten(found, spec)


def _for_every_row(
    func: Callable[..., Any], flat: list[Any], spec: TreeSpec, places: list[int]
) -> tuple[list[Any], dict[int, Tensor], TreeSpec]:
    """Do an operation for every row.

    Args:
        func: The operation.
        flat: Its arguments.
        spec: How they are nested.
        places: Which of them have rows: a value for every row, or a batch, whose rows come as batches of one.

    Returns:
        What it gives for one row; those of them that are tensors, for all rows [num_rows, ...]; how it is nested.
    """
    told: list[Any] = []

    def once(*parts: Tensor) -> tuple[Tensor, ...]:
        one = list(flat)
        for i, part in zip(places, parts, strict=True):
            one[i] = part
        args, kwargs = tree_unflatten(one, spec)
        told[:] = tree_flatten(func(*args, **kwargs))
        # The last, for operations that give no tensor.
        return (*(x for x in told[0] if isinstance(x, Tensor)), parts[0])

    parts = [flat[i].rows if isinstance(flat[i], PerRow) else flat[i].unsqueeze(1) for i in places]
    # The other kernels of attention have no gradient of a mask here.
    attends = func is F.scaled_dot_product_attention
    plain: AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH) if attends else nullcontext()
    with torch._C.DisableTorchFunctionSubclass(), plain:
        results = torch.vmap(once)(*parts)
        tensors = [i for i, x in enumerate(told[0]) if isinstance(x, Tensor)]
        return told[0], dict(zip(tensors, results[:-1], strict=True)), told[1]


@contextmanager
def expanded(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    meetings: Meetings,
    num_rows: int,
    receive: Callable[[str, Tensor], None],
) -> Iterator[None]:
    """Let a model's code find a value for every row in the place of some parameters, and hand on their gradients.

    Args:
        model: The model.
        parameters: Which of its parameters, by name.
        meetings: What earlier passes of the same parameters learned.
        num_rows: Rows of the batch.
        receive: Takes a parameter's name and its gradient for every row [num_rows, *shape], during the backward pass.

    Yields:
        Nothing.
    """
    if not parameters:
        yield
        return
    meetings.begin(model, num_rows)
    values = {id(p): _value(name, p, meetings, receive) for name, p in parameters.items()}
    held = [
        (vars(module), name, values[id(p)])
        for module in model.modules()
        for name, p in module._parameters.items()
        if id(p) in values
    ]
    try:
        for own, name, value in held:
            own[name] = value  # found before the module's parameters are looked at
        with _functions_uncompiled():
            yield
    finally:
        for own, name, _ in held:
            own.pop(name, None)


def _functions_uncompiled() -> AbstractContextManager[None]:
    """Let functions that a network compiles run as they are written, for their compiler cannot look into values."""
    # Older versions of torch have no such switch.
    stance = getattr(torch.compiler, "set_stance", None)
    return nullcontext() if stance is None else stance("force_eager")


def _value(name: str, parameter: nn.Parameter, meetings: Meetings, receive: Callable[[str, Tensor], None]) -> Tensor:
    """What stands for a parameter; of a single row that is as good as itself."""
    rows = parameter.detach().expand(meetings.num_rows, *parameter.shape).requires_grad_()

    def hand_on(rows: Tensor) -> None:
        assert rows.grad is not None
        grad, rows.grad = rows.grad, None
        receive(name, grad)

    rows.register_post_accumulate_grad_hook(hand_on)
    return rows[0] if meetings.num_rows == 1 else PerRow.of(rows, frozenset([name]), meetings)


def _requires_grad(x: Any) -> bool:
    """Whether a tensor comes from the batch."""
    return isinstance(x, Tensor) and not isinstance(x, PerRow) and x.requires_grad


def _plain(x: Any) -> Any:
    """The value that one row has, without its gradient."""
    return x.rows.detach()[0] if isinstance(x, PerRow) else x
