"""No two threads of a CUDA kernel meet in memory without a barrier between them, whatever the schedule."""

from __future__ import annotations

import shutil

import pytest
from cuda_emulation import emulated
from cuda_emulation.exercise import EXERCISES


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory):
    """The emulated kernels, compiled for the race detector."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++")
    return emulated.build(compiler, tmp_path_factory.mktemp("cuda_races"), races=True)


@pytest.mark.parametrize("order", emulated.ORDERS)
@pytest.mark.parametrize("missing", ["before_reading", "before_writing"])
def test_a_missing_barrier_is_a_race_in_every_schedule(kernels, order, missing):
    before = kernels.races
    kernels.exchange(order)
    assert kernels.races == before
    kernels.exchange(order, **{missing: False})
    assert kernels.races > before


@pytest.mark.parametrize("name", EXERCISES)
def test_kernels_have_no_races(kernels, name):
    races, accesses = kernels.races, kernels.accesses
    EXERCISES[name](kernels)
    assert kernels.races == races
    assert kernels.accesses > accesses + 1000  # it looked
