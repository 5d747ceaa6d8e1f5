"""One visitor at a time with the network, and an end before the end for who no longer wants to wait."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from journey.locks import exclusively


class CancelledError(RuntimeError):
    """The work was given up because its visitor asked for that."""


@contextmanager
def turn(network: nn.Module, stop: threading.Event) -> Iterator[None]:
    """Wait for the network, and work with it until the block ends or ``stop`` is set.

    Args:
        network: The network; others who take a turn with it wait meanwhile.
        stop: Ends the work before the network's next pass, from any thread.

    Yields:
        Nothing.

    Raises:
        CancelledError: If ``stop`` was set.
    """

    def refuse(*_: Any) -> None:
        if stop.is_set():
            raise CancelledError("cancelled")

    with exclusively(network):
        refuse()
        handle = network.register_forward_pre_hook(refuse)
        try:
            yield
        finally:
            handle.remove()
