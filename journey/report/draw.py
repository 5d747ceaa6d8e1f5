"""What the picture and the animation draw with: one typeface, colours, framed training images."""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from journey.data.items import Dataset, get_image
from journey.report.view import Captions, Entry, caption, format_number, to_picture

TITLE_SIZE, TEXT_SIZE, SMALL_SIZE = 36, 24, 21
TILE = 96  # side of a picture, met from below by whole multiples of its pixels
FRAME = 5
GAP = 14  # between pictures of one kind
BAR = 8
LINE = 27  # height of a line of small text

PAPER, INK, SOFT, RULE, TRACK = "#ffffff", "#1c1d20", "#5b5f66", "#dcdcd6", "#eceef2"
GREEN, RED = "#0b8a5c", "#c93a23"


class Sheet:
    """A sheet of paper to draw on.

    Attributes:
        image: What was drawn.
        draw: Pillow's pen.
    """

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width, height), PAPER)
        self.draw = ImageDraw.Draw(self.image)
        self._fonts = {size: ImageFont.load_default(size) for size in (TITLE_SIZE, TEXT_SIZE, SMALL_SIZE)}

    def picture(self, x: int, y: int, picture: Image.Image, size: tuple[int, int]) -> None:
        """Draw a picture, scaled to ``size``."""
        self.image.paste(scaled(picture, size), (x, y))

    def side(
        self,
        x: int,
        y: int,
        entries: Sequence[Entry],
        size: tuple[int, int],
        color: str,
        strongest: float,
        dataset: Dataset,
        labels: Captions | None,
    ) -> None:
        """Draw the proponents or the opponents of one step, strongest first."""
        for column, entry in enumerate(entries):
            picture, words = to_picture(get_image(dataset, entry.position)), caption(labels, entry.position, "labels")
            self.training(x + column * pitch(size), y, picture, size, color, entry, words, strongest)

    def training(
        self,
        x: int,
        y: int,
        picture: Image.Image,
        size: tuple[int, int],
        color: str,
        entry: Entry,
        words: str,
        strongest: float,
    ) -> None:
        """One framed training image with a bar, its id and caption, and its score."""
        width, height = size[0] + 2 * FRAME, size[1] + 2 * FRAME
        self.draw.rectangle((x, y, x + width - 1, y + height - 1), fill=color)
        self.picture(x + FRAME, y + FRAME, picture, size)
        bar = y + height + 4
        self.draw.rectangle((x, bar, x + width - 1, bar + BAR - 1), fill=TRACK)
        length = max(1, round(width * abs(entry.value) / strongest))
        self.draw.rectangle((x, bar, x + length - 1, bar + BAR - 1), fill=color)
        line = bar + BAR + 3
        end = self.text(x, line, f"#{entry.train_id} ", SMALL_SIZE, SOFT, width * 2 // 3 if words else width)
        if words:
            self.text(end, line, words, SMALL_SIZE, INK, x + width - end, bold=True)
        self.text(x, line + LINE - 3, format_number(entry.value), SMALL_SIZE, color, width)

    def text(
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
            self.draw.text((x + offset, y), words, font=font, fill=color)
        return x + font.getlength(words)


def with_credit(picture: Image.Image, credit: str) -> Image.Image:
    """Write a text below a picture, in as many lines as it needs; an empty one changes nothing."""
    if not credit:
        return picture
    font, lines = ImageFont.load_default(SMALL_SIZE), [""]
    for word in credit.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > picture.width - 2 * LINE:
            lines.append(word)
        else:
            lines[-1] = longer
    sheet = Sheet(picture.width, picture.height + (len(lines) + 1) * LINE)
    sheet.image.paste(picture, (0, 0))
    for i, line in enumerate(lines):
        sheet.text(LINE, picture.height + i * LINE, line, SMALL_SIZE, INK)
    return sheet.image


def pitch(size: tuple[int, int]) -> int:
    """How far apart framed pictures of one size stand."""
    return size[0] + 2 * FRAME + GAP


def fit(width: int, height: int, side: int) -> tuple[int, int]:
    """Size at which a picture is drawn: enlarged by a whole factor up to ``side``, or reduced to it."""
    longest = max(width, height)
    if longest <= side:
        return width * (side // longest), height * (side // longest)
    return max(1, width * side // longest), max(1, height * side // longest)


def scaled(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
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
    sheet = Image.new("RGB", size, PAPER)
    sheet.paste(drawn, ((size[0] - fitted[0]) // 2, (size[1] - fitted[1]) // 2))
    return sheet
