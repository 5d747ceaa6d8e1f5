"""The report: one HTML file that opens offline and shows which training images steered each step, and how much."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from torch import Tensor

from journey.datasets import Dataset, get_image
from journey.report_png import write_png
from journey.report_view import Captions, Entry, View, caption, make_view, to_picture

if TYPE_CHECKING:
    from journey.scoring import Scores
    from journey.trajectory import Trajectory

__all__ = ["write_png", "write_report"]

_MAX_SIDE = 192  # pixels of an embedded picture: twice the largest size shown, for dense screens
_PIXELATED_SIDE = 96  # pictures up to this side are enlarged without smoothing
# Characters that HTML cannot hold even when escaped: controls, surrogates.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def write_report(
    path: str | Path,
    trajectory: Trajectory,
    scores: Scores,
    dataset: Dataset,
    *,
    top: int = 8,
    title: str = "Which training images steered the generation?",
    notes: Sequence[str] = (),
    labels: Captions | None = None,
    query_captions: Sequence[object] | None = None,
) -> Path:
    """Write a self-contained HTML report of the strongest training images at every scored step.

    The file loads nothing from anywhere: pictures, style and script are inside, and a content security policy forbids
    the rest. Without JavaScript all steps are visible; with it a slider and the arrow keys choose the step. All texts
    are escaped. Equal inputs give equal bytes.

    Args:
        path: The file to write; missing folders are made.
        trajectory: The recorded steps, images in [-1, 1]. ``x_t`` [num_queries, num_steps, C, H, W]
        scores: Scores of the same queries, for all recorded steps or some. [num_queries, num_steps, num_train]
        dataset: The training images, indexed by ``scores.train_ids``.
        top: Proponents and opponents shown per step, at most: a proponent has a positive score, an opponent a negative.
        title: Heading of the report.
        notes: Short remarks shown under the introduction, as plain text.
        labels: Captions of the training images, looked up by dataset index.
        query_captions: One caption per generated image.

    Returns:
        The path of the file.

    Raises:
        ValueError: If ``scores`` and ``trajectory`` disagree, ids are outside ``dataset``, scores are not finite, a
            caption is missing, ``top`` is below 1, or images are neither grey nor RGB.
        TypeError: If an item of ``dataset`` is not an image.
    """
    view = make_view(trajectory, scores, len(dataset), top)
    bank = _Bank()
    queries = [_query(view, bank, dataset, query, labels, query_captions) for query in range(view.num_queries)]
    gallery = "".join(
        f'<li><a href="#q{q}">{_picture(bank.add_tensor(image), f"Go to generated image {q + 1}")}'
        f"{_text(caption(query_captions, q, 'query_captions')) or q + 1}</a></li>"
        for q, image in enumerate(view.images)
    )
    style, script = (_resource(name) for name in ("report_template.css", "report_template.js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_sha256(style)}'; script-src '{_sha256(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    step_names = [_step_name(view, step) for step in range(view.num_steps)]
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_text(title)}</title>
<style>{style}</style>
</head>
<body>
{bank.symbols()}
<header>
<h1>{_text(title)}</h1>
{_introduction(view, float(scores.damping), len(scores.train_ids))}
{_notes(notes)}
<nav aria-label="Generated images"><ul class="gallery">{gallery}</ul></nav>
</header>
<div class="scrubber" role="group" aria-label="Choose the step" hidden><div>
<label for="step">Step</label>
<input id="step" type="range" min="0" max="{view.num_steps - 1}" step="1" value="{view.num_steps // 2}" \
data-names="{"|".join(step_names)}">
<output for="step"></output>
<label><input type="checkbox"> show all steps</label>
</div></div>
<main>
{"".join(queries)}
</main>
<footer><p class="soft">The left and right arrow keys move through the steps. Made with journey.</p></footer>
<script>{script}</script>
</body>
</html>
"""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(page.encode("utf-8"))
    return target


class _Bank:
    """Every distinct picture once, as an SVG symbol that any number of places refer to."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._symbols: list[str] = []
        self._training: dict[int, tuple[str, int, int]] = {}

    def add(self, picture: Image.Image) -> tuple[str, int, int]:
        """Keep a picture; returns its name, width and height."""
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG", optimize=True)
        data = base64.b64encode(buffer.getvalue()).decode("ascii")
        width, height = picture.size
        if data not in self._names:
            name = f"i{len(self._names)}"
            self._names[data] = name
            smooth = "" if max(width, height) <= _PIXELATED_SIDE else ' class="smooth"'
            self._symbols.append(
                f'<symbol id="{name}" viewBox="0 0 {width} {height}"><image{smooth} width="{width}" height="{height}" '
                f'href="data:image/png;base64,{data}"/></symbol>'
            )
        return self._names[data], width, height

    def add_tensor(self, image: Tensor) -> tuple[str, int, int]:
        """Keep an image in [-1, 1] [C, H, W]."""
        return self.add(to_picture(image, max_side=_MAX_SIDE))

    def add_training(self, dataset: Dataset, train_id: int) -> tuple[str, int, int]:
        """Keep one training image; the dataset is asked once for each."""
        if train_id not in self._training:
            self._training[train_id] = self.add_tensor(get_image(dataset, train_id))
        return self._training[train_id]

    def symbols(self) -> str:
        return f'<svg class="images" aria-hidden="true">{"".join(self._symbols)}</svg>'


def _query(
    view: View,
    bank: _Bank,
    dataset: Dataset,
    query: int,
    labels: Captions | None,
    query_captions: Sequence[object] | None,
) -> str:
    """One generated image: the image, its strip of steps, and a panel for each step."""
    name = f"Generated image {query + 1}"
    words = _text(caption(query_captions, query, "query_captions"))
    heading = f"{name}: <bdi>{words}</bdi>" if words else name
    final = _picture(bank.add_tensor(view.images[query]), name)
    noisy, predicted = (
        [
            _picture(bank.add_tensor(image), f"{kind} image at t = {t}")
            for t, image in zip(view.timesteps, images, strict=True)
        ]
        for kind, images in (("noisy", view.x_t[query]), ("predicted", view.x0_hat[query]))
    )
    strip = "".join(
        f'<li><a href="#q{query}-s{s}" data-step="{s}">{noisy[s]}{predicted[s]}t = {t}</a></li>'
        for s, t in enumerate(view.timesteps)
    )
    panels = []
    for step in range(view.num_steps):
        sides = "".join(
            _side(view, bank, dataset, query, step, entries, labels, side)
            for side, entries in (
                ("proponents", view.proponents[query][step]),
                ("opponents", view.opponents[query][step]),
            )
        )
        panels.append(
            f'<section class="step" id="q{query}-s{step}" data-step="{step}" aria-labelledby="q{query}-s{step}-h">'
            f'<h3 id="q{query}-s{step}-h">{_step_name(view, step)}</h3><div class="body"><div class="now">'
            f"<figure>{noisy[step]}<figcaption>noisy image x<sub>t</sub></figcaption></figure>"
            f"<figure>{predicted[step]}<figcaption>predicted image</figcaption></figure></div>"
            f"{sides}</div></section>\n"
        )
    return (
        f'<section class="query" id="q{query}" aria-labelledby="q{query}-h"><h2 id="q{query}-h">{heading}</h2>'
        f'<div class="lead"><figure>{final}<figcaption class="soft">the final image</figcaption></figure>'
        '<div><p class="soft">Above the noisy image x<sub>t</sub> at each recorded step, below the image that the '
        f'model predicts from it.</p><ol class="strip">{strip}</ol></div></div>\n{"".join(panels)}</section>\n'
    )


def _side(
    view: View,
    bank: _Bank,
    dataset: Dataset,
    query: int,
    step: int,
    entries: list[Entry],
    labels: Captions | None,
    side: str,
) -> str:
    """The proponents or the opponents of one step, strongest first."""
    kind, sign = ("pro", "positive") if side == "proponents" else ("opp", "negative")
    heading = f'<h4 class="{kind}">{side.capitalize()} ({"+" if kind == "pro" else "−"})</h4>'
    if not entries:
        return f'<div>{heading}<p class="soft">No training image has a {sign} score at this step.</p></div>'
    strongest = view.strongest(query, step)
    cards = []
    for entry in entries:
        words = _text(caption(labels, entry.train_id, "labels"))
        about = f'<bdi title="{words}">{words}</bdi>' if words else ""
        thumbnail = _picture(bank.add_training(dataset, entry.train_id), f"training image {entry.train_id}")
        profile = _profile(view.profiles[query, entry.train_id], step) if view.num_steps > 1 else ""
        cards.append(
            f'<li class="{kind}">{thumbnail}<span class="id"><span>#{entry.train_id}</span>{about}</span>'
            f'<data value="{entry.value:.9g}">{_number(entry.value)}</data>'
            f'<svg class="bar" aria-hidden="true"><rect width="{100 * abs(entry.value) / strongest:.1f}%" '
            f'height="100%"/></svg>{profile}</li>'
        )
    return f'<div>{heading}<ol class="cards">{"".join(cards)}</ol></div>'


def _profile(relative: Sequence[float], step: int) -> str:
    """A training image's score along all steps as upward and downward strokes, the current step shaded."""
    width = 4 * len(relative)
    strokes = {"up": "", "down": ""}
    for s, value in enumerate(relative):
        strokes["up" if value > 0 else "down"] += f"M{4 * s + 2} 11v{-10 * value:.1f}"
    lines = "".join(f'<path class="{kind}" d="{path}"/>' for kind, path in strokes.items() if path)
    return (
        f'<svg class="profile" viewBox="0 0 {width} 22" preserveAspectRatio="none" stroke-width="2.4" '
        f'aria-hidden="true"><rect x="{4 * step}" width="4" height="22"/><path class="axis" d="M0 11h{width}"/>'
        f"{lines}</svg>"
    )


def _introduction(view: View, damping: float, num_train: int) -> str:
    count = "One generated image" if view.num_queries == 1 else f"{view.num_queries} generated images"
    return (
        f"<p>{count}, {view.num_steps} steps between noise and image, {num_train:,} training images. At every "
        'step the training images are ranked by their score. A <strong class="pro">proponent</strong> (+) is an image '
        "on which training makes this step more likely to lead to the generated image; an "
        '<strong class="opp">opponent</strong> (−) makes it less likely.</p>'
        '<p class="soft">The sign of a score says which way it pushes; its unit is arbitrary, so compare sizes within '
        "a step: the bar under an image is its score over the strongest one shown. The small chart follows the same "
        "image through all steps, upward where it helps and downward where it hurts, the present step shaded. "
        f"Relative damping {damping:.3g}.</p>"
    )


def _notes(notes: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{_text(note)}</li>' for note in notes)}</ul>" if notes else ""


def _picture(symbol: tuple[str, int, int], description: str) -> str:
    name, width, height = symbol
    return (
        f'<svg class="px" viewBox="0 0 {width} {height}" role="img" aria-label="{_text(description)}">'
        f'<use href="#{name}"/></svg>'
    )


def _step_name(view: View, step: int) -> str:
    return f"Step {step + 1} of {view.num_steps}, t = {view.timesteps[step]}"


def _number(value: float) -> str:
    """Three digits with a sign; an exponent for sizes that would need leading or trailing zeros."""
    text = f"{value:+#.3g}".rstrip(".") if 1e-3 <= abs(value) < 999.5 else f"{value:+.1e}"
    return text.replace("e-0", "e-").replace("e+0", "e").replace("-", "−")


def _text(value: object) -> str:
    return html.escape(_UNPRINTABLE.sub("\ufffd", str(value)), quote=True)


def _sha256(source: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(source.encode('utf-8')).digest()).decode('ascii')}"


def _resource(name: str) -> str:
    """A file of the package, with the line ends that the browser hashes."""
    return resources.files("journey").joinpath(name).read_text(encoding="utf-8").replace("\r\n", "\n")
