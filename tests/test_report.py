"""The HTML report and the picture: complete, escaped, self-contained, and honest about what they show."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from journey.report import write_png, write_report

TIMESTEPS = [900, 500, 100]
HOSTILE = """</bdi><script>alert("x")</script> & 'quoted' <img src=http://example.org/a.png onerror=alert(1)>"""
VOID = {"meta", "input", "img", "br", "link", "hr"}


@dataclass(frozen=True)
class Ranked:
    ids: Tensor
    values: Tensor


@dataclass(frozen=True)
class Top:
    proponents: Ranked
    opponents: Ranked


@dataclass(frozen=True)
class FakeScores:
    values: Tensor  # [num_queries, num_steps, num_train]
    timesteps: Tensor
    train_ids: list[int]
    damping: float = 0.1

    def top(self, k: int) -> Top:
        ids = torch.tensor(self.train_ids)
        high, low = self.values.topk(k, dim=2), self.values.topk(k, dim=2, largest=False)
        return Top(Ranked(ids[high.indices], high.values), Ranked(ids[low.indices], low.values))


@dataclass(frozen=True)
class FakeTrajectory:
    timesteps: Tensor
    x_t: Tensor
    x0_hat: Tensor
    images: Tensor


@dataclass
class Case:
    trajectory: Any
    scores: Any
    dataset: Any


def make_case(
    num_queries: int = 2, channels: int = 1, num_train: int = 12, side: int = 8, timesteps: Sequence[int] = TIMESTEPS
) -> Case:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator) * 2 - 1

    shape = (num_queries, len(timesteps), channels, side, side)
    trajectory = FakeTrajectory(
        torch.tensor(timesteps), random(*shape), random(*shape), random(num_queries, channels, side, side)
    )
    # Ids are not positions: the dataset is longer than the scored part and in another order.
    train_ids = (torch.randperm(num_train, generator=generator) + 5).tolist()
    scores = FakeScores(random(num_queries, len(timesteps), num_train), torch.tensor(timesteps), train_ids)
    return Case(trajectory, scores, list(random(num_train + 5, channels, side, side)))


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    text: str = ""
    path: list[str] = field(default_factory=list)


class Page(HTMLParser):
    """Elements in order with the text directly or indirectly inside; fails on tags that do not balance."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.source = path.read_text(encoding="utf-8")
        self.elements: list[Element] = []
        self.open: list[Element] = []
        self.feed(self.source)
        self.close()
        assert not self.open, f"left open: {[element.tag for element in self.open]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {k: v or "" for k, v in attrs}, path=[e.tag for e in self.open])
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, {k: v or "" for k, v in attrs}, path=[e.tag for e in self.open]))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.text += data

    def all(self, tag: str) -> list[Element]:
        return [element for element in self.elements if element.tag == tag]

    def with_class(self, name: str) -> list[Element]:
        return [element for element in self.elements if name in element.attributes.get("class", "").split()]


def embedded(page: Page) -> list[Image.Image]:
    prefix = "data:image/png;base64,"
    hrefs = [element.attributes["href"] for element in page.all("image")]
    assert all(href.startswith(prefix) for href in hrefs)
    return [Image.open(io.BytesIO(base64.b64decode(href[len(prefix) :]))) for href in hrefs]


def bytes_of(image: Tensor) -> np.ndarray:
    """[-1, 1] to 0..255, halves to even as torch and numpy both round."""
    array = np.clip(np.round((image.numpy() + 1) * np.float32(127.5)), 0, 255).astype(np.uint8)
    return np.moveaxis(array, 0, -1) if len(array) == 3 else array[0]


@pytest.fixture
def case() -> Case:
    return make_case()


@pytest.fixture
def page(case: Case, tmp_path: Path) -> Page:
    labels = {i: f"label {i}" for i in range(len(case.dataset))}
    return Page(
        write_report(
            tmp_path / "new folder" / "report.html",
            case.trajectory,
            case.scores,
            case.dataset,
            top=3,
            labels=labels,
            query_captions=["first", "second"],
        )
    )


def test_every_step_lists_its_strongest_ids_in_order_with_scores_and_captions(case: Case, page: Page) -> None:
    for q in range(2):
        for s in range(len(TIMESTEPS)):
            start = next(i for i, e in enumerate(page.elements) if e.attributes.get("id") == f"q{q}-s{s}")
            stop = next(
                (i for i, e in enumerate(page.elements) if i > start and e.tag == "section"), len(page.elements)
            )
            shown = [e for e in page.elements[start:stop] if e.tag == "li"]
            values = case.scores.values[q, s]
            order = values.argsort(descending=True).tolist()
            expected = [c for c in order[:3] if values[c] > 0] + [c for c in order[::-1][:3] if values[c] < 0]
            assert [e.attributes["class"] for e in shown] == ["pro" if values[c] > 0 else "opp" for c in expected]
            for element, column in zip(shown, expected, strict=True):
                train_id = case.scores.train_ids[column]
                assert element.text.startswith(f"#{train_id}label {train_id}")
            data = [float(e.attributes["value"]) for e in page.elements[start:stop] if e.tag == "data"]
            assert data == pytest.approx([values[c].item() for c in expected], rel=1e-8)  # nine digits are written


def test_each_distinct_picture_is_embedded_once_and_unchanged(case: Case, page: Page) -> None:
    top = case.scores.top(3)
    shown = {
        *top.proponents.ids[top.proponents.values > 0].tolist(),
        *top.opponents.ids[top.opponents.values < 0].tolist(),
    }
    expected = [bytes_of(case.dataset[i]) for i in shown]
    expected += [bytes_of(image) for image in case.trajectory.images]
    expected += [
        bytes_of(image) for image in (*case.trajectory.x_t.flatten(0, 1), *case.trajectory.x0_hat.flatten(0, 1))
    ]
    found = [np.asarray(picture).tobytes() for picture in embedded(page)]
    assert sorted(found) == sorted(array.tobytes() for array in expected)
    assert page.source.count("data:image/png") == len(expected)


def test_equal_pictures_of_different_ids_are_embedded_once(case: Case, tmp_path: Path) -> None:
    case.dataset = [case.dataset[0]] * len(case.dataset)
    page = Page(write_report(tmp_path / "r.html", case.trajectory, case.scores, case.dataset))
    assert len(embedded(page)) == 1 + 2 + 2 * 2 * len(TIMESTEPS)


def test_every_reference_points_inside_the_file(page: Page) -> None:
    ids = [e.attributes["id"] for e in page.elements if "id" in e.attributes]
    assert len(ids) == len(set(ids))
    targets = [
        value
        for element in page.elements
        for name, value in element.attributes.items()
        if name in ("href", "src", "for", "aria-labelledby", "xlink:href", "action", "srcset")
    ]
    assert targets
    for target in targets:
        assert target.startswith("data:image/png;base64,") or target.removeprefix("#") in ids
    style = page.all("style")[0].text
    assert "url(" not in style
    assert "@import" not in style
    assert not re.search(r"https?:|//", re.sub(r"//.*", "", page.all("script")[0].text))
    assert not page.all("link")
    assert not page.all("iframe")


def test_the_content_security_policy_admits_only_the_inline_style_and_script(page: Page) -> None:
    policy = next(e.attributes["content"] for e in page.all("meta") if "http-equiv" in e.attributes)
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        (element,) = page.all(tag)
        digest = base64.b64encode(hashlib.sha256(element.text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    # The policy would block these, so they must not be there.
    assert not [e for e in page.elements if "style" in e.attributes or any(a.startswith("on") for a in e.attributes)]


def test_hostile_texts_stay_texts(case: Case, tmp_path: Path) -> None:
    page = Page(
        write_report(
            tmp_path / "r.html",
            case.trajectory,
            case.scores,
            case.dataset,
            title=HOSTILE,
            notes=[HOSTILE, "\ud800 \x00 \x1b"],
            labels=[HOSTILE] * len(case.dataset),
            query_captions=[HOSTILE] * 2,
        )
    )
    assert len(page.all("script")) == 1
    assert not page.all("img")
    assert page.all("title")[0].text == page.all("h1")[0].text == HOSTILE
    assert HOSTILE in page.all("h2")[0].text
    assert [e.text for e in page.all("li")].count(HOSTILE) == 3, "one note and two entries of the gallery"
    cards = [e for e in page.all("bdi") if "title" in e.attributes]
    assert cards
    assert all(e.text == e.attributes["title"] == HOSTILE for e in cards)
    assert "\ufffd \ufffd \ufffd" in page.source


def test_pictures_have_descriptions_and_headings_do_not_skip_levels(page: Page) -> None:
    pictures = page.with_class("px")
    assert pictures
    assert all(e.attributes["role"] == "img" and e.attributes["aria-label"] for e in pictures)
    levels = [int(e.tag[1]) for e in page.elements if re.fullmatch("h[1-6]", e.tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert max(after - before for before, after in pairwise(levels)) <= 1
    assert page.all("html")[0].attributes["lang"] == "en"
    labelled = {e.attributes.get("for") for e in page.all("label")}
    unlabelled = [e for e in page.all("input") if e.attributes.get("id") not in labelled and "label" not in e.path]
    assert not unlabelled


def test_without_javascript_every_step_is_visible_and_the_slider_is_not(page: Page) -> None:
    assert len(page.with_class("step")) == 2 * len(TIMESTEPS)
    assert not [e for e in page.with_class("step") if "hidden" in e.attributes]
    assert "hidden" in page.with_class("scrubber")[0].attributes


def test_only_scored_steps_are_shown(case: Case, tmp_path: Path) -> None:
    scores = replace(case.scores, values=case.scores.values[:, 1:2], timesteps=torch.tensor(TIMESTEPS[1:2]))
    page = Page(write_report(tmp_path / "r.html", case.trajectory, scores, case.dataset))
    assert [e.text for e in page.all("h3")] == ["Step 1 of 1, t = 500"] * 2
    pictures = [np.asarray(picture).tobytes() for picture in embedded(page)]
    assert bytes_of(case.trajectory.x_t[0, 1]).tobytes() in pictures
    assert bytes_of(case.trajectory.x_t[0, 0]).tobytes() not in pictures


def test_a_step_without_opponents_says_so(case: Case, tmp_path: Path) -> None:
    scores = replace(case.scores, values=case.scores.values.abs() + 0.1)
    page = Page(write_report(tmp_path / "r.html", case.trajectory, scores, case.dataset, top=100))
    assert page.source.count("No training image has a negative score at this step.") == 2 * len(TIMESTEPS)
    assert len(page.all("data")) == 2 * len(TIMESTEPS) * 12  # every one of the 12 is a proponent


def test_scores_of_any_size_are_readable(case: Case, tmp_path: Path) -> None:
    values = torch.zeros(2, 3, 12)
    values[:, :, :6] = torch.tensor([0.05, 12.34, 2.5e-7, 34567.0, -0.0123, -8e-12])
    scores = replace(case.scores, values=values)
    page = Page(write_report(tmp_path / "r.html", case.trajectory, scores, case.dataset))
    texts = [e.text for e in page.all("data")][:6]
    assert texts == ["+3.5e4", "+12.3", "+0.0500", "+2.5e−7", "−0.0123", "−8.0e−12"]


def test_equal_inputs_give_equal_bytes(case: Case, tmp_path: Path) -> None:
    first, second = (
        write_report(tmp_path / name, case.trajectory, case.scores, case.dataset).read_bytes() for name in "ab"
    )
    assert first == second


def test_eight_queries_of_eight_steps_fit_in_three_megabytes(tmp_path: Path) -> None:
    case = make_case(num_queries=8, num_train=1000, side=16, timesteps=range(900, 100, -100))
    path = write_report(tmp_path / "r.html", case.trajectory, case.scores, case.dataset, labels=["a label"] * 1005)
    assert path.stat().st_size < 3_000_000


def test_pil_uint8_float_and_dict_items_look_the_same(tmp_path: Path) -> None:
    case = make_case(channels=3)
    arrays = [bytes_of(image) for image in case.dataset]
    datasets: dict[str, Any] = {
        "float": [torch.from_numpy(a).permute(2, 0, 1) / 127.5 - 1 for a in arrays],
        "uint8": [torch.from_numpy(a).permute(2, 0, 1) for a in arrays],
        "pil": [Image.fromarray(a) for a in arrays],
        "dict": [{"image": Image.fromarray(a), "label": 3} for a in arrays],
    }
    pages = {
        name: write_report(tmp_path / name, case.trajectory, case.scores, data).read_bytes()
        for name, data in datasets.items()
    }
    assert set(pages.values()) == {pages["float"]}


def find(picture: np.ndarray, tile: np.ndarray, scale: int) -> list[tuple[int, int]]:
    """Where a tile, enlarged pixel by pixel, occurs in an RGB picture, as (row, column)."""
    big = np.kron(tile, np.ones((scale, scale), np.uint8))
    height, width = big.shape
    red = picture[..., 0]
    rows, columns = np.nonzero(
        (red[: 1 - height, : 1 - width] == big[0, 0]) & (red[height - 1 :, width - 1 :] == big[-1, -1])
    )
    return [
        (int(r), int(c))
        for r, c in zip(rows, columns, strict=True)
        if (picture[r : r + height, c : c + width] == big[..., None]).all()
    ]


def test_the_picture_holds_every_image_enlarged_and_in_its_column(case: Case, tmp_path: Path) -> None:
    path = write_png(tmp_path / "p.png", case.trajectory, case.scores, case.dataset, query=1, top=2)
    picture = np.asarray(Image.open(path).convert("RGB"))
    assert len(find(picture, bytes_of(case.trajectory.images[1]), 24)) == 1  # 8 pixels to 192
    top = case.scores.top(2)
    above = 0
    for s in range(len(TIMESTEPS)):
        proponents, opponents = top.proponents.ids[1, s].tolist(), top.opponents.ids[1, s].tolist()
        tiles = [case.trajectory.x_t[1, s], case.trajectory.x0_hat[1, s]]
        tiles += [case.dataset[i] for i in (*proponents, *opponents)]
        places = [find(picture, bytes_of(tile), 12) for tile in tiles]  # 8 pixels to 96
        # A training image may stand in several rows; each row must have one of its places.
        row = min(r for r, _ in places[0])
        columns = [next(c for r, c in place if r == row) for place in places]
        assert columns == sorted(columns), "x_t, prediction, proponents and opponents stand in this order"
        assert row > above, "earlier steps stand above later ones"
        above = row
        frames = [tuple(int(v) for v in picture[row, c - 2]) for c in columns[2:]]
        assert all(g > r for r, g, _ in frames[:2]), "proponents have green frames"
        assert all(r > g for r, g, _ in frames[2:]), "opponents have red frames"


def test_the_picture_grows_by_the_same_amount_per_column_and_row(case: Case, tmp_path: Path) -> None:
    def size(**choices: Any) -> tuple[int, int]:
        path = write_png(tmp_path / "p.png", case.trajectory, case.scores, case.dataset, **choices)
        return Image.open(path).size

    widths = [size(query=0, top=top)[0] for top in (1, 2, 3)]
    assert widths[2] - widths[1] == widths[1] - widths[0] == 2 * (96 + 2 * 5 + 14)  # picture, frame and gap, both sides
    assert size(query=0, top=500)[0] == size(query=0, top=12)[0]
    assert size(query=[0, 1], top=1)[1] - size(query=0, top=1)[1] == size(top=1)[1] - size(query=1, top=1)[1] > 0
    assert size(query=0, timesteps=[500], top=1)[1] < size(query=0, top=1)[1]


def test_the_picture_reduces_large_images_and_shortens_long_captions(tmp_path: Path) -> None:
    choices: Any = {"query": 0, "top": 2, "labels": ["a very long caption, ärgerlich lang " * 9] * 17}
    sizes = []
    for side in (200, 96):
        case = make_case(channels=3, side=side)
        path = write_png(tmp_path / "p.png", case.trajectory, case.scores, case.dataset, **choices)
        sizes.append(Image.open(path).size)
    assert sizes[0] == sizes[1]


WRITERS = pytest.mark.parametrize("write", [write_report, write_png])


@WRITERS
def test_scores_and_trajectory_that_disagree_are_refused(write: Any, case: Case, tmp_path: Path) -> None:
    target = tmp_path / "out"
    queries = replace(case.scores, values=case.scores.values[:1])
    with pytest.raises(ValueError, match=r"scores\.values .* for the 2 queries of trajectory, got \[1, 3, 12\]"):
        write(target, case.trajectory, queries, case.dataset)
    steps = replace(case.scores, timesteps=torch.tensor([900, 500, 99]))
    with pytest.raises(ValueError, match=r"scores\.timesteps must be among trajectory\.timesteps \[900, 500, 100\]"):
        write(target, case.trajectory, steps, case.dataset)
    few = replace(case.scores, values=case.scores.values[:, :2])
    with pytest.raises(ValueError, match=r"got scores\.timesteps \[900, 500, 100\] with scores\.values \[2, 2, 12\]"):
        write(target, case.trajectory, few, case.dataset)
    ragged = replace(case.trajectory, x0_hat=case.trajectory.x0_hat[:, :2])
    with pytest.raises(ValueError, match=r"trajectory\.x_t and trajectory\.x0_hat must both be"):
        write(target, ragged, case.scores, case.dataset)
    alien = replace(case.trajectory, images=case.trajectory.images[:, :, :4])
    with pytest.raises(ValueError, match=r"trajectory\.images must be \[2, 1, 8, 8\]"):
        write(target, alien, case.scores, case.dataset)
    assert not target.exists()


@WRITERS
def test_other_bad_input_gets_one_clear_error(write: Any, case: Case, tmp_path: Path) -> None:
    target, (trajectory, scores, dataset) = tmp_path / "out", (case.trajectory, case.scores, case.dataset)
    with pytest.raises(ValueError, match="top must be at least 1, got 0"):
        write(target, trajectory, scores, dataset, top=0)
    with pytest.raises(ValueError, match=r"scores\.train_ids must be indices of dataset, which has 6 samples"):
        write(target, trajectory, scores, dataset[:6])
    with pytest.raises(ValueError, match=r"scores\.train_ids must name the 12 columns, got 11 ids"):
        write(target, trajectory, replace(scores, train_ids=scores.train_ids[:11]), dataset)
    broken = scores.values.clone()
    broken[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"scores\.values must be finite"):
        write(target, trajectory, replace(scores, values=broken), dataset)
    with pytest.raises(ValueError, match="labels has no caption for"):
        write(target, trajectory, scores, dataset, labels={})
    with pytest.raises(ValueError, match="query_captions has no caption for 1"):
        write(target, trajectory, scores, dataset, query_captions=["only one"])
    with pytest.raises(TypeError, match=r"dataset\[\d+\] must be an image .* got str"):
        write(target, trajectory, scores, ["no image"] * 17)
    latent = make_case(channels=4)
    with pytest.raises(ValueError, match="decode latents to pixels first"):
        write(target, latent.trajectory, latent.scores, latent.dataset)
    assert not target.exists()


def test_the_picture_refuses_queries_and_timesteps_that_are_not_there(case: Case, tmp_path: Path) -> None:
    arguments = (tmp_path / "p.png", case.trajectory, case.scores, case.dataset)
    bad: list[Any] = [2, -1, []]
    for query in bad:
        with pytest.raises(ValueError, match=r"query must be among 0\.\.1"):
            write_png(*arguments, query=query)
    with pytest.raises(ValueError, match=r"timesteps must be among scores\.timesteps \[900, 500, 100\], got \[7\]"):
        write_png(*arguments, timesteps=[7])
