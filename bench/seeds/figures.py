"""Pictures of what ``bench.seeds`` finds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from torch import Tensor

import journey
from journey.demo.digits import DigitsDataset
from journey.generation.transitions import Transition
from journey.scores.scores import Scores

mpl.use("Agg")
import matplotlib.pyplot as plt

GREEN, RED = "#0b8a5c", "#c93a23"
_SHOWN = 8


def completions(path: Path, steps: Sequence[int], images: Sequence[Tensor], apart: Sequence[float]) -> None:
    """A block of completions for each step."""
    figure, axes = plt.subplots(1, len(steps), figsize=(2 * len(steps), 2.6), layout="constrained")
    for axis, step, some, distance in zip(axes, steps, images, apart, strict=True):
        rows = [torch.cat(list(some[i : i + 4, 0]), 1) for i in range(0, 20, 4)]
        _show(axis, torch.cat(rows))
        axis.set_title(f"from step {step}\napart {distance:.0%}", fontsize=10)
    _save(figure, path)


def turned(
    path: Path,
    scores: Scores,
    query: int,
    image: int,
    trajectory: journey.Trajectory,
    dataset: DigitsDataset,
) -> None:
    """The scores of one training image along the steps of one generated image."""
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.8), layout="constrained", width_ratios=(1, 1, 4))
    for axis, picture, title in (
        (axes[0], trajectory.images[query, 0], "generated"),
        (axes[1], dataset.images[image, 0], f"training image {image}"),
    ):
        _show(axis, picture)
        axis.set_title(title, fontsize=10)
    values, errors = scores.values[query, :, image], scores.standard_errors()[query, :, image]
    steps = scores.timesteps
    axes[2].fill_between(steps, values - errors, values + errors, color="#c8ccd2", label="one standard error")
    axes[2].plot(steps, values, color="#1c1d20")
    for sign, color in ((values > 0, GREEN), (values < 0, RED)):
        axes[2].plot(steps[sign], values[sign], "o", color=color, markersize=4)
    axes[2].axhline(0, color="grey", linewidth=0.8)
    axes[2].set(xlabel="timestep", ylabel="score", xlim=(1000, 0))
    axes[2].legend(frameon=False, fontsize=9)
    _save(figure, path)


def transition(
    path: Path,
    found: Transition,
    ranked: dict[str, tuple[Tensor, Tensor]],
    generated: Tensor,
    dataset: DigitsDataset,
) -> None:
    """The likelihood of a feature, with who counts most before, inside and after its rise."""
    figure = plt.figure(figsize=(10, 4), layout="constrained")
    grid = figure.add_gridspec(2, len(ranked), height_ratios=(2, 1))
    axis = figure.add_subplot(grid[0, 1:])
    lower, upper = found.band
    axis.fill_between(found.timesteps, lower, upper, color="#c8ccd2", label="95 % band")
    axis.plot(found.timesteps, found.likelihood, "o-", color="#1c1d20", markersize=4)
    first, end = found.interval
    axis.axvspan(first, end, color="#f3e3b5", label="rise")
    axis.set(xlabel="timestep", ylabel="completions with the digit", xlim=(1000, 0), ylim=(0, 1.02))
    axis.legend(frameon=False, fontsize=9)
    axis = figure.add_subplot(grid[0, 0])
    _show(axis, generated[0])
    axis.set_title("generated", fontsize=10)
    for column, (name, sides) in enumerate(ranked.items()):
        axis = figure.add_subplot(grid[1, column])
        rows = [_row(dataset.images[side[:_SHOWN]]) for side in sides]
        _show(axis, torch.cat(rows))
        axis.set_title(f"{name} the rise" if name != "inside" else "inside it", fontsize=10)
        if column == 0:
            axis.set_yticks([8, 26], ["proponents", "opponents"], fontsize=9)
    _save(figure, path)


def halves(path: Path, images: Tensor, tops: dict[str, Any], dataset: DigitsDataset) -> None:
    """Proponents of the upper and of the lower half of four images."""
    figure, axes = plt.subplots(4, 3, figsize=(10, 5), layout="constrained", width_ratios=(1, 4, 4))
    for row, query in zip(axes, range(0, len(images), len(images) // 4), strict=True):
        _show(row[0], images[query, 0])
        row[0].axhline(images.shape[2] / 2 - 0.5, color=GREEN)
        for axis, (name, ids) in zip(row[1:], tops.items(), strict=True):
            _show(axis, _row(dataset.images[ids[query, :_SHOWN].tolist()]))
            if query == 0:
                axis.set_title(f"proponents of the {name} half", fontsize=10)
    _save(figure, path)


def _row(images: Tensor) -> Tensor:
    """Pictures side by side, a little apart. [height, width]"""
    gap = -torch.ones(images.shape[2] + 2, 2)
    padded = torch.nn.functional.pad(images[:, 0], (0, 0, 0, 2), value=-1.0)
    return torch.cat([part for image in padded for part in (image, gap)], 1)


def _show(axis: Any, picture: Tensor) -> None:
    axis.imshow(picture, cmap="gray_r", vmin=-1, vmax=1, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
