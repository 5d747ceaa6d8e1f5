"""The benchmark reads data sets in the form in which they are published."""

from __future__ import annotations

import gzip
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.retraining.tiers import TIERS


def test_cifar2_is_the_automobiles_and_horses_of_all_batches_in_their_order(tmp_path: Path) -> None:
    random = np.random.RandomState(0)
    pixels = random.randint(0, 256, (5, 8, 3072), dtype=np.uint8)
    labels = np.array([[0, 1, 7, 3, 1, 9, 7, 7], *random.randint(0, 10, (4, 8))])
    for i in range(5):
        content = {b"data": pixels[i], b"labels": labels[i].tolist(), b"batch_label": b"training batch"}
        (tmp_path / f"data_batch_{i + 1}").write_bytes(pickle.dumps(content))
    found = TIERS["cifar2"].load(tmp_path)
    kept = [pixels[i, j] for i in range(5) for j in range(8) if labels[i, j] in (1, 7)]
    assert found.shape == (len(kept), 3, 32, 32)
    assert found.dtype == torch.float32
    # Red, green and blue one after the other, each row by row.
    expected = torch.from_numpy(np.stack(kept)).float().view(-1, 3, 32, 32) / 127.5 - 1
    assert torch.equal(found, expected)


def test_cifar2_without_data_says_what_it_needs() -> None:
    with pytest.raises(FileNotFoundError, match=re.escape("needs --data, the folder of CIFAR-10's Python version")):
        TIERS["cifar2"].load(None)


def test_cifar2_trains_what_its_sizes_say() -> None:
    told = TIERS["cifar2"].training(torch.zeros(2, 3, 32, 32)).fingerprint()
    assert (told["steps"], told["batch_size"], told["prediction_type"]) == (8000, 128, "epsilon")
    assert (told["config"]["sample_size"], list(told["config"]["block_out_channels"])) == (32, [128, 256, 256, 256])


def test_fashion_averages_28_pixels_to_16(tmp_path: Path) -> None:
    pixels = np.full((10_000, 28, 28), 255, np.uint8)
    pixels[0] = 0
    pixels[1, :14] = 0
    header = np.array([2051, 10_000, 28, 28], ">i4").tobytes()
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + pixels.tobytes(), 1))
    found = TIERS["fashion"].load(tmp_path)
    assert found.shape == (10_000, 1, 16, 16)
    assert (found[0] == -1).all()
    assert (found[1, 0, :8] == -1).all()
    assert (found[1, 0, 8:] == 1).all()
    assert (found[2] == 1).all()
