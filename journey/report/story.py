"""The sentences of the page: which steps decide, who the proponents are then, and who changes sides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch

from journey.generation.transitions import Transition
from journey.report.view import Captions, Entry, View, caption

Transitions = Mapping[tuple[int, str], Transition]

_TURN = 0.3  # a side counts once its score reaches this share of the strongest of its step
_NAMED = 3  # training images named in a sentence
_LONGEST = 48  # characters of a caption in a sentence


def find_turncoat(view: View, query: int) -> tuple[int | str, int, int] | None:
    """The shown training image that helps most at one step and hurts most at another.

    Args:
        view: What is shown.
        query: Which generated image.

    Returns:
        Its id, and the steps at which it helps and hurts most; None if none does both clearly.
    """
    ids = view.shown(query, view.rankings[0])
    if not ids:
        return None
    columns = {train_id: column for column, train_id in enumerate(view.train_ids)}
    curves = view.rankings[0].relative(query)[:, [columns[train_id] for train_id in ids]]
    strength = torch.minimum(curves.amax(0), -curves.amin(0))
    best = int(strength.argmax())
    if float(strength[best]) < _TURN:
        return None
    return ids[best], int(curves[:, best].argmax()), int(curves[:, best].argmin())


def tell(view: View, query: int, transitions: Transitions, labels: Captions | None) -> list[str]:
    """Tell one generated image's story in a few sentences.

    Args:
        view: What is shown.
        query: Which generated image.
        transitions: Of (query, name of the feature).
        labels: Captions of the training images.

    Returns:
        The sentences, the most important first.
    """
    sentences = []
    mine = {name: found for (which, name), found in transitions.items() if which == query}
    for name, found in mine.items():
        sentences += _decided(view, query, name, found, labels)
    if not mine and view.num_steps > 1:
        sentences.append(_prediction(view, query))
    if not any(found.found for found in mine.values()):
        sentences += _strongest(view, query, labels)
    turn = find_turncoat(view, query)
    if turn is not None:
        train_id, helps, hurts = turn
        who = f"Training image {_name(train_id, view.places[train_id], labels)}"
        there, back = f"helps at {_at(view.timesteps[helps])}", f"hurts at {_at(view.timesteps[hurts])}"
        sentences.append(f"{who} {there} and {back}." if helps < hurts else f"{who} {back} and {there}.")
    return sentences


def describe(entries: Sequence[Entry], labels: Captions | None) -> str:
    """Say who some training images are: by the caption that most share, or by their names."""
    words = _shared(entries, labels)
    if words:
        return f"{_count(entries, words, labels)} of the {len(entries)} strongest proponents are “{_short(words)}”"
    names = [_name(entry.train_id, entry.position, labels) for entry in entries[:_NAMED]]
    if not names:
        return "no training image is a proponent"
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"{'the strongest proponent is' if len(names) == 1 else 'the strongest proponents are'} {listed}"


def _decided(view: View, query: int, name: str, found: Transition, labels: Captions | None) -> list[str]:
    if not found.found:
        return [f"No steps were found that decide “{name}”: its likelihood does not rise clearly."]
    first, end = found.interval
    fitted = {t: f"{100 * p:.0f}\u00a0%" for t, p in zip(found.timesteps.tolist(), found.fitted.tolist(), strict=True)}
    sentences = [
        f"“{name}” is decided between {_at(end - 1)} and {_at(first - 1)}: of the images that can still come out, "
        f"{fitted[end - 1]} have it before and {fitted[first - 1]} after."
    ]
    inside, before = view.average(query, first, end), view.average(query, end, view.timesteps[0] + 1)
    if not inside:
        return sentences
    # A feature that is named as training images are is counted by its name.
    known = labels is not None and any(caption(labels, e.position, "labels") == name for e in inside + before)
    words = name if known else _shared(inside, labels)
    if words:
        count = f"{_count(inside, words, labels)} of the {len(inside)} strongest proponents are “{_short(words)}”"
        earlier = f"{_count(before, words, labels)} of {len(before)}"
    else:
        count, earlier = describe(inside, labels), describe(before, labels)
    then = f"; in the steps before, {earlier}" if before else ""
    return [*sentences, f"In these steps {count}{then}."]


def _shared(entries: Sequence[Entry], labels: Captions | None) -> str:
    """The caption that most of some training images share; empty if no two do."""
    if labels is None or not entries:
        return ""
    words, count = Counter(caption(labels, e.position, "labels") for e in entries).most_common(1)[0]
    return words if count > 1 else ""


def _count(entries: Sequence[Entry], words: str, labels: Captions | None) -> int:
    return sum(caption(labels, entry.position, "labels") == words for entry in entries)


def _prediction(view: View, query: int) -> str:
    """Where the predicted image goes from a quarter to three quarters of its way to the final one."""
    gaps = (view.predicted[query] - view.images[query]).square().flatten(1).mean(1)
    done = (1 - gaps / gaps[0]) if float(gaps[0]) > 0 else gaps.new_ones(len(gaps))
    after = next((s for s in range(view.num_steps) if float(done[s]) >= 0.75), view.num_steps - 1)
    before = max((s for s in range(after + 1) if float(done[s]) < 0.25), default=0)
    return (
        f"The predicted image makes most of its way to the final one between {_at(view.timesteps[before])} and "
        f"{_at(view.timesteps[after])}."
    )


def _strongest(view: View, query: int, labels: Captions | None) -> list[str]:
    ranking = view.rankings[0]
    if view.num_steps == 1:
        words = describe(ranking.proponents[query][0], labels)
        return [f"{words[0].upper()}{words[1:]}."]
    sides = [(view.timesteps[s], ranking.proponents[query][s][:1]) for s in (0, view.num_steps - 1)]
    named = [
        f"{_name(entries[0].train_id, entries[0].position, labels)} at {_at(t)}" for t, entries in sides if entries
    ]
    return [f"The strongest proponent is {' and '.join(named)}."] if named else []


def _name(train_id: int | str, position: int, labels: Captions | None) -> str:
    words = caption(labels, position, "labels")
    name = f"#{_short(str(train_id))}"
    return f"{name} “{_short(words)}”" if words else name


def _at(timestep: int) -> str:
    """A timestep, not broken over lines."""
    return f"t\u00a0=\u00a0{timestep}"


def _short(words: str) -> str:
    return words if len(words) <= _LONGEST else f"{words[: _LONGEST - 1]}…"
