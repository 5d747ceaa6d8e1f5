"""Hands on each layer, its input and the gradient of its output while a model is differentiated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from journey.errors import CoverageError, InPlaceError
from journey.gradients.per_row import PerRow


class UnservedLayer(CoverageError):  # noqa: N818 caught, or raised as what it is
    """A layer whose input does not have the batch as its first dimension, so that it cannot be served.

    Args:
        layer: The layer.
        message: As for any error.
    """

    def __init__(self, layer: nn.Module, message: str) -> None:
        super().__init__(message)
        self.layer = layer


@contextmanager
def captured(
    model: nn.Module,
    layers: Collection[nn.Module],
    num_rows: int,
    receive: Callable[[nn.Module, Tensor, Tensor], None],
) -> Iterator[Counter[nn.Module]]:
    """Hand each layer, its input and its output gradient on during the backward pass, once for each of its calls.

    Args:
        model: Names the layers in errors.
        layers: Which of its modules.
        num_rows: Rows of the batch, the first dimension of every input.
        receive: Takes a layer, its input and the gradient of its output.

    Yields:
        How many calls of each layer may still be handed on, the present one excluded. A call without a graph counts to
        the end, for checkpointing repeats it on the way back; so does one whose output has no gradient.

    Raises:
        RuntimeError: If a layer runs under ``torch.autocast``.
        UnservedLayer: If a layer's input does not have ``num_rows`` as its first dimension.
        InPlaceError: If a layer's input was modified between forward and backward.
    """
    waiting: Counter[nn.Module] = Counter()

    def name_of(layer: nn.Module) -> str:
        names: dict[nn.Module, str] = {module: name for name, module in model.named_modules()}
        return names[layer]

    def capture(module: nn.Module, forward: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        output = forward(*args, **kwargs)
        waiting[module] += 1
        if not torch.is_grad_enabled():
            return output
        x = args[0] if args else next(iter(kwargs.values()))
        casts = output.dtype != x.dtype and x.is_floating_point()
        if casts or torch.is_autocast_enabled(x.device.type):
            raise RuntimeError(
                f"layer {name_of(module)!r} runs under torch.autocast within the network, so that it differs in dtype "
                f"from its weights, got {x.dtype} in and {output.dtype} out. Take the autocast off (a decorated "
                "forward: network.forward = network.forward.__wrapped__; accelerate: unwrap_model(network, "
                "keep_fp32_wrapper=False)), and convert the model instead, as with model.to(torch.bfloat16)"
            )
        if isinstance(x, PerRow) or x.dim() == 0 or x.shape[0] != num_rows:
            raise UnservedLayer(
                module,
                f"layer {name_of(module)!r} got an input of shape {list(x.shape)} in a batch of {num_rows} rows: its "
                "first dimension must be the batch for per-sample gradients. Leave its parameters out with "
                'select=..., or measure them with uncovered="autograd" (one forward and backward pass per sample)',
            )
        if not output.requires_grad:
            # Nothing before this layer requires a gradient: the graph of this branch begins here. The clone makes
            # the output an ordinary tensor that may be modified in place.
            output = output.detach().requires_grad_().clone()
        # Given up when used: the hook itself lives until the whole graph is freed. Detached, it still shares the
        # version counter.
        kept = [x.detach()]
        version = x._version

        def hand_on(g: Tensor) -> None:
            x = kept.pop()
            if x._version != version:
                raise InPlaceError(
                    f"the input of layer {name_of(module)!r} was modified in place between forward and backward; its "
                    "gradient would be wrong. Use the out-of-place form of the operation that follows the layer"
                )
            waiting[module] -= 1
            receive(module, x, g)

        output.register_hook(hand_on)
        return output

    # In place of forward hooks, with which torch calls a module by a longer way, and which cost more to register.
    before = [vars(module).get("forward") for module in layers]
    try:
        for module in layers:
            vars(module)["forward"] = partial(capture, module, module.forward)
        yield waiting
    finally:
        for module, own in zip(layers, before, strict=True):
            if own is None:
                vars(module).pop("forward", None)
            else:
                vars(module)["forward"] = own
