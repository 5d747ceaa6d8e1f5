"""Weights that are stored in fewer bits than their layers compute in: what of them can be differentiated."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

_COMPUTED_IN = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


# Under this name diffusers' layerwise casting is among a module's hooks.
_CASTING = "layerwise_casting"


def is_computed_in(name: str, parameter: nn.Parameter, model: nn.Module) -> bool:
    """Whether layers compute with a parameter as it is, or diffusers casts it before they do (layerwise casting)."""
    return parameter.dtype in _COMPUTED_IN or _casting(_owner(model, name)) is not None


def modules_of(model: nn.Module) -> list[nn.Module]:
    """Return a model and all modules in it: ``model.modules()`` in another order, in a tenth of its time."""
    found, waiting = {model: None}, [model]
    while waiting:
        for module in waiting.pop()._modules.values():
            if module is not None and module not in found:
                found[module] = None
                waiting.append(module)
    return list(found)


@contextmanager
def weights_as_computed(
    model: nn.Module, modules: Collection[nn.Module], differentiated: Collection[str] = ()
) -> Iterator[None]:
    """Let the backward pass find weights as the forward pass had them, where layerwise casting stores them again since.

    Args:
        model: The model.
        modules: It and all in it.
        differentiated: Names of the parameters that autograd is asked for; it loses sight of those that change their
            dtype, so that they stay as their layers compute with them.

    Yields:
        Nothing.
    """
    if all(_casting(module) is None for module in modules):
        yield
        return

    def pack(x: Tensor) -> tuple[Tensor, torch.dtype, int | None]:
        # Only a parameter changes its dtype; kept itself, it takes no memory until it is cast again.
        return (x, x.dtype, None) if isinstance(x, nn.Parameter) else (x.detach(), x.dtype, x._version)

    def unpack(kept: tuple[Tensor, torch.dtype, int | None]) -> Tensor:
        x, dtype, version = kept
        if version is not None and x._version != version:
            raise RuntimeError("a tensor that the backward pass needs was modified in place since the forward pass")
        return x if x.dtype == dtype else x.detach().to(dtype)

    held = [(owner, hook) for owner in {_owner(model, name) for name in differentiated} if (hook := _casting(owner))]
    stored = [hook.storage_dtype for _, hook in held]
    try:
        for owner, hook in held:
            hook.storage_dtype = hook.compute_dtype
            owner.to(hook.compute_dtype)
        with saved_tensors_hooks(pack, unpack):
            yield
    finally:
        for (owner, hook), dtype in zip(held, stored, strict=True):
            hook.storage_dtype = dtype
            owner.to(dtype)


def _owner(model: nn.Module, name: str) -> nn.Module:
    """The module that has a parameter of that name."""
    return model.get_submodule(name.rpartition(".")[0])


def _casting(module: nn.Module) -> Any:
    """The hook by which diffusers casts a module's weights around its call; None without."""
    registry = vars(module).get("_diffusers_hook")
    return None if registry is None else registry.get_hook(_CASTING)
