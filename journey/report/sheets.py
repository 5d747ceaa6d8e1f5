"""The pictures of the page: a few sheets of equal tiles, each encoded once in the smallest format that serves."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, features

_SHARP_SIDE = 96  # pictures up to this side may be pixel art: they are stored without loss, enlarged without smoothing
_SHEET_SIDE = 4096  # pixels; every browser decodes this
_LOSSY_QUALITY = 82
_SAMPLE = 25  # pictures on which the format is chosen and the size estimated
# Sides that tiles are reduced to, the largest first that fits: 192 is twice the largest size shown, for dense screens.
_SIDES = (192, 144, 112, 88, 64, 48)
_BUDGET = 5_500_000  # characters of all sheets, which leaves room for the scores of 20 images at 20 steps below 10 MB


@dataclass(frozen=True)
class Sheets:
    """Tiles of one size, row by row on one or several sheets.

    Attributes:
        width: Of a tile.
        height: Of a tile.
        columns: Tiles in a row.
        per_sheet: Tiles on a full sheet.
        sharp: Whether tiles are enlarged without smoothing.
        uris: The sheets as data URIs.
    """

    width: int
    height: int
    columns: int
    per_sheet: int
    sharp: bool
    uris: list[str]

    def as_json(self) -> dict[str, Any]:
        """Return what the page's script reads."""
        return {
            "width": self.width,
            "height": self.height,
            "columns": self.columns,
            "perSheet": self.per_sheet,
            "sharp": self.sharp,
            "uris": self.uris,
        }


class Bank:
    """Distinct pictures of one kind in the order in which they came; equal ones are kept once."""

    def __init__(self) -> None:
        self.pictures: list[Image.Image] = []
        self._places: dict[tuple[str, tuple[int, int], bytes], int] = {}

    def add(self, picture: Image.Image) -> int:
        """Keep a picture; returns its place."""
        key = (picture.mode, picture.size, picture.tobytes())
        if key not in self._places:
            self._places[key] = len(self.pictures)
            self.pictures.append(picture)
        return self._places[key]


def make_sheets(banks: dict[str, Bank]) -> dict[str, Sheets]:
    """Put the pictures of each bank on sheets, reduced as far as the size of the page asks for.

    Args:
        banks: By name, none empty.

    Returns:
        The sheets by the same names.
    """
    plans = {}
    for side in _SIDES:
        plans = {name: _Plan(bank.pictures, side) for name, bank in banks.items()}
        if sum(plan.estimate for plan in plans.values()) <= _BUDGET:
            break
    return {name: plan.encode() for name, plan in plans.items()}


class _Plan:
    """How the pictures of one bank are laid out and stored, decided on a sample of them."""

    def __init__(self, pictures: Sequence[Image.Image], side: int) -> None:
        largest = max(max(picture.size) for picture in pictures)
        factor = min(1.0, side / largest)
        self._pictures = pictures
        self._size = (
            max(1, round(max(picture.width for picture in pictures) * factor)),
            max(1, round(max(picture.height for picture in pictures) * factor)),
        )
        self._sharp = largest <= _SHARP_SIDE
        self._mode = "L" if all(picture.mode == "L" for picture in pictures) else "RGB"
        sample = pictures[:: math.ceil(len(pictures) / _SAMPLE)]
        sheet = self._draw(sample, math.ceil(math.sqrt(len(sample))))
        tried = [(len(_save(sheet, *choice)), choice) for choice in _formats(lossless=self._sharp and factor == 1)]
        size, self._format = min(tried, key=lambda one: one[0])
        self.estimate = math.ceil(size * len(pictures) / len(sample) * 4 / 3)  # base64 writes 3 bytes in 4 characters

    def encode(self) -> Sheets:
        width, height = self._size
        columns = min(max(1, _SHEET_SIDE // width), math.ceil(math.sqrt(len(self._pictures))))
        per_sheet = columns * max(1, _SHEET_SIDE // height)
        kind = self._format[0].lower()
        uris = []
        for begin in range(0, len(self._pictures), per_sheet):
            data = _save(self._draw(self._pictures[begin : begin + per_sheet], columns), *self._format)
            uris.append(f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}")
        return Sheets(width, height, columns, per_sheet, self._sharp, uris)

    def _draw(self, pictures: Sequence[Image.Image], columns: int) -> Image.Image:
        width, height = self._size
        sheet = Image.new(self._mode, (columns * width, math.ceil(len(pictures) / columns) * height))
        for place, picture in enumerate(pictures):
            row, column = divmod(place, columns)
            sheet.paste(self._tile(picture), (column * width, row * height))
        return sheet

    def _tile(self, picture: Image.Image) -> Image.Image:
        """Fit a picture into a tile, centred where its shape differs."""
        width, height = self._size
        factor = min(width / picture.width, height / picture.height, 1.0)
        size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
        drawn = picture.convert(self._mode)
        drawn = drawn if drawn.size == size else drawn.resize(size, Image.Resampling.BOX)
        if size == self._size:
            return drawn
        tile = Image.new(self._mode, self._size)
        tile.paste(drawn, ((width - size[0]) // 2, (height - size[1]) // 2))
        return tile


def _formats(*, lossless: bool) -> list[tuple[str, dict[str, Any]]]:
    """The formats that may be chosen, with their settings; a drawing can be smallest as PNG."""
    choices: list[tuple[str, dict[str, Any]]] = [("PNG", {"optimize": True})]
    if not lossless:
        choices.append(("JPEG", {"quality": _LOSSY_QUALITY, "optimize": True}))
    if features.check("webp"):
        quality = {"lossless": True, "quality": 80} if lossless else {"quality": _LOSSY_QUALITY}
        choices.append(("WEBP", {**quality, "method": 4}))
    return choices


def _save(sheet: Image.Image, name: str, options: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    sheet.save(buffer, format=name, **options)
    return buffer.getvalue()
