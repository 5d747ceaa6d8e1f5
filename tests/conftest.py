"""What every test runs under: two threads, repeatable property tests, and no device tests without a device."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # bench is not installed

# Waiting threads sleep instead of spinning: on a busy machine the tests take a quarter of the time.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch
from hypothesis import settings

# Property tests call compiled code whose first run on an input size may be slow, so a deadline would be a timed test.
settings.register_profile("default", deadline=None, max_examples=30)
settings.register_profile("ci", parent=settings.get_profile("default"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_configure() -> None:
    """Use two threads, so that results that depend on a split into threads show, and fits of few pseudo-gradients."""
    torch.set_num_threads(2)
    from journey.features import fit

    fit._MOST = 256  # sixteen times as many make every test that featurizes seconds longer


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``cuda`` where there is no device."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(skip)


@pytest.fixture
def threads() -> object:
    """A function that sets torch's thread count, undone after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
