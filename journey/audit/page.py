"""The page of a check: one HTML file without a script, which opens offline."""

from __future__ import annotations

import base64
import hashlib
import html
import io
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from string import Template

from PIL import Image

from journey.audit.finding import FAULTS, KINDS, Check, Finding, Shown
from journey.data.ids import ids_of, positions_of
from journey.data.items import Dataset, get_image
from journey.files.publish import publish
from journey.report.payload import clean
from journey.report.view import Captions, caption, format_number, to_picture

_MOST = 24  # findings of one kind on the page; all are in the tables
_MOST_SHOWN = 6  # pictures beside one finding
_SIDE = 224  # pixels: twice the size shown, for dense screens
_SHARP_SIDE = 96  # pictures up to this side may be pixel art: kept without loss, enlarged without smoothing


def write_page(
    path: str | Path,
    check: Check,
    dataset: Dataset,
    *,
    labels: Captions | None = None,
    title: str = "What is wrong with this training set?",
) -> Path:
    """Write the findings as a page that loads nothing from anywhere.

    It has no script, and a content security policy forbids all but its own style and pictures. Captions and names of
    files stay text. Equal inputs give equal bytes.

    Args:
        path: The file to write; missing folders are made.
        check: What was found.
        dataset: The training images.
        labels: Captions of the dataset's images, by position.
        title: Heading of the page.

    Returns:
        The path of the file.

    Raises:
        ValueError: If a finding is about an image that is not in the dataset, or an image is neither grey nor RGB.
    """
    places = positions_of(ids_of(dataset))
    missing = [i for finding in check.findings for i in finding.ids if i not in places]
    if missing:
        raise ValueError(f"dataset must hold every image that was found, got none of id {missing[0]!r}")
    style = _resource("page.css")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
    found = {kind: check.of_kind(kind) for kind in KINDS}
    page = Template(_resource("page.html")).substitute(
        policy=f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
        title=_text(title),
        style=style,
        introduction=_text(_introduction(check)),
        index="".join(_entry(kind, len(several)) for kind, several in found.items()),
        sections="\n".join(
            _section(kind, several, dataset, places, labels) for kind, several in found.items() if several
        ),
        notes="".join(f"<li>{_text(note)}</li>" for note in check.notes),
    )
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    publish(target, [page.encode("utf-8")])
    return target


def _introduction(check: Check) -> str:
    faults = [finding for finding in check.findings if finding.kind in FAULTS]
    images = len({i for finding in faults for i in finding.ids})
    of = f"of {len(check.ids):,} training images"
    if not faults:
        return f"No fault was found in any {of}."
    return f"{images} {of} {'has' if images == 1 else 'have'} something that deserves a look."


def _entry(kind: str, count: int) -> str:
    name = _text(f"{KINDS[kind][0]}: {count}")
    return f'<li><a href="#{kind}">{name}</a></li>' if count else f"<li><span>{name}</span></li>"


def _section(
    kind: str,
    findings: Sequence[Finding],
    dataset: Dataset,
    places: dict[int | str, int],
    labels: Captions | None,
) -> str:
    heading, text = KINDS[kind]
    cards = "".join(_card(finding, dataset, places, labels) for finding in findings[:_MOST])
    rest = len(findings) - _MOST
    more = f'<p class="more">And {rest:,} more, in findings.csv.</p>' if rest > 0 else ""
    return (
        f'<section id="{kind}"><h2>{_text(heading)}</h2><p class="soft">{_text(text)}</p>'
        f'<ul class="findings">{cards}</ul>{more}</section>'
    )


def _card(finding: Finding, dataset: Dataset, places: dict[int | str, int], labels: Captions | None) -> str:
    shown = finding.shown or tuple(Shown(i) for i in finding.ids)
    pictures = "".join(_figure(one, dataset, places, labels) for one in shown[:_MOST_SHOWN])
    if len(shown) > _MOST_SHOWN:
        pictures += f'<p class="more">and {len(shown) - _MOST_SHOWN} more</p>'
    noise = "" if finding.error is None else f" ± {format_number(finding.error).lstrip('+')}"
    lines = [
        f'<p class="what">{_text(finding.sentence)}</p>',
        f'<p class="number">{_text(finding.measures)}: {format_number(finding.value).lstrip("+")}{noise}</p>',
    ]
    lines += [f'<p class="soft">{_text(finding.prediction)}</p>'] if finding.prediction else []
    return f'<li><div class="shown">{pictures}</div>{"".join(lines)}</li>'


def _figure(shown: Shown, dataset: Dataset, places: dict[int | str, int], labels: Captions | None) -> str:
    place = places[shown.train_id]
    image = get_image(dataset, place) if shown.image is None else shown.image
    picture = to_picture(image, max_side=_SIDE)
    name = f'<bdi class="id">{_text(shown.train_id)}</bdi>' if shown.image is None else ""
    words = shown.words or caption(labels, place, "labels")
    text = f"<bdi>{_text(words)}</bdi>" if words != str(shown.train_id) else ""
    about = _text(f"{shown.train_id}: {words}" if words else shown.train_id)
    kind = ' class="sharp"' if max(picture.size) <= _SHARP_SIDE else ""
    return f'<figure><img{kind} alt="{about}" src="{_uri(picture)}"><figcaption>{name}{text}</figcaption></figure>'


def _uri(picture: Image.Image) -> str:
    sharp, buffer = max(picture.size) <= _SHARP_SIDE, io.BytesIO()
    if sharp:
        picture.save(buffer, format="PNG", optimize=True)
    else:
        picture.save(buffer, format="JPEG", quality=82, optimize=True)
    return f"data:image/{'png' if sharp else 'jpeg'};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _text(value: object) -> str:
    return html.escape(clean(value), quote=True)


def _resource(name: str) -> str:
    """A file of the package, with the line ends that the browser hashes."""
    return resources.files("journey.audit").joinpath(name).read_text(encoding="utf-8").replace("\r\n", "\n")
