"""What version 0.1 computed before its modules were moved into packages is what is computed now.

That version wrote ``recorded_values.json``: bits of what the compiled kernels alone make, and some features and scores.
A change of a draw, a key, a map or a default that is meant changes numbers here; record them anew, with a line in the
changelog, because stores of the two versions do not agree. So were sketches of convolutions and what follows from them
when columns of their weights began to run kernel position by kernel position.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CONVS, HIGH_KEY, KEY
from models import IMAGE, Images, make_images, make_scheduler, make_unet
from torch import Tensor

import journey
from journey import ops
from journey.evaluate.subsets import random_subsets
from journey.measure.draws import Draws, GridDraws, StratifiedDraws, UniformDraws
from journey.measure.importance_draws import ImportanceDraws
from journey.models.encoding import choose_captions
from journey.ops.keys import derive_key
from journey.ops.noise import query_noise

RECORDED = Path(__file__).with_name("recorded_values.json")
CPU = torch.device("cpu")
IDS = [0, 3, 2**40]
NUM_TIMESTEPS = 1000
DRAWS: dict[str, Draws] = {
    "stratified": StratifiedDraws(num_draws=4, bins=5),
    "stratified, another seed": StratifiedDraws(num_draws=4, bins=5, seed=5),
    "uniform": UniformDraws(num_draws=3, antithetic=False),
    "grid": GridDraws(num_draws=3, bins=2),
    "importance": ImportanceDraws(num_draws=4, bins=2, density=[1 + t % 3 for t in range(NUM_TIMESTEPS)]),
}
PROJ_DIM = 1024  # its root, which dense projections are divided by, is a power of two


def digest(*tensors: Tensor) -> str:
    """Hash of shapes, dtypes and bits."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(f"{list(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()


def draw() -> dict[str, str]:
    """Digests of everything random: of our own generator, so the same bits on every machine."""
    found = {name: digest(it.timesteps(IDS, NUM_TIMESTEPS), it.noise(IDS, IMAGE, CPU)) for name, it in DRAWS.items()}
    found["noise of queries"] = digest(query_noise(5, IDS, 40, 4, IMAGE, CPU))
    found["captions"] = digest(choose_captions(5, IDS, [1, 3, 5], 8))
    found["halves"] = digest(random_subsets(50, 4, seed=5).members)
    keys = [
        derive_key(seed, use, name) for seed in (0, 5) for use in ("sketch", "noise") for name in ("conv.weight", 3)
    ]
    found["keys"] = " ".join(f"{key:016x}" for key in keys)
    return found


def whole(*shape: int) -> Tensor:
    """Whole numbers in [-8, 8] that need no generator. [*shape]."""
    return (torch.arange(prod(shape)) * 7919 % 17 - 8).view(shape).float()


def into_features(batch: int, add: Callable[[Tensor], None]) -> str:
    """Digest of what an operation adds to zeros."""
    features = torch.zeros(batch, PROJ_DIM)
    add(features)
    return digest(features)


def project(dtype: torch.dtype) -> dict[str, str]:
    """Digests of projections of whole numbers.

    Their sums are exact in float32, in any order and from any of the three dtypes, and so are halves of them. So these
    bits depend neither on the instruction set nor on the number of threads.
    """
    grads, a, g = whole(2, 101, 131).to(dtype), whole(6, 5, 33).to(dtype), whole(6, 5, 40).flip(1).to(dtype)
    many = [grads[:, :7], grads[:, :, :1]]
    flat, shapes = torch.cat([part.flatten(1) for part in many], 1).float(), [(7, 131), (101, 1)]
    found = {
        "sketch_": into_features(2, lambda out: ops.sketch_(out, grads, key=KEY)),
        "sketch_ of later rows": into_features(2, lambda out: ops.sketch_(out, grads, key=HIGH_KEY, row_begin=900)),
        "sketch_ in four maps": into_features(2, lambda out: ops.sketch_(out, grads, key=KEY, nnz=4)),
        "sketch_many_": into_features(2, lambda out: ops.sketch_many_(out, flat, keys=[KEY, HIGH_KEY], shapes=shapes)),
        "sketch_outer_": into_features(3, lambda out: ops.sketch_outer_(out, a, g, key=KEY)),
        "project_, signs": into_features(2, lambda out: ops.project_(out, grads.flatten(1), key=KEY)),
        # Rows of the matrix one by one: sums of its normals would be rounded.
        "project_, normals": into_features(
            9, lambda out: ops.project_(out, torch.eye(9, dtype=dtype), key=KEY, kind="normal", row_begin=5)
        ),
    }
    for name, conv in CONVS.items():
        inputs = whole(4, conv.c_in, *conv.size).to(dtype)
        outputs = whole(4, conv.c_out, *conv.size_out).flip(0).to(dtype)
        found[f"sketch_outer_, convolution {name}"] = into_features(
            2, lambda out, x=inputs, y=outputs, c=conv: ops.sketch_outer_(out, x, y, key=KEY, conv=c.geometry)
        )
    gram = torch.zeros(64, 64, dtype=torch.float64)
    ops.accumulate_gram_(gram, whole(200, 64).to(dtype))
    return {**found, "accumulate_gram_": digest(gram)}


def attribute(out: Path) -> dict[str, list[list[float]]]:
    """Features and scores of a small UNet: by the defaults, and by plain sketches."""
    model, images = (make_unet(), make_scheduler()), Images(make_images(20))
    trajectory = journey.record(model, seed=3, num_images=2, num_inference_steps=6, progress=False)
    found = {"x_t": trajectory.x_t.flatten(2)[0, :, :8]}
    choices: dict[str, dict[str, Any]] = {"default": {}, "CountSketch(512)": {"projector": journey.CountSketch(512)}}
    for name, options in choices.items():
        features = journey.featurize(model, images, out / name, progress=False, **options)
        matrix = features.matrix()
        scores = journey.score(features, trajectory, steps=trajectory.timesteps[1::2].tolist(), progress=False)
        found[f"{name}: features"] = matrix[::5, :32]
        found[f"{name}: norms of features"] = matrix.norm(dim=1)[None]
        found[f"{name}: scores"] = scores.values.flatten(0, 1)
    return {name: tensor.tolist() for name, tensor in found.items()}


def recorded(part: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RECORDED.read_text(encoding="utf-8"))[part]
    return found


def test_draws_and_keys_have_the_bits_of_version_0_1() -> None:
    assert draw() == recorded("draws")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_projections_have_the_bits_of_version_0_1(dtype: torch.dtype) -> None:
    assert project(dtype) == recorded("projections")


def test_features_and_scores_are_those_of_version_0_1(tmp_path: Path) -> None:
    found, wanted = attribute(tmp_path), recorded("attribution")
    assert list(found) == list(wanted)
    for name, values in wanted.items():
        now, then = torch.tensor(found[name]).double(), torch.tensor(values, dtype=torch.float64)
        assert now.shape == then.shape
        # torch's own convolutions and products round as the processor and the number of threads have it, by 1e-6 or so
        # of the scale; another draw, key or default would change numbers by as much as they are.
        error = (now - then).abs().max() / then.abs().max()
        assert error < 1e-4, f"{name} differs from what was recorded by {error:.1e} of the largest"
