"""A small workbench, and what a browser's brush sends, for the tests of the app."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from models import Images, make_images, make_scheduler, make_unet
from PIL import Image
from torch import Tensor

import journey
from journey.app.workbench import Workbench, groups_of_captions

NUM_TRAIN = 9
LABELS = [f"kind {i % 2}" for i in range(NUM_TRAIN)]


def bright(images: Tensor) -> Tensor:
    return images.mean((1, 2, 3)) > 0


def make_workbench(out: Path, labels: list[str] = LABELS, **changes: Any) -> Workbench:
    """Nine 8x8 images of two kinds, an untrained network, three scored steps."""
    dataset = Images(make_images(NUM_TRAIN))
    model = (make_unet(), make_scheduler())
    options: dict[str, Any] = {"projector": journey.CountSketch(64), "draws": journey.StratifiedDraws(4)}
    features = journey.featurize(model, dataset, out, progress=False, **options)
    groups = groups_of_captions(features, dataset, LABELS)
    fields: dict[str, Any] = {"labels": labels, "groups": groups, "classifiers": {"bright": bright}, "num_scored": 3}
    made = Workbench(features, dataset, **{**fields, **changes})
    made.prepare()
    return made


def painted(mask: np.ndarray) -> str:
    """A mask as the browser's brush sends it: the opacity of a picture. [H, W], uint8"""
    buffer = io.BytesIO()
    Image.fromarray(np.dstack([np.full((*mask.shape, 3), 200, np.uint8), mask])).save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
