"""Products of float32 on CUDA are formed as torch's own of the same kind would be, under every setting of torch's."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from journey.ops.cuda import CudaKernels
from journey.ops.kernels import FLOAT32, TF32

NEW_NAMES = hasattr(torch.backends.cudnn, "conv")  # torch 2.9 and later

# What the caller sets, and how convolutions and other products are formed then.
SETTINGS = [
    ("pass", TF32, FLOAT32),
    ("torch.backends.cudnn.allow_tf32 = False", FLOAT32, FLOAT32),
    ("torch.set_float32_matmul_precision('high')", TF32, TF32),
    ("torch.set_float32_matmul_precision('medium')", TF32, TF32),
    ("torch.backends.cuda.matmul.allow_tf32 = True", TF32, TF32),
    ("torch.backends.cudnn.allow_tf32 = False; torch.backends.cuda.matmul.allow_tf32 = True", FLOAT32, TF32),
]
NEW_SETTINGS = [
    ("torch.backends.fp32_precision = 'tf32'", TF32, TF32),
    ("torch.backends.fp32_precision = 'ieee'", FLOAT32, FLOAT32),
    ("torch.backends.cudnn.conv.fp32_precision = 'ieee'", FLOAT32, FLOAT32),
    ("torch.backends.cudnn.fp32_precision = 'ieee'; torch.backends.cudnn.conv.fp32_precision = 'tf32'", TF32, FLOAT32),
    ("torch.backends.cuda.matmul.fp32_precision = 'tf32'", TF32, TF32),
    (
        "torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision = 'ieee', 'tf32'",
        FLOAT32,
        TF32,
    ),
]

# Settings cannot be taken back once both kinds of names were used, so that a child of the process makes each.
_CHILD = """
import os, sys, torch
from journey.ops.cuda import CudaKernels
for setting in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        exec(setting)
        print(CudaKernels().precision(convolution=True), CudaKernels().precision(), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


def test_convolutions_and_other_products_follow_their_own_settings(tmp_path):
    settings = SETTINGS + (NEW_SETTINGS if NEW_NAMES else [])
    command = [sys.executable, "-c", _CHILD, *(setting for setting, *_ in settings)]
    told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout.splitlines()
    expected = [f"{convolution} {other}" for _, convolution, other in settings]
    assert dict(zip((s for s, *_ in settings), told, strict=True)) == dict(
        zip((s for s, *_ in settings), expected, strict=True)
    )


@pytest.mark.parametrize(("op", "dims"), [("sketch_outer_", 0), ("sketch_outer_", 2), ("sketch_outer_many_", 2)])
def test_each_layer_is_told_the_precision_of_its_kind(op, dims):
    class Told(CudaKernels):
        def precision(self, convolution: bool = False) -> int:
            return 40 + convolution

        def run(self, op, memory, args):
            self.layers = args.get("layers", [args])

    told, features = Told(), torch.zeros(1, 32)
    image = torch.zeros(1, 1, 1, 1)
    if op == "sketch_outer_":
        walk = [[1] * dims, [1] * dims, [0] * dims, [1] * dims, 1]
        told.sketch_outer_(features, *([image] * 2 if dims else [image[0]] * 2), 1, 1, *walk)
        assert [layer["precision"] for layer in told.layers] == [40 + (dims > 0)]
        return
    numbers = [0, *[1] * 6, *[0] * 3, *[1] * 4, 2, *[1] * 6, *[0] * 3, *[1] * 4]
    inputs = [image[0], image]
    told.sketch_outer_many_(features, inputs, inputs, [1, 2], numbers, [1.0, 1.0], 1, [], [])
    assert [layer["precision"] for layer in told.layers] == [40, 41]
