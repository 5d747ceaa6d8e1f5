"""A network without its adapter, for a while: what the base knew before it was trained on the images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from journey.locks import exclusively


def has_adapter(network: nn.Module) -> bool:
    """Return whether a network has an adapter that can be taken off, as peft makes them."""
    return bool(getattr(network, "peft_config", None)) and hasattr(network, "disable_adapters")


@contextmanager
def without_adapter(network: nn.Module) -> Iterator[None]:
    """Let a network compute without its adapter for a while.

    Args:
        network: The network; one that has no adapter stays as it is.

    Yields:
        Nothing.
    """
    if not has_adapter(network):
        yield
        return
    untyped: Any = network
    with exclusively(network):
        untyped.disable_adapters()
        try:
            yield
        finally:
            untyped.enable_adapters()
