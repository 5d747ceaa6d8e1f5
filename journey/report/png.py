"""The report's picture: one PNG of generated images, their steps, and the training images behind each step."""

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
    TITLE_SIZE,
    Sheet,
    fit,
    pitch,
    with_credit,
)
from journey.report.view import TITLE, Captions, View, caption, make_view, places_of, to_picture

if TYPE_CHECKING:
    from journey.generation.trajectory import Trajectory
    from journey.scores.scores import Scores

# Sizes are for a picture seen at half its pixels, as in a README on a dense screen: 22 here reads as 11 there.
_MARGIN = 40
_SECTION = 44  # between the columns that mean different things
_MAX_ROWS = 8  # rows chosen when the caller names no timesteps


def write_png(
    path: str | Path,
    trajectory: Trajectory,
    scores: Scores,
    dataset: Dataset,
    *,
    query: int | Sequence[int] | None = None,
    timesteps: Sequence[int] | None = None,
    top: int = 6,
    title: str = TITLE,
    labels: Captions | None = None,
    query_captions: Sequence[object] | None = None,
    credit: str = "",
) -> Path:
    """Draw generated images, their noisy and predicted images along the steps, and the strongest training images.

    A row is one step of one generated image: x_t, the image predicted from it, proponents in green frames, opponents in
    red frames. Pictures are enlarged by a whole factor without smoothing. Equal inputs give equal pixels.

    Args:
        path: The file to write; missing folders are made.
        trajectory: The recorded steps, images in [-1, 1]. ``x_t`` [num_queries, num_steps, C, H, W]
        scores: Scores of the same queries, for all recorded steps or some. [num_queries, num_steps, num_train]
        dataset: The training images, whose ids are ``scores.train_ids``.
        query: Which generated images to show, one or several positions; None shows all.
        timesteps: Which scored timesteps to show; None spreads about eight rows evenly over them.
        top: Proponents and opponents per row, at most.
        title: First line of the picture.
        labels: Captions of the training images, looked up by dataset index.
        query_captions: One caption per generated image.
        credit: Written below, such as the credit that a licence of the images asks for.

    Returns:
        The path of the file.

    Raises:
        ValueError: If ``scores`` and ``trajectory`` disagree, ``query`` or ``timesteps`` names what is not there, ids
            are outside ``dataset``, scores are not finite, a caption is missing, ``top`` is below 1, or images are
            neither grey nor RGB.
        TypeError: If an item of ``dataset`` is not an image, or ``scores`` are the strongest alone.
    """
    view = make_view(trajectory, scores, places_of(dataset, scores), top)
    ranking = view.rankings[0]
    queries = view.chosen(query)
    steps = _chosen_steps(timesteps, view.timesteps, len(queries))
    canvas = _Canvas(view, len(queries), len(steps), min(top, len(scores.train_ids)))
    canvas.header(title)
    for block, q in enumerate(queries):
        words = caption(query_captions, q, "query_captions")
        canvas.generated(block, to_picture(view.images[q]), words or f"image {q + 1}")
        for row, s in enumerate(steps):
            y = canvas.row_top(block, row)
            canvas.step(y, to_picture(view.noisy[q, s]), to_picture(view.predicted[q, s]), view.timesteps[s])
            for x, color, entries in (
                (canvas.proponents_x, GREEN, ranking.proponents[q][s]),
                (canvas.opponents_x, RED, ranking.opponents[q][s]),
            ):
                canvas.side(x, y, entries, canvas.size, color, ranking.strongest(q, s), dataset, labels)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with_credit(canvas.image, credit).save(target, format="PNG")
    return target


class _Canvas(Sheet):
    """The sheet and where everything goes on it."""

    def __init__(self, view: View, num_blocks: int, num_rows: int, top: int) -> None:
        height, width = view.images.shape[-2:]
        self.size = fit(width, height, TILE)
        self._large = fit(width, height, 2 * TILE)
        side_width = top * pitch(self.size) - GAP
        self._step_x = _MARGIN + self._large[0] + _SECTION
        self._predicted_x = self._step_x + pitch(self.size)
        self.proponents_x = self._predicted_x + pitch(self.size) - GAP + _SECTION
        self.opponents_x = self.proponents_x + side_width + _SECTION
        self._right = self.opponents_x + side_width
        self._head = _MARGIN + 150
        self._row_height = self.size[1] + 2 * FRAME + BAR + 2 * LINE + 24
        self._block_height = max(num_rows * self._row_height, self._large[1] + 2 * FRAME + LINE + 24) + 20
        height = self._head + num_blocks * self._block_height + _MARGIN - 24
        super().__init__(self._right + _MARGIN, height)

    def row_top(self, block: int, row: int) -> int:
        return self._head + 20 + block * self._block_height + row * self._row_height

    def header(self, title: str) -> None:
        """The title, what the colours mean, and the names of the columns."""
        self.text(_MARGIN, _MARGIN - 8, title, TITLE_SIZE, INK, self._right - _MARGIN, bold=True)
        line = _MARGIN + 46
        x: float = _MARGIN
        for words, color in (
            ("Each row is one denoising step. Training on a ", SOFT),
            ("green", GREEN),
            (" image makes the step more likely to lead to the generated image, on a ", SOFT),
            ("red", RED),
            (" one less likely.", SOFT),
        ):
            x = self.text(x, line, words, TEXT_SIZE, color, self._right - x, bold=color != SOFT)
        line = self._head - 38
        self.text(_MARGIN, line, "generated", TEXT_SIZE, INK)
        self.text(self._step_x, line, "noisy", TEXT_SIZE, INK)
        self.text(self._predicted_x, line, "predicted", TEXT_SIZE, INK)
        self.text(self.proponents_x, line, "proponents", TEXT_SIZE, GREEN, bold=True)
        self.text(self.opponents_x, line, "opponents", TEXT_SIZE, RED, bold=True)

    def generated(self, block: int, picture: Image.Image, words: str) -> None:
        """A generated image, beside all its rows, below a rule that opens its block."""
        y = self.row_top(block, 0)
        self.draw.line((_MARGIN, y - 20, self._right, y - 20), fill=RULE, width=2)
        self.picture(_MARGIN, y + FRAME, picture, self._large)
        self.text(_MARGIN, y + FRAME + self._large[1] + 8, words, TEXT_SIZE, INK, self._large[0])

    def step(self, y: int, noisy: Image.Image, predicted: Image.Image, timestep: int) -> None:
        """The two images of one step."""
        self.picture(self._step_x, y + FRAME, noisy, self.size)
        self.picture(self._predicted_x, y + FRAME, predicted, self.size)
        below = y + self.size[1] + 2 * FRAME + 6
        self.text(self._step_x, below, f"t = {timestep}", SMALL_SIZE, SOFT)


def _chosen_steps(timesteps: Sequence[int] | None, scored: list[int], num_queries: int) -> list[int]:
    if timesteps is None:
        count = min(len(scored), max(1, _MAX_ROWS // num_queries))
        # The middles of `count` equal parts, so that a single row shows the middle step.
        return [(2 * i + 1) * len(scored) // (2 * count) for i in range(count)]
    missing = [t for t in timesteps if t not in scored]
    if missing or not timesteps:
        raise ValueError(f"timesteps must be among scores.timesteps {scored}, got {list(timesteps)}")
    return [scored.index(t) for t in timesteps]
