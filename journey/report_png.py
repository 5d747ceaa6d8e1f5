"""The report's picture: one PNG of generated images, their steps, and the training images behind each step."""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from journey.datasets import Dataset, get_image
from journey.report_view import Captions, Entry, View, caption, make_view, to_picture

if TYPE_CHECKING:
    from journey.scoring import Scores
    from journey.trajectory import Trajectory

# Sizes are for a picture seen at half its pixels, as in a README on a dense screen: 22 here reads as 11 there.
_TILE = 96  # side of a picture, met from below by whole multiples of its pixels
_FRAME = 5
_GAP = 14
_BAR = 8
_MARGIN = 40
_SECTION = 44  # between the columns that mean different things
_TITLE_SIZE, _TEXT_SIZE, _SMALL_SIZE = 36, 24, 21
_LINE = 27  # height of a line of small text
_MAX_ROWS = 8  # rows chosen when the caller names no timesteps

_PAPER, _INK, _SOFT, _RULE, _TRACK = "#ffffff", "#1c1d20", "#5b5f66", "#dcdcd6", "#eceef2"
_GREEN, _RED = "#0b8a5c", "#c93a23"


def write_png(
    path: str | Path,
    trajectory: Trajectory,
    scores: Scores,
    dataset: Dataset,
    *,
    query: int | Sequence[int] | None = None,
    timesteps: Sequence[int] | None = None,
    top: int = 6,
    title: str = "Which training images steered the generation?",
    labels: Captions | None = None,
    query_captions: Sequence[object] | None = None,
) -> Path:
    """Draw generated images, their noisy and predicted images along the steps, and the strongest training images.

    A row is one step of one generated image: x_t, the image predicted from it, proponents in green frames, opponents in
    red frames. Pictures are enlarged by a whole factor without smoothing. Equal inputs give equal pixels.

    Args:
        path: The file to write; missing folders are made.
        trajectory: The recorded steps, images in [-1, 1]. ``x_t`` [num_queries, num_steps, C, H, W]
        scores: Scores of the same queries, for all recorded steps or some. [num_queries, num_steps, num_train]
        dataset: The training images, indexed by ``scores.train_ids``.
        query: Which generated images to show, one or several positions; None shows all.
        timesteps: Which scored timesteps to show; None spreads about eight rows evenly over them.
        top: Proponents and opponents per row, at most.
        title: First line of the picture.
        labels: Captions of the training images, looked up by dataset index.
        query_captions: One caption per generated image.

    Returns:
        The path of the file.

    Raises:
        ValueError: If ``scores`` and ``trajectory`` disagree, ``query`` or ``timesteps`` names what is not there, ids
            are outside ``dataset``, scores are not finite, a caption is missing, ``top`` is below 1, or images are
            neither grey nor RGB.
        TypeError: If an item of ``dataset`` is not an image.
    """
    view = make_view(trajectory, scores, len(dataset), top)
    queries = _chosen_queries(query, view.num_queries)
    steps = _chosen_steps(timesteps, view.timesteps, len(queries))
    canvas = _Canvas(view, len(queries), len(steps), min(top, len(scores.train_ids)))
    canvas.header(title)
    for block, q in enumerate(queries):
        words = caption(query_captions, q, "query_captions")
        canvas.generated(block, to_picture(view.images[q]), words or f"image {q + 1}")
        for row, s in enumerate(steps):
            y = canvas.row_top(block, row)
            canvas.step(y, to_picture(view.x_t[q, s]), to_picture(view.x0_hat[q, s]), view.timesteps[s])
            for x, color, entries in (
                (canvas.proponents_x, _GREEN, view.proponents[q][s]),
                (canvas.opponents_x, _RED, view.opponents[q][s]),
            ):
                for column, entry in enumerate(entries):
                    words = caption(labels, entry.train_id, "labels")
                    picture = to_picture(get_image(dataset, entry.train_id))
                    canvas.training(x + column * canvas.pitch, y, picture, color, entry, words, view.strongest(q, s))
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    canvas.image.save(target, format="PNG")
    return target


class _Canvas:
    """The sheet and where everything goes on it."""

    def __init__(self, view: View, num_blocks: int, num_rows: int, top: int) -> None:
        height, width = view.images.shape[-2:]
        self._size = _fit(width, height, _TILE)
        self._large = _fit(width, height, 2 * _TILE)
        self._fonts = {size: ImageFont.load_default(size) for size in (_TITLE_SIZE, _TEXT_SIZE, _SMALL_SIZE)}
        tile_width, tile_height = self._size
        self.pitch = tile_width + 2 * _FRAME + _GAP
        side_width = top * self.pitch - _GAP
        self._step_x = _MARGIN + self._large[0] + _SECTION
        self._predicted_x = self._step_x + self.pitch
        self.proponents_x = self._predicted_x + self.pitch - _GAP + _SECTION
        self.opponents_x = self.proponents_x + side_width + _SECTION
        self._right = self.opponents_x + side_width
        self._head = _MARGIN + 150
        self._row_height = tile_height + 2 * _FRAME + _BAR + 2 * _LINE + 24
        self._block_height = max(num_rows * self._row_height, self._large[1] + 2 * _FRAME + _LINE + 24) + 20
        height = self._head + num_blocks * self._block_height + _MARGIN - 24
        self.image = Image.new("RGB", (self._right + _MARGIN, height), _PAPER)
        self._draw = ImageDraw.Draw(self.image)

    def row_top(self, block: int, row: int) -> int:
        return self._head + 20 + block * self._block_height + row * self._row_height

    def header(self, title: str) -> None:
        """The title, what the colours mean, and the names of the columns."""
        self._text(_MARGIN, _MARGIN - 8, title, _TITLE_SIZE, _INK, self._right - _MARGIN, bold=True)
        line = _MARGIN + 46
        x: float = _MARGIN
        for words, color in (
            ("Each row is one denoising step. Training on a ", _SOFT),
            ("green", _GREEN),
            (" image makes the step more likely to lead to the generated image, on a ", _SOFT),
            ("red", _RED),
            (" one less likely.", _SOFT),
        ):
            x = self._text(x, line, words, _TEXT_SIZE, color, self._right - x, bold=color != _SOFT)
        line = self._head - 38
        self._text(_MARGIN, line, "generated", _TEXT_SIZE, _INK)
        self._text(self._step_x, line, "noisy", _TEXT_SIZE, _INK)
        self._text(self._predicted_x, line, "predicted", _TEXT_SIZE, _INK)
        self._text(self.proponents_x, line, "proponents", _TEXT_SIZE, _GREEN, bold=True)
        self._text(self.opponents_x, line, "opponents", _TEXT_SIZE, _RED, bold=True)

    def generated(self, block: int, picture: Image.Image, words: str) -> None:
        """A generated image, beside all its rows, below a rule that opens its block."""
        y = self.row_top(block, 0)
        self._draw.line((_MARGIN, y - 20, self._right, y - 20), fill=_RULE, width=2)
        self.image.paste(_scaled(picture, self._large), (_MARGIN, y + _FRAME))
        self._text(_MARGIN, y + _FRAME + self._large[1] + 8, words, _TEXT_SIZE, _INK, self._large[0])

    def step(self, y: int, noisy: Image.Image, predicted: Image.Image, timestep: int) -> None:
        """The two images of one step."""
        self.image.paste(_scaled(noisy, self._size), (self._step_x, y + _FRAME))
        self.image.paste(_scaled(predicted, self._size), (self._predicted_x, y + _FRAME))
        below = y + self._size[1] + 2 * _FRAME + 6
        self._text(self._step_x, below, f"t = {timestep}", _SMALL_SIZE, _SOFT)

    def training(
        self, x: int, y: int, picture: Image.Image, color: str, entry: Entry, words: str, strongest: float
    ) -> None:
        """One framed training image with a bar, its id and caption, and its score."""
        width, height = self._size[0] + 2 * _FRAME, self._size[1] + 2 * _FRAME
        self._draw.rectangle((x, y, x + width - 1, y + height - 1), fill=color)
        self.image.paste(_scaled(picture, self._size), (x + _FRAME, y + _FRAME))
        bar = y + height + 4
        self._draw.rectangle((x, bar, x + width - 1, bar + _BAR - 1), fill=_TRACK)
        length = max(1, round(width * abs(entry.value) / strongest))
        self._draw.rectangle((x, bar, x + length - 1, bar + _BAR - 1), fill=color)
        line = bar + _BAR + 3
        end = self._text(x, line, f"#{entry.train_id} ", _SMALL_SIZE, _SOFT, width)
        if words:
            self._text(end, line, words, _SMALL_SIZE, _INK, x + width - end, bold=True)
        self._text(x, line + _LINE - 3, _number(entry.value), _SMALL_SIZE, color, width)

    def _text(
        self, x: float, y: float, words: str, size: int, color: str, room: float | None = None, *, bold: bool = False
    ) -> float:
        """Write one line, shortened to ``room`` pixels; returns where it ends."""
        # Pillow's own typeface, the one that every machine has, knows ASCII alone: accents are dropped, other
        # characters become "?". It has no bold cut either: a second stroke beside the first stands in.
        font = self._fonts[size]
        words = unicodedata.normalize("NFKD", "".join(c if c.isprintable() else " " for c in words))
        words = "".join(c for c in words if not unicodedata.combining(c)).encode("ascii", "replace").decode("ascii")
        if room is not None and font.getlength(words.rstrip()) > room:
            # The first length that is too long, less one: text grows with its length, and captions can be long.
            longest = bisect_right(range(1, len(words)), room, key=lambda n: font.getlength(words[:n] + "..."))
            words = words[:longest] + "..."
        for offset in (0, 1) if bold else (0,):
            self._draw.text((x + offset, y), words, font=font, fill=color)
        return x + font.getlength(words)


def _chosen_queries(query: int | Sequence[int] | None, num_queries: int) -> list[int]:
    chosen = list(range(num_queries)) if query is None else [query] if isinstance(query, int) else list(query)
    outside = [q for q in chosen if not 0 <= q < num_queries]
    if outside or not chosen:
        raise ValueError(f"query must be among 0..{num_queries - 1}, the generated images of trajectory, got {query}")
    return chosen


def _chosen_steps(timesteps: Sequence[int] | None, scored: list[int], num_queries: int) -> list[int]:
    if timesteps is None:
        count = min(len(scored), max(1, _MAX_ROWS // num_queries))
        # The middles of `count` equal parts, so that a single row shows the middle step.
        return [(2 * i + 1) * len(scored) // (2 * count) for i in range(count)]
    missing = [t for t in timesteps if t not in scored]
    if missing or not timesteps:
        raise ValueError(f"timesteps must be among scores.timesteps {scored}, got {list(timesteps)}")
    return [scored.index(t) for t in timesteps]


def _fit(width: int, height: int, side: int) -> tuple[int, int]:
    """Size at which a picture is drawn: enlarged by a whole factor up to ``side``, or reduced to it."""
    longest = max(width, height)
    if longest <= side:
        return width * (side // longest), height * (side // longest)
    return max(1, width * side // longest), max(1, height * side // longest)


def _scaled(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Fit a picture into ``size``, centred on paper when its shape differs."""
    width, height = picture.size
    if size[0] % width == 0 and size[1] % height == 0 and size[0] // width == size[1] // height:
        fitted = size
    else:
        factor = min(size[0] / width, size[1] / height)
        fitted = (max(1, round(width * factor)), max(1, round(height * factor)))
    reducing = fitted[0] < width
    drawn = picture.resize(fitted, Image.Resampling.BOX if reducing else Image.Resampling.NEAREST).convert("RGB")
    if fitted == size:
        return drawn
    sheet = Image.new("RGB", size, _PAPER)
    sheet.paste(drawn, ((size[0] - fitted[0]) // 2, (size[1] - fitted[1]) // 2))
    return sheet


def _number(value: float) -> str:
    """Three digits with a sign; an exponent for sizes that would need leading or trailing zeros."""
    text = f"{value:+#.3g}".rstrip(".") if 1e-3 <= abs(value) < 999.5 else f"{value:+.1e}"
    return text.replace("e-0", "e-").replace("e+0", "e")
