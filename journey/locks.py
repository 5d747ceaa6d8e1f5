"""One thread at a time for what changes a network for a while: its hooks, its weights, what requires a gradient."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from torch import nn

_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_making = threading.Lock()


@contextmanager
def exclusively(network: nn.Module) -> Iterator[None]:
    """Wait until no other thread is in such a block for the same network; the same thread may enter again.

    Args:
        network: The network.

    Yields:
        Nothing.
    """
    with _making:
        lock = _locks.setdefault(network, threading.RLock())
    with lock:
        yield


def _forget() -> None:
    """In a forked process the threads that held locks are gone."""
    global _making
    _making = threading.Lock()
    _locks.clear()


os.register_at_fork(after_in_child=_forget)
