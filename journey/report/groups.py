"""The groups' picture: one PNG of bars with their errors, for one generated image at one step."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from journey.report.draw import GREEN, INK, LINE, RED, RULE, SMALL_SIZE, SOFT, TEXT_SIZE, TITLE_SIZE, TRACK, Sheet
from journey.report.view import format_number
from journey.scores.groups import NOISE_LEVEL

if TYPE_CHECKING:
    from journey.scores.groups import Groups

# Sizes are for a picture seen at half its pixels, as those of ``png``.
_MARGIN = 40
_NAMES, _BARS, _NUMBERS = 330, 640, 330  # widths of the columns
_GAP = 24
_ROW, _BAR = 58, 24
_HEAD = 150
_REST = "in no group"


def write_groups_png(
    path: str | Path,
    groups: Groups,
    *,
    query: int = 0,
    step: int | None = None,
    top: int = 16,
    title: str = "Whose images steered the generation?",
) -> Path:
    """Draw the sums of the groups as bars, the highest first, with two standard errors on either side.

    Sums within the noise are grey, the others green if positive and red if negative. Equal inputs give equal pixels.

    Args:
        path: The file to write; missing folders are made.
        groups: What ``Scores.groups`` returned.
        query: Which generated image.
        step: Which timestep; None is the only one.
        top: Groups shown at most, the largest sums of either sign; the images in no group come below them.
        title: First line of the picture.

    Returns:
        The path of the file.

    Raises:
        ValueError: If ``query`` or ``step`` is not there, none is named and there are several steps, or ``top`` is
            below 1.
    """
    index = _step(groups, query, step)
    if top < 1:
        raise ValueError(f"top must be at least 1, got {top}")
    sums = groups.sums[query, index].tolist()
    largest = sorted(range(groups.num_named), key=lambda g: -abs(sums[g]))[:top]
    rows = sorted(largest, key=lambda g: -sums[g]) + list(range(groups.num_named, len(groups.names)))
    left_out = groups.num_named - len(largest)
    width = 2 * _MARGIN + _NAMES + _BARS + _NUMBERS + 2 * _GAP
    sheet = Sheet(width, _HEAD + len(rows) * _ROW + (LINE if left_out else 0) + _MARGIN)
    _header(sheet, title, groups, index)
    margins = [0.0 if math.isnan(e) else NOISE_LEVEL * e for e in groups.errors[query, index].tolist()]
    scale = _Scale([sums[g] for g in rows], [margins[g] for g in rows])
    sheet.draw.line((scale.zero, _HEAD - 8, scale.zero, _HEAD + len(rows) * _ROW - 8), fill=RULE, width=2)
    for place, g in enumerate(rows):
        _row(sheet, _HEAD + place * _ROW, groups, (query, index, g), scale, margins[g])
    if left_out:
        words = f"and {left_out} more, with smaller sums"
        sheet.text(_MARGIN, _HEAD + len(rows) * _ROW, words, SMALL_SIZE, SOFT)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    sheet.image.save(target, format="PNG")
    return target


class _Scale:
    """Where numbers lie in the column of bars, with zero in it."""

    def __init__(self, sums: list[float], margins: list[float]) -> None:
        low = min(0.0, *(value - margin for value, margin in zip(sums, margins, strict=True)))
        high = max(0.0, *(value + margin for value, margin in zip(sums, margins, strict=True)))
        self._unit = _BARS / (high - low) if high > low else 0.0
        self._low = low
        self.zero = self.at(0.0)

    def at(self, value: float) -> int:
        return _MARGIN + _NAMES + _GAP + round((value - self._low) * self._unit)


def _header(sheet: Sheet, title: str, groups: Groups, index: int) -> None:
    right = sheet.image.width - _MARGIN
    timestep = int(groups.timesteps[index])
    when = f" at t = {timestep}" if len(groups.timesteps) > 1 or timestep else ""
    sheet.text(_MARGIN, _MARGIN - 8, title, TITLE_SIZE, INK, right - _MARGIN, bold=True)
    x: float = _MARGIN
    parts: list[tuple[str, str]] = [
        (f"Sums of scores{when}, with two standard errors on either side: ", SOFT),
        ("for", GREEN),
        (" the image, ", SOFT),
        ("against", RED),
        (" it, or within the noise (grey).", SOFT),
    ]
    if groups.errors[:, index].isnan().all():
        parts = [(f"Sums of scores{when}. Their standard errors are not known.", SOFT)]
    for words, color in parts:
        x = sheet.text(x, _MARGIN + 46, words, TEXT_SIZE, color, right - x, bold=color != SOFT)


def _row(sheet: Sheet, y: int, groups: Groups, place: tuple[int, int, int], scale: _Scale, margin: float) -> None:
    """One group: its name and size, its bar with the error, its sum, share and rank."""
    value, group = groups.sums[place].item(), place[2]
    above = bool(groups.above_noise()[place])
    color = SOFT if not above else GREEN if value > 0 else RED
    name = groups.names[group]
    sheet.text(_MARGIN, y - 4, _REST if name is None else name, TEXT_SIZE, SOFT if name is None else INK, _NAMES)
    count = groups.sizes[group]
    sheet.text(_MARGIN, y + 22, f"{count:,} image{'s' if count != 1 else ''}", SMALL_SIZE, SOFT, _NAMES)
    first, last = sorted((scale.zero, scale.at(value)))
    sheet.draw.rectangle(
        (first, y + 4, max(last, first + 1), y + 3 + _BAR), fill=color if above else TRACK, outline=color
    )
    if margin > 0:
        low, high, middle = scale.at(value - margin), scale.at(value + margin), y + 4 + _BAR // 2
        sheet.draw.line((low, middle, high, middle), fill=INK, width=2)
        for end in (low, high):
            sheet.draw.line((end, middle - 6, end, middle + 6), fill=INK, width=2)
    x = _MARGIN + _NAMES + _BARS + 2 * _GAP
    share = f"{100 * groups.shares()[place].item():+.1f} %"
    sheet.text(x, y - 4, f"{format_number(value)}   share {share}", TEXT_SIZE, color, _NUMBERS, bold=above)
    if name is not None:
        best, worst = groups.ranks()[place].tolist()
        sheet.text(
            x, y + 22, f"rank {best}" if best == worst else f"rank {best} to {worst}", SMALL_SIZE, SOFT, _NUMBERS
        )


def _step(groups: Groups, query: int, step: int | None) -> int:
    """The place of a step."""
    if not 0 <= query < len(groups.sums):
        raise ValueError(f"query must be among 0..{len(groups.sums) - 1}, got {query}")
    timesteps = groups.timesteps.tolist()
    if step is None and len(timesteps) == 1:
        return 0
    if step not in timesteps:
        raise ValueError(f"step must be one of the timesteps {timesteps}, got {step}")
    place: int = timesteps.index(step)
    return place
