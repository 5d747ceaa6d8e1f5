"""The data of the page: everything that its script shows, as plain JSON values."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from journey.data.items import Dataset, get_image
from journey.generation.transitions import Transition
from journey.report.group_bars import group_bars, largest_groups, short
from journey.report.sheets import Bank, make_sheets
from journey.report.story import Transitions, find_turncoat, tell
from journey.report.view import Captions, Entry, Ranking, View, caption, to_picture
from journey.scores.groups import NOISE_LEVEL, Groups

# What can be neither in HTML nor in UTF-8: controls other than white space, surrogates.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def clean(value: object) -> str:
    """Return a text with the replacement character for what a page cannot hold."""
    return _UNPRINTABLE.sub("\ufffd", str(value))


def to_script_json(data: Any) -> str:
    """Write JSON that can stand in a script element: nothing in it can end the element or begin a comment."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def make_payload(
    view: View,
    dataset: Dataset,
    transitions: Transitions,
    labels: Captions | None,
    query_captions: Sequence[object] | None,
    groups: Sequence[Groups] | None = None,
) -> dict[str, Any]:
    """Collect what the page shows.

    Args:
        view: Steps and rankings.
        dataset: The training images; each that is shown is asked for once.
        transitions: Of (query, name of the feature).
        labels: Captions of the training images.
        query_captions: One caption per generated image.
        groups: The sums of groups of training images, of each ranking.

    Returns:
        Values that JSON can hold. Tiles are places on the sheets of their kind.

    Raises:
        ValueError: If a caption is missing or an image is neither grey nor RGB.
        TypeError: If an item of ``dataset`` is not an image.
    """
    noisy, predicted, training = Bank(), Bank(), Bank()
    queries = []
    largest = [] if not groups else largest_groups(groups)

    def bars(query: int, place: int) -> dict[str, Any]:
        return {} if not groups else {"groups": group_bars(groups[place], query, largest)}

    shown: set[int | str] = set()
    for query in range(view.num_queries):
        mine = [(name, found) for (which, name), found in transitions.items() if which == query]
        features = [_feature(view, query, name, found) for name, found in mine]
        ids = {train_id for feature in features for side in ("inside", "before") for train_id, *_ in feature[side]}
        ids = ids.union(*(view.shown(query, ranking) for ranking in view.rankings))
        shown |= ids
        turn = find_turncoat(view, query)
        queries.append(
            {
                "caption": clean(caption(query_captions, query, "query_captions")),
                "story": [clean(sentence) for sentence in tell(view, query, transitions, labels)],
                "pins": [] if turn is None else [turn[0]],
                "noisy": [noisy.add(to_picture(image)) for image in view.noisy[query]],
                "predicted": [predicted.add(to_picture(image)) for image in view.predicted[query]],
                "image": predicted.add(to_picture(view.images[query])),
                "scopes": [
                    _scope(view, query, ranking, sorted(ids)) | bars(query, place)
                    for place, ranking in enumerate(view.rankings)
                ],
                "features": features,
            }
        )
    places = {i: view.places[i] for i in sorted(shown)}
    tiles = {i: training.add(to_picture(get_image(dataset, position))) for i, position in places.items()}
    words = {i: clean(caption(labels, position, "labels")) for i, position in places.items()}
    banks = {"noisy": noisy, "predicted": predicted, "training": training}
    return {
        "timesteps": view.timesteps,
        "sheets": {
            name: sheets.as_json()
            for name, sheets in make_sheets({k: v for k, v in banks.items() if v.pictures}).items()
        },
        "training": {str(i): [tile, words[i]] for i, tile in tiles.items()},
        "groups": [[_name_of(groups[0].names[g]), groups[0].sizes[g]] for g in largest] if groups else [],
        "unnamed": groups[0].num_named - sum(groups[0].names[g] is not None for g in largest) if groups else 0,
        "queries": queries,
    }


def _scope(view: View, query: int, ranking: Ranking, ids: list[int | str]) -> dict[str, Any]:
    """The rankings of the whole image or of one region, and the curves of the images shown, in percent."""
    columns = {train_id: column for column, train_id in enumerate(view.train_ids)}
    percent = (100 * ranking.relative(query)).round().to(torch.int64)
    mask = None if ranking.masks is None else ranking.masks[query]
    return {
        "name": clean(ranking.name),
        # Of a video the frames stand beside each other, and a region is in each.
        "box": None if mask is None or mask.shape != view.images.shape[-2:] else _box(mask),
        "pro": [_entries(entries) for entries in ranking.proponents[query]],
        "opp": [_entries(entries) for entries in ranking.opponents[query]],
        "curves": {str(i): percent[:, columns[i]].tolist() for i in ids},
    }


def _box(mask: Tensor) -> list[float]:
    """Top, left, bottom and right of the part of a mask with at least half its largest weight, in percent."""
    inside = mask >= mask.max() / 2
    edges = []
    for axis in (0, 1):
        places = inside.any(1 - axis).nonzero().flatten()
        edges.append([100 * int(places[0]) / mask.shape[axis], 100 * (int(places[-1]) + 1) / mask.shape[axis]])
    (top, bottom), (left, right) = edges
    return [round(edge, 2) for edge in (top, left, bottom, right)]


def _feature(view: View, query: int, name: str, found: Transition) -> dict[str, Any]:
    """The likelihood of a feature at the steps looked at, in percent, and who pushed while it was decided."""
    lower, upper = found.band
    first, end = found.interval if found.found else (0, 0)
    return {
        "name": clean(name),
        "timesteps": found.timesteps.tolist(),
        "likelihood": _percent(found.likelihood),
        "lower": _percent(lower),
        "upper": _percent(upper),
        "confidence": round(100 * found.confidence),
        "completions": found.outcomes.shape[1],
        # The interval holds steps; drawn is the way from the latent before the first to the one after the last.
        "interval": [first - 1, end - 1] if found.found else None,
        "midpoint": [round(float(t)) for t in (*found.uncertainty[:, 2], found.midpoint)] if found.found else None,
        "inside": _entries(view.average(query, first, end)) if found.found else [],
        "before": _entries(view.average(query, end, view.timesteps[0] + 1)) if found.found else [],
    }


def _name_of(group: str | None) -> str:
    return "in no group" if group is None else clean(group)


def _percent(values: Tensor) -> list[float]:
    return [round(100 * value, 1) for value in values.tolist()]


def _entries(entries: list[Entry]) -> list[list[int | str | float | None]]:
    """Id, score, and what it may be off by to either side. Each [3]"""
    return [[entry.train_id, short(entry.value), short(NOISE_LEVEL * entry.error)] for entry in entries]
