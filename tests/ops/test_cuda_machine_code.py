"""The reader of machine code, on an excerpt that the compiler wrote: .ci/machine_code itself needs nvcc."""

from __future__ import annotations

import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXCERPT = Path(__file__).parent / "cuda_emulation" / "example.sass"


@pytest.fixture(scope="module")
def gate():
    """The script as a module."""
    loader = SourceFileLoader("machine_code", str(ROOT / ".ci" / "machine_code"))
    module = module_from_spec(spec_from_loader("machine_code", loader))
    sys.modules["machine_code"] = module  # dataclasses look themselves up
    loader.exec_module(module)
    return module


@pytest.fixture
def code(gate):
    """The instructions of the excerpt's only kernel."""
    [code] = gate.parse(EXCERPT.read_text()).values()
    return code


def test_instructions_are_read_with_their_operands(gate, code):
    guarded = next(i for i in code if i.address == 0x50)
    assert (guarded.predicate, guarded.opcode, guarded.target) == ("!P0", "BRA", 0x830)
    load = next(i for i in code if i.address == 0x3E0)
    assert (load.load, load.writes(), load.reads()) == ("LDG.128", {28, 29, 30, 31}, {52})
    product = next(i for i in code if i.opcode.startswith("HMMA"))
    assert product.writes() == {40, 41, 42, 43}
    assert product.reads() == {16, 12, 40}
    assert not any(i.opcode == "NOP" for i in code)


def test_a_stage_is_once_around_the_loop_that_multiplies_most(gate, code):
    path = gate.steady_path(code, ["LDG.128"])
    assert (path[0].address, path[-1].address) == (0x3C0, 0x670)
    measured = gate.measure(path)
    assert measured["products"] == 8
    assert measured["loads"] == "4 LDG.128"
    assert measured["moves"] == 1  # a sum is set to zero under a condition
    assert measured["in_flight"] == 1
    assert measured["waits"] == 2  # two of four loads have products before their use
    assert measured["per_product"] == round(measured["instructions"] / 8, 1)


def test_ways_with_other_loads_or_with_what_is_left_out_are_no_steady_path(gate, code):
    assert gate.steady_path(code, ["LDG.32"]) == []
    assert gate.steady_path(code, ["LDG.128"], ("STG",)) == []  # it is in every way around


def test_names_are_those_of_the_source(gate):
    name = "void journey::cuda::(anonymous namespace)::add<float, (journey::cuda::Kind)1>(journey::cuda::Args, int)"
    assert gate.short_name(name) == "add<float, (Kind)1>"
    assert gate.short_name("journey::cuda::(anonymous namespace)::sum(float const*, long)") == "sum"


def test_what_passes_a_bound_is_told(gate, code):
    measured = gate.measure(gate.steady_path(code, ["LDG.128"])) | {"spills": 0, "registers": 54}
    kept = {"at_most": {"per_product": 9.0, "moves": 1}, "at_least": {"in_flight": 1}, "exact_loads": "4 LDG.128"}
    assert gate.compare(kept, measured) == []
    broken = {"at_most": {"moves": 0, "registers": 53}, "at_least": {"in_flight": 8}, "exact_loads": "16 LDG.32"}
    assert [what.split()[0] for what in gate.compare(broken, measured)] == ["moves", "registers", "in_flight", "loads"]
    assert gate.compare({}, measured | {"spills": 2}) == ["spills is 2, at most 0"]
