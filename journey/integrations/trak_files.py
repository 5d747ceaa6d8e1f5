"""Reading the ``save_dir`` of a ``TRAKer``: its memory-mapped arrays are ``.npy`` files beside a ``metadata.json``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class TRAKFeatures(NamedTuple):
    """What a ``TRAKer`` stored of its training set under one model ID.

    Attributes:
        grads: Projected gradients over the root of the number of parameters, Phi, float16 or float32; None if they
            were deleted. [num_train, proj_dim]
        features: ``Phi (Phi^T Phi)^-1``, the inverse over the mean magnitude of its entries, likewise; zero before
            ``finalize_features``. [num_train, proj_dim]
        out_to_loss: Derivative of the loss by the model output. [num_train, 1]
    """

    grads: Tensor | None
    features: Tensor
    out_to_loss: Tensor


def read_features(save_dir: str | os.PathLike[str], model_id: int = 0) -> TRAKFeatures:
    """Read what a ``TRAKer`` stored of its training set.

    Args:
        save_dir: Its ``save_dir``.
        model_id: Which model.

    Returns:
        Copies of its arrays.

    Raises:
        FileNotFoundError: If the folder holds no such thing.
        ValueError: If an array has another shape than the metadata tell, or samples are not featurized.
    """
    folder = Path(save_dir) / str(model_id)
    num_train, proj_dim = _metadata(save_dir)
    done = _read(folder / "_is_featurized.mmap", (num_train, 1)) != 0
    if not done.all():
        raise ValueError(
            f"every sample must be featurized, of model {model_id} in {save_dir} {int(done.sum())} of {num_train} are"
        )
    grads = folder / "grads.mmap"
    return TRAKFeatures(
        _read(grads, (num_train, proj_dim)) if grads.exists() else None,
        _read(folder / "features.mmap", (num_train, proj_dim)),
        _read(folder / "out_to_loss.mmap", (num_train, 1)),
    )


def read_targets(save_dir: str | os.PathLike[str], exp_name: str, model_id: int = 0) -> Tensor:
    """Read the projected gradients of the targets of an experiment. [num_targets, proj_dim]

    Args:
        save_dir: The ``save_dir`` of a ``TRAKer``.
        exp_name: Which experiment.
        model_id: Which model.

    Returns:
        A copy, float16 or float32.

    Raises:
        FileNotFoundError: If the folder holds no such thing.
        ValueError: If the array has another shape than the metadata tell.
    """
    return _read(Path(save_dir) / str(model_id) / f"{exp_name}_grads.mmap", (None, _metadata(save_dir)[1]))


def read_scores(save_dir: str | os.PathLike[str], exp_name: str) -> Tensor:
    """Read the scores of an experiment. [num_train, num_targets]

    Args:
        save_dir: The ``save_dir`` of a ``TRAKer``.
        exp_name: Which experiment.

    Returns:
        A copy, float16 or float32.

    Raises:
        FileNotFoundError: If the folder holds no such thing.
        ValueError: If the array has another shape than the metadata tell.
    """
    return _read(Path(save_dir) / "scores" / f"{exp_name}.mmap", (_metadata(save_dir)[0], None))


def _metadata(save_dir: str | os.PathLike[str]) -> tuple[int, int]:
    """Number of training samples, and of features."""
    told = json.loads((Path(save_dir) / "metadata.json").read_text())
    return int(told["train set size"]), int(told["JL dimension"])


def _read(path: Path, shape: tuple[int | None, ...]) -> Tensor:
    array = np.load(path)
    fits = len(shape) == array.ndim and all(n in (None, m) for n, m in zip(shape, array.shape, strict=True))
    if not fits:
        raise ValueError(f"{path} must be {list(shape)}, as metadata.json tells, got {list(array.shape)}")
    return torch.from_numpy(array)
