"""What the report and the picture show: validated arrays, rankings by sign, and pixels ready to draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    from journey.scoring import Scores
    from journey.trajectory import Trajectory

Captions = Sequence[object] | Mapping[int, object]


@dataclass(frozen=True)
class Entry:
    """One ranked training image: its dataset index and its score."""

    train_id: int
    value: float


@dataclass(frozen=True)
class View:
    """A trajectory and its scores, checked against each other and cut to the steps that have scores."""

    timesteps: list[int]
    x_t: Tensor  # [num_queries, num_steps, C, H, W]
    x0_hat: Tensor  # [num_queries, num_steps, C, H, W]
    images: Tensor  # [num_queries, C, H, W]
    profiles: dict[tuple[int, int], list[float]]  # (query, train id): its score over the strongest one, per step
    proponents: list[list[list[Entry]]]  # [num_queries][num_steps], positive scores, strongest first
    opponents: list[list[list[Entry]]]  # [num_queries][num_steps], negative scores, strongest first

    @property
    def num_queries(self) -> int:
        """Number of generated images."""
        return len(self.images)

    @property
    def num_steps(self) -> int:
        """Number of scored steps."""
        return len(self.timesteps)

    def strongest(self, query: int, step: int) -> float:
        """Largest magnitude among the ranked scores of one step, the full length of its bars; 0 if there is none."""
        entries = self.proponents[query][step][:1] + self.opponents[query][step][:1]
        return max((abs(entry.value) for entry in entries), default=0.0)


def make_view(trajectory: Trajectory, scores: Scores, num_samples: int, top: int) -> View:
    """Check a trajectory and its scores against each other and rank the training images.

    Args:
        trajectory: The recorded steps. ``x_t`` and ``x0_hat`` [num_queries, num_steps, C, H, W]
        scores: Scores of the same queries, for all of the recorded steps or some. [num_queries, num_steps, num_train]
        num_samples: Length of the dataset that ``scores.train_ids`` point into.
        top: Training images per step and sign, at most.

    Returns:
        The steps that have scores. Rankings keep one sign each, so they can be shorter than ``top``.

    Raises:
        ValueError: If shapes, queries or steps disagree, a train id is outside the dataset, a score is not finite, or
            ``top`` is not positive.
    """
    x_t, x0_hat, images, values = trajectory.x_t, trajectory.x0_hat, trajectory.images, scores.values
    recorded = [int(t) for t in trajectory.timesteps]
    scored = [int(t) for t in scores.timesteps]
    if top < 1:
        raise ValueError(f"top must be at least 1, got {top}")
    if x_t.ndim != 5 or x_t.shape != x0_hat.shape or x_t.shape[1] != len(recorded):
        raise ValueError(
            f"trajectory.x_t and trajectory.x0_hat must both be [num_queries, {len(recorded)} timesteps, C, H, W], "
            f"got {list(x_t.shape)} and {list(x0_hat.shape)}"
        )
    if list(images.shape) != [x_t.shape[0], *x_t.shape[2:]]:
        raise ValueError(
            f"trajectory.images must be {[x_t.shape[0], *x_t.shape[2:]]}, as trajectory.x_t is {list(x_t.shape)}, "
            f"got {list(images.shape)}"
        )
    if values.ndim != 3 or values.shape[0] != x_t.shape[0]:
        raise ValueError(
            f"scores.values must be [num_queries, num_steps, num_train] for the {x_t.shape[0]} queries of trajectory, "
            f"got {list(values.shape)}"
        )
    if values.shape[1] != len(scored) or not scored or not set(scored) <= set(recorded):
        raise ValueError(
            f"scores.timesteps must be among trajectory.timesteps {recorded} with one row of scores.values each, "
            f"got scores.timesteps {scored} with scores.values {list(values.shape)}"
        )
    if values.shape[2] != len(scores.train_ids):
        raise ValueError(f"scores.train_ids must name the {values.shape[2]} columns, got {len(scores.train_ids)} ids")
    outside = [i for i in scores.train_ids if not 0 <= i < num_samples]
    if outside:
        raise ValueError(
            f"scores.train_ids must be indices of dataset, which has {num_samples} samples, got {outside[0]}: "
            "is it the dataset that was featurized?"
        )
    if not torch.isfinite(values).all():
        raise ValueError("scores.values must be finite, got NaN or infinity")

    steps = [recorded.index(t) for t in scored]
    top_scores = scores.top(min(top, values.shape[2]))
    proponents = _entries(top_scores.proponents, sign=1)
    opponents = _entries(top_scores.opponents, sign=-1)
    profiles = _profiles(values, scores.train_ids, proponents, opponents)
    return View(scored, x_t[:, steps], x0_hat[:, steps], images, profiles, proponents, opponents)


def _entries(ranked: Any, sign: int) -> list[list[list[Entry]]]:
    """Turn one side of ``Scores.top`` into lists, without the scores that have the other sign or none."""
    return [
        [
            [Entry(i, v) for i, v in zip(step_ids, step_values, strict=True) if v * sign > 0]
            for step_ids, step_values in zip(query_ids, query_values, strict=True)
        ]
        for query_ids, query_values in zip(ranked.ids.tolist(), ranked.values.tolist(), strict=True)
    ]


def _profiles(
    values: Tensor, train_ids: Sequence[int], *rankings: list[list[list[Entry]]]
) -> dict[tuple[int, int], list[float]]:
    """Score along the steps of every ranked training image, each step divided by its strongest score."""
    columns = {train_id: column for column, train_id in enumerate(train_ids)}
    peaks = values.abs().amax(dim=2, keepdim=True)  # [num_queries, num_steps, 1]
    relative = values / torch.where(peaks > 0, peaks, torch.ones_like(peaks))
    shown = {(q, e.train_id) for ranking in rankings for q, row in enumerate(ranking) for step in row for e in step}
    return {(q, i): relative[q, :, columns[i]].tolist() for q, i in sorted(shown)}


def to_picture(image: Tensor, *, max_side: int | None = None) -> Image.Image:
    """Turn an image in [-1, 1] into an 8-bit picture; values outside are clipped.

    Args:
        image: Grey or RGB. [C, H, W]
        max_side: Larger pictures are reduced to this side, by area averaging.

    Returns:
        Mode "L" for one channel, "RGB" for three.

    Raises:
        ValueError: If the image is not [1, H, W] or [3, H, W].
    """
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(
            f"images must be [1, H, W] or [3, H, W] to be shown, got {list(image.shape)}: "
            "decode latents to pixels first"
        )
    pixels = ((image.detach().float().cpu().nan_to_num() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    array: np.ndarray[Any, np.dtype[np.uint8]] = pixels.permute(1, 2, 0).contiguous().numpy()
    picture = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
    if max_side is not None and max(picture.size) > max_side:
        picture.thumbnail((max_side, max_side), Image.Resampling.BOX)
    return picture


def caption(captions: Captions | None, index: int, argument: str) -> str:
    """Caption number ``index`` as text, empty without captions; a missing one is an error that names ``argument``."""
    if captions is None:
        return ""
    try:
        return str(captions[index])
    except (IndexError, KeyError):
        raise ValueError(f"{argument} has no caption for {index}: one is needed for every image shown") from None
