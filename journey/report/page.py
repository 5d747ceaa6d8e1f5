"""The report: one HTML file that opens offline and shows which training images steered each step, and how much."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from journey.data.items import Dataset
from journey.report.payload import clean, make_payload, to_script_json
from journey.report.story import Transitions
from journey.report.view import TITLE, Captions, View, make_view, places_of

if TYPE_CHECKING:
    from journey.generation.trajectory import Trajectory
    from journey.scores.scores import Scores


def write_report(
    path: str | Path,
    trajectory: Trajectory,
    scores: Scores,
    dataset: Dataset,
    *,
    top: int = 12,
    title: str = TITLE,
    notes: Sequence[str] = (),
    labels: Captions | None = None,
    query_captions: Sequence[object] | None = None,
    regions: Mapping[str, Scores] | None = None,
    transitions: Transitions | None = None,
    groups: Mapping[str, Sequence[int | str]] | None = None,
) -> Path:
    """Write a self-contained HTML page that goes through the steps of the generated images.

    A slider moves x_t, the predicted image and the ranked training images together. Curves follow single training
    images over all steps, and the likelihood of a feature shows when it is decided. Boxes on the image switch to the
    scores of that region. Bars have whiskers of two standard errors. The file loads nothing from anywhere: pictures,
    style and script are inside, and a content security policy forbids the rest. All texts stay text. Equal inputs give
    equal bytes.

    Args:
        path: The file to write; missing folders are made.
        trajectory: The recorded steps, with pictures where it is of latents.
        scores: Scores of the same queries, for all recorded steps or some. [num_queries, num_steps, num_train]
        dataset: The training images, whose ids are ``scores.train_ids``.
        top: Proponents and opponents shown per step, at most: a proponent has a positive score, an opponent a negative.
        title: Heading of the page.
        notes: Short remarks shown under the introduction, as plain text.
        labels: Captions of the training images, looked up by dataset index.
        query_captions: One caption per generated image; by default the trajectory's prompts, if it has any.
        regions: Scores of parts of the images by name, from ``journey.score(..., region=...)`` for the same steps.
        transitions: Results of ``journey.transitions`` by (query, name of the feature).
        groups: Ids of training images by the name of a group, whose sums are shown as bars, see ``Scores.groups``.

    Returns:
        The path of the file.

    Raises:
        ValueError: If ``scores`` and ``trajectory`` disagree, a region's scores have other steps, a transition is of a
            query that is not there, groups overlap or one is empty, ids are outside ``dataset``, scores are not finite,
            a caption is missing, ``top`` is below 1, or images are neither grey nor RGB.
        TypeError: If an item of ``dataset`` is not an image, or ``scores`` are the strongest alone.
    """
    view = make_view(trajectory, scores, places_of(dataset, scores), top, regions)
    found = {} if transitions is None else transitions
    outside = [query for query, _ in found if not 0 <= query < view.num_queries]
    if outside:
        raise ValueError(f"transitions must be of queries among 0..{view.num_queries - 1}, got {outside[0]}")
    named = query_captions if query_captions is not None else trajectory.prompts or None
    sums = [each.groups(groups) for each in (scores, *(regions or {}).values())] if groups else []
    payload = make_payload(view, dataset, found, labels, named, sums)
    style = _resource("page.css")
    script = _resource("page.charts.js") + _resource("page.js")
    page = Template(_resource("page.html")).substitute(
        policy=(
            f"default-src 'none'; img-src data:; style-src '{_sha256(style)}'; script-src '{_sha256(script)}'; "
            "base-uri 'none'; form-action 'none'"
        ),
        title=_text(title),
        style=style,
        script=script,
        introduction=_introduction(view, scores),
        notes="".join(f"<li>{_text(note)}</li>" for note in notes),
        last=view.num_steps - 1,
        data=to_script_json(payload),
    )
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(page.encode("utf-8"))
    return target


def _introduction(view: View, scores: Scores) -> str:
    count = "One generated image" if view.num_queries == 1 else f"{view.num_queries} generated images"
    steps = "one score" if view.num_steps == 1 else f"{view.num_steps} steps from noise to image"
    parts = []
    if scores.interval is not None:
        parts.append(f"Scores are averaged over timesteps {scores.interval[0]} to {scores.interval[1] - 1}.")
    if scores.train_interval is not None:
        first, end = scores.train_interval
        parts.append(f"Of training, timesteps {first} to {end - 1} are counted.")
    return f"{count}, {steps}, {len(scores.train_ids):,} training images. {' '.join(parts)}".rstrip()


def _text(value: object) -> str:
    return html.escape(clean(value), quote=True)


def _sha256(source: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(source.encode('utf-8')).digest()).decode('ascii')}"


def _resource(name: str) -> str:
    """A file of the package, with the line ends that the browser hashes."""
    return resources.files("journey.report").joinpath(name).read_text(encoding="utf-8").replace("\r\n", "\n")
