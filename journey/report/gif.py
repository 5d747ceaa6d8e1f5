"""The report as an animation: one generation from noise to image, with the training images behind each step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from journey.data.items import Dataset
from journey.report.draw import (
    BAR,
    FRAME,
    GAP,
    GREEN,
    INK,
    LINE,
    RED,
    RULE,
    SMALL_SIZE,
    SOFT,
    TEXT_SIZE,
    TILE,
    Sheet,
    fit,
    pitch,
    with_credit,
)
from journey.report.view import Captions, View, caption, make_view, places_of, to_picture

if TYPE_CHECKING:
    from journey.generation.trajectory import Trajectory
    from journey.scores.scores import Scores

_MARGIN = 28
_SECTION = 36
_HEAD = 64  # the line that names the image and the step
_PAUSE = 4  # the last step stays so many times longer


def write_gif(
    path: str | Path,
    trajectory: Trajectory,
    scores: Scores,
    dataset: Dataset,
    *,
    query: int = 0,
    top: int = 5,
    milliseconds: int = 700,
    labels: Captions | None = None,
    query_captions: Sequence[object] | None = None,
    credit: str = "",
) -> Path:
    """Write an animated GIF that goes through the scored steps of one generated image, again and again.

    A frame is one step: x_t and the image predicted from it, the strongest proponents in green frames and opponents in
    red ones, and how far the generation has come. Equal inputs give equal bytes.

    Args:
        path: The file to write; missing folders are made.
        trajectory: The recorded steps.
        scores: Scores of the same queries, for all recorded steps or some. [num_queries, num_steps, num_train]
        dataset: The training images, whose ids are ``scores.train_ids``.
        query: Which generated image.
        top: Proponents and opponents per frame, at most.
        milliseconds: How long a step is shown.
        labels: Captions of the training images, looked up by dataset index.
        query_captions: One caption per generated image.
        credit: Written below, such as the credit that a licence of the images asks for.

    Returns:
        The path of the file.

    Raises:
        ValueError: If ``scores`` and ``trajectory`` disagree, ``query`` is not there, ids are outside ``dataset``,
            scores are not finite, a caption is missing, a number is below 1, or images are neither grey nor RGB.
        TypeError: If an item of ``dataset`` is not an image, or ``scores`` are the strongest alone.
    """
    view = make_view(trajectory, scores, places_of(dataset, scores), top)
    view.chosen(query)
    if milliseconds < 1:
        raise ValueError(f"milliseconds must be at least 1, got {milliseconds}")
    words = caption(query_captions, query, "query_captions") or f"image {query + 1}"
    frames = [with_credit(_frame(view, dataset, query, s, labels, words), credit) for s in range(view.num_steps)]
    # One palette for all frames, so that what stands still does not flicker.
    strip = Image.new("RGB", (frames[0].width, sum(frame.height for frame in frames)))
    for i, frame in enumerate(frames):
        strip.paste(frame, (0, i * frame.height))
    palette = strip.quantize(256, dither=Image.Dither.NONE)
    drawn = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    times = [milliseconds] * (len(drawn) - 1) + [_PAUSE * milliseconds]
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    drawn[0].save(target, format="GIF", save_all=True, append_images=drawn[1:], duration=times, loop=0)
    return target


def _frame(view: View, dataset: Dataset, query: int, step: int, labels: Captions | None, words: str) -> Image.Image:
    ranking = view.rankings[0]
    height, width = view.images.shape[-2:]
    size, large = fit(width, height, TILE), fit(width, height, 2 * TILE)
    row = LINE + 4 + size[1] + 2 * FRAME + BAR + 2 * LINE + 16
    sides_x = _MARGIN + 2 * (large[0] + GAP) + _SECTION - GAP
    right = sides_x + min(view.top, len(view.train_ids)) * pitch(size) - GAP
    bottom = _HEAD + max(2 * row, LINE + 4 + large[1])
    sheet = Sheet(right + _MARGIN, bottom + _MARGIN)
    sheet.text(_MARGIN, _MARGIN - 8, words, TEXT_SIZE, INK, sides_x - 2 * _MARGIN, bold=True)
    sheet.text(sides_x, _MARGIN - 8, f"step {step + 1} of {view.num_steps}, t = {view.timesteps[step]}", TEXT_SIZE, INK)
    done = _MARGIN + round((right - _MARGIN) * (step + 1) / view.num_steps)
    sheet.draw.rectangle((_MARGIN, _HEAD - 8, right, _HEAD - 6), fill=RULE)
    sheet.draw.rectangle((_MARGIN, _HEAD - 8, done, _HEAD - 6), fill=INK)
    y = _HEAD + 8
    for x, name, image in (
        (_MARGIN, "noisy", view.noisy[query, step]),
        (_MARGIN + large[0] + GAP, "predicted", view.predicted[query, step]),
    ):
        sheet.text(x, y, name, SMALL_SIZE, SOFT)
        sheet.picture(x, y + LINE + 4, to_picture(image), large)
    for name, color, entries in (
        ("proponents", GREEN, ranking.proponents[query][step]),
        ("opponents", RED, ranking.opponents[query][step]),
    ):
        sheet.text(sides_x, y, name, SMALL_SIZE, color, bold=True)
        sheet.side(sides_x, y + LINE + 4, entries, size, color, ranking.strongest(query, step), dataset, labels)
        y += row
    return sheet.image
