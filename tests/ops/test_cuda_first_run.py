"""The script of the first run on a GPU: what it would run exists, and what it expects is what the kernels say."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def run(*arguments: object, status: int = 0, python: object = sys.executable) -> str:
    """What the script prints."""
    command = ["bash", ROOT / "bench" / "first_gpu_run.sh", *map(str, arguments)]
    done = subprocess.run(command, env=os.environ | {"PYTHON": str(python)}, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def dry(tmp_path):
    """The folder and the output of a dry run."""
    return tmp_path / "out", run("--dry-run", tmp_path / "out")


def test_a_dry_run_runs_nothing_and_stays_under_ten_minutes(dry):
    folder, said = dry
    assert {path.name for path in folder.iterdir()} == {"predictions.py", "first-run.md"}
    limits = [int(seconds) for seconds in re.findall(r"at most (\d+) s: ", said)]
    assert len(limits) == 5
    assert sum(limits) < 600
    for path in re.findall(r" (tests/\S+)", said):
        assert (ROOT / path).exists(), path
    assert (folder / "first-run.md").read_text().count("not run") == 5


def test_every_expectation_stands_in_the_header_of_its_kernel(dry):
    folder, _ = dry
    page = (folder / "first-run.md").read_text()
    for source, says, name, _ in runpy.run_path(str(folder / "predictions.py"))["CASES"]:
        assert f"| {name} |" in page
        if source:
            header = (ROOT / "csrc" / "cuda" / source).read_text().split("#include")[0]
            assert says in re.sub(r"\s*\n// ", " ", header), (name, says)


def test_every_case_can_be_called(dry):
    folder, _ = dry
    script = runpy.run_path(str(folder / "predictions.py"))
    for _name, call, parts in script["calls"](torch, "cpu", scale=32):
        call()
        assert parts >= 1


def test_parts_that_fail_do_not_stop_the_next_and_those_that_passed_are_not_run_again(tmp_path):
    python = tmp_path / "python"  # passes every part but the tests
    python.write_text(
        f'#!/bin/sh\ncase "$*" in *first-run*|*table*) exec {sys.executable} "$@";; *pytest*) exit 3;; esac\n'
    )
    python.chmod(0o755)
    first = run(tmp_path / "out", python=python)
    assert "tests: status 3" in first
    page = (tmp_path / "out" / "first-run.md").read_text()
    assert "| build | passed |" in page
    assert "| tests | failed (3) |" in page
    assert "build: done before" in run(tmp_path / "out", python=python)


def test_what_was_seen_stands_beside_what_was_expected(dry):
    folder, _ = dry
    (folder / "tests.status").write_text("124 120\n")
    (folder / "predictions.json").write_text('{"sketch, float32": 0.5}')
    run("--dry-run", folder)
    page = (folder / "first-run.md").read_text()
    assert "| tests | out of time | 120 |" in page
    assert "| sketch, float32 | 16 us | 500 us |" in page


def test_it_wants_a_folder():
    assert "FOLDER" in run(status=2)
