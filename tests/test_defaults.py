"""Torch's default dtype and default device are the caller's: nothing in the package is made in them."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import journey

PACKAGE = Path(__file__).parents[1] / "journey"
FILES = sorted(PACKAGE.rglob("*.py"))

# What makes a tensor of torch's default dtype or device where it is not told both.
MAKERS = {
    *("arange", "as_tensor", "asarray", "empty", "empty_strided", "eye", "full", "linspace", "logspace", "ones"),
    *("rand", "randint", "randn", "randperm", "range", "scalar_tensor", "tensor", "tril_indices", "triu_indices"),
    *("zeros", "bartlett_window", "blackman_window", "hamming_window", "hann_window", "kaiser_window"),
}
FORBIDDEN = {"Tensor", "FloatTensor", "DoubleTensor", "HalfTensor", "LongTensor", "set_default_dtype"}


def lax_calls(tree: ast.AST) -> list[str]:
    """Calls ``torch.maker(...)`` without dtype or device, generators without device, and makers under other names."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "torch":
            found += [f"line {node.lineno}: from torch import {a.name}" for a in node.names if a.name in MAKERS]
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        if not (isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"):
            continue
        name, told = node.func.attr, {keyword.arg for keyword in node.keywords}
        lacks = {"dtype", "device"} - told if name in MAKERS else set()
        if name == "Generator" and not node.args and "device" not in told:
            lacks = {"device"}
        if lacks or name in FORBIDDEN:
            found.append(f"line {node.lineno}: torch.{name}({', '.join(sorted(lacks))})")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_every_tensor_is_made_with_its_dtype_and_device(path: Path) -> None:
    assert not lax_calls(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("text", "lacks"),
    [
        ("torch.zeros(3)", "torch.zeros(device, dtype)"),
        ("torch.empty(3, device=d)", "torch.empty(dtype)"),
        ("torch.tensor([1], dtype=torch.int64)", "torch.tensor(device)"),
        ("torch.Generator()", "torch.Generator(device)"),
        ("from torch import ones", "from torch import ones"),
    ],
)
def test_the_rule_sees_what_takes_a_default(text: str, lacks: str) -> None:
    assert lax_calls(ast.parse(text)) == [f"line 1: {lacks}"]


CORE = """
import hashlib, json, sys, tempfile
import torch
from models import Images, make_images, make_scheduler, make_unet
import journey
from journey.projectors.scaled import Scaled

model, images = (make_unet(), make_scheduler()), Images(make_images(6))
wanted = {"dtype": torch.set_default_dtype, "device": torch.set_default_device}[sys.argv[1]]
wanted(getattr(torch, sys.argv[2]) if sys.argv[1] == "dtype" else sys.argv[2])
found = {}
def keep(name, tensor):
    found[name] = f"{tensor.dtype} " + hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()
with tempfile.TemporaryDirectory() as folder:
    trajectory = journey.record(model, num_inference_steps=4, progress=False)
    keep("images", trajectory.images)
    draws = journey.StratifiedDraws(num_draws=2, bins=2)
    scaled = {"projector": Scaled(journey.CountSketch(1024))}  # the default, shorter
    plain = {"projector": journey.CountSketch(1024), "measurement": journey.TrainingLoss()}
    for name, choices in {"scaled": scaled, "sketched": plain}.items():
        out = f"{folder}/{name}"
        features = journey.featurize(model, images, out, draws=draws, progress=False, **choices)
        keep(f"{name} features", features.matrix())
        scores = journey.score(features, trajectory, num_draws=2, completions=len(choices) - 1, progress=False)
        keep(f"{name} scores", scores.values)
    keep("region", journey.score(features, trajectory, num_draws=2, region=(0, 0, 4, 4), progress=False).values)
    keep("matrix", journey.influence_matrix(features, trajectory, [0, 1], num_draws=2, progress=False).values)
    journey.inspect(features, trajectory, num_draws=4, progress=False)
print(json.dumps(found))
"""


def run_core(kind: str, value: str) -> dict[str, str]:
    """The hashes of a run of the core in a process of its own, whose torch has that default."""
    # In the folder of the helpers, for python -c takes the modules of its folder; the sources may not be built.
    installed = str(Path(journey.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", CORE, kind, value],
        cwd=PACKAGE.parent / "tests" / "support",
        env={**os.environ, "PYTHONPATH": installed, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def usual() -> dict[str, str]:
    """What comes out with torch's own defaults."""
    return run_core("dtype", "float32")


@pytest.mark.parametrize(("kind", "value"), [("dtype", "bfloat16"), ("dtype", "float64"), ("device", "meta")])
def test_the_core_gives_the_same_bits_under_any_default(usual: dict[str, str], kind: str, value: str) -> None:
    assert run_core(kind, value) == usual
