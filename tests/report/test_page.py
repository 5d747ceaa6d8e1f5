"""The page: complete, self-contained, honest about what it shows, and deaf to what captions say."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from report_cases import HOSTILE, TIMESTEPS, Case, bytes_of, make_case, make_region, make_transition, with_errors

from journey.generation.trajectory import Trajectory
from journey.report import sheets as report_sheets
from journey.report.csv import write_csv
from journey.report.gif import write_gif
from journey.report.page import write_report
from journey.report.png import write_png

VOID = {"meta", "input", "img", "br", "link", "hr"}


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
        self.data: dict[str, Any] = json.loads(self.all("script")[0].text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {k: v or "" for k, v in attrs}, path=[e.tag for e in self.open])
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.text += data

    def all(self, tag: str) -> list[Element]:
        return [element for element in self.elements if element.tag == tag]

    def tile(self, kind: str, place: int) -> np.ndarray:
        """One picture, cut from its sheet as the page's script does."""
        sheets = self.data["sheets"][kind]
        data = sheets["uris"][place // sheets["perSheet"]].partition(";base64,")[2]
        sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
        row, column = divmod(place % sheets["perSheet"], sheets["columns"])
        top, left = row * sheets["height"], column * sheets["width"]
        return sheet[top : top + sheets["height"], left : left + sheets["width"]]


def same(tile: np.ndarray, image: torch.Tensor) -> bool:
    expected = bytes_of(image)
    return np.array_equal(tile, np.stack([expected] * 3, -1) if expected.ndim == 2 else expected)


@pytest.fixture
def case() -> Case:
    return make_case()


def write(case: Case, path: Path, **choices: Any) -> Page:
    return Page(write_report(path, case.trajectory, case.scores, case.dataset, **choices))


@pytest.fixture
def page(case: Case, tmp_path: Path) -> Page:
    labels = {i: f"label {i}" for i in range(len(case.dataset))}
    return write(
        case,
        tmp_path / "new folder" / "report.html",
        top=3,
        labels=labels,
        query_captions=["first", "second"],
        notes=["a note"],
        regions={"corner": make_region(case, (0, 2, 4, 8))},
        transitions={(1, "is round"): make_transition()},
    )


def test_every_step_has_the_strongest_of_each_sign_in_order(case: Case, page: Page) -> None:
    assert page.data["timesteps"] == TIMESTEPS
    for q, query in enumerate(page.data["queries"]):
        for s in range(len(TIMESTEPS)):
            values = case.scores.values[q, s]
            order = values.argsort(descending=True).tolist()
            sides = [c for c in order[:3] if values[c] > 0], [c for c in order[::-1][:3] if values[c] < 0]
            for side, expected in zip(("pro", "opp"), sides, strict=True):
                shown = query["scopes"][0][side][s]
                assert [i for i, *_ in shown] == [case.scores.train_ids[c] for c in expected]
                # Four digits are written.
                assert [v for _, v, _ in shown] == pytest.approx([values[c].item() for c in expected], rel=1e-3)


def test_every_picture_is_the_one_it_is_said_to_be(case: Case, page: Page) -> None:
    for q, query in enumerate(page.data["queries"]):
        assert same(page.tile("predicted", query["image"]), case.trajectory.images[q])
        for s in range(len(TIMESTEPS)):
            assert same(page.tile("noisy", query["noisy"][s]), case.trajectory.x_t[q, s])
            assert same(page.tile("predicted", query["predicted"][s]), case.trajectory.x0_hat[q, s])
    for train_id, (tile, words) in page.data["training"].items():
        assert same(page.tile("training", tile), case.dataset[int(train_id)])
        assert words == f"label {train_id}"


def test_every_shown_training_image_has_a_picture_and_a_curve_in_every_scope(case: Case, page: Page) -> None:
    columns = {train_id: column for column, train_id in enumerate(case.scores.train_ids)}
    for q, query in enumerate(page.data["queries"]):
        shown = {i for scope in query["scopes"] for side in ("pro", "opp") for step in scope[side] for i, *_ in step}
        shown |= {i for feature in query["features"] for side in ("inside", "before") for i, *_ in feature[side]}
        shown |= set(query["pins"])
        assert shown <= {int(i) for i in page.data["training"]}
        for scope, values in zip(query["scopes"], (case.scores.values, case.scores.values.flip(2)), strict=True):
            assert shown <= {int(i) for i in scope["curves"]}
            relative = 100 * values[q] / values[q].abs().amax(1, keepdim=True)
            for i, curve in scope["curves"].items():
                assert curve == relative[:, columns[int(i)]].round().tolist()


def test_training_pictures_are_shared_between_queries_steps_and_equal_images(case: Case, tmp_path: Path) -> None:
    case.dataset = [case.dataset[0]] * len(case.dataset)
    page = write(case, tmp_path / "r.html")
    assert {tile for tile, _ in page.data["training"].values()} == {0}
    assert page.data["sheets"]["training"]["columns"] == 1
    assert page.source.count("data:image/") == 3


def test_scores_have_margins_of_two_standard_errors_where_these_are_known(case: Case, tmp_path: Path) -> None:
    assert {entry[2] for entry in write(case, tmp_path / "r.html").data["queries"][0]["scopes"][0]["pro"][0]} == {None}
    case.scores = with_errors(case.scores)
    page = write(case, tmp_path / "r.html")
    places = {i: place for place, i in enumerate(case.scores.train_ids)}
    for q, query in enumerate(page.data["queries"]):
        for side in ("pro", "opp"):
            for s, step in enumerate(query["scopes"][0][side]):
                expected = [2 * float(case.scores.standard_errors()[q, s, places[i]]) for i, *_ in step]
                assert [margin for *_, margin in step] == pytest.approx(expected, rel=1e-3)


def test_groups_have_the_sums_margins_and_shares_of_every_scope(case: Case, tmp_path: Path) -> None:
    case.scores = with_errors(case.scores)
    region = make_region(case, (0, 2, 4, 8))
    ids = case.scores.train_ids
    groups = {HOSTILE: ids[:3], "Ben": ids[3:10]}
    page = write(case, tmp_path / "r.html", groups=groups, regions={"corner": region})
    names = [name for name, _ in page.data["groups"]]
    assert sorted(page.data["groups"][:2]) == sorted([[HOSTILE, 3], ["Ben", 7]])
    assert page.data["groups"][2] == ["in no group", 2]
    for q, query in enumerate(page.data["queries"]):
        for scope, scores in zip(query["scopes"], (case.scores, region), strict=True):
            found = scores.groups(groups)
            order = [{HOSTILE: 0, "Ben": 1, "in no group": 2}[name] for name in names]
            for s, step in enumerate(scope["groups"]):
                for place, (total, margin, share) in zip(order, step, strict=True):
                    assert total == pytest.approx(float(found.sums[q, s, place]), rel=1e-3)
                    assert share == pytest.approx(100 * float(found.shares()[q, s, place]), rel=1e-3)
                    error = float(found.errors[q, s, place])
                    assert margin == (None if error != error else pytest.approx(2 * error, rel=1e-3))
    assert write(case, tmp_path / "r.html").data["groups"] == []


def test_only_the_largest_groups_are_shown_and_the_others_counted(tmp_path: Path) -> None:
    case = make_case(num_queries=1, num_train=60, timesteps=[500])
    page = write(case, tmp_path / "r.html", groups={f"g{i}": [i] for i in case.scores.train_ids})
    strongest = case.scores.values[0, 0].abs().argsort(descending=True)[:24]
    assert {name for name, _ in page.data["groups"]} == {f"g{case.scores.train_ids[c]}" for c in strongest}
    assert page.data["unnamed"] == 36


def test_a_region_has_its_box_and_its_own_rankings(case: Case, page: Page) -> None:
    for q, query in enumerate(page.data["queries"]):
        whole, corner = query["scopes"]
        assert (whole["name"], whole["box"]) == ("", None)
        assert (corner["name"], corner["box"]) == ("corner", [0, 25, 50, 100])
        best = case.scores.values.flip(2)[q].argmax(1)
        assert [step[0][0] for step in corner["pro"]] == [case.scores.train_ids[c] for c in best]


def test_a_transition_has_its_curve_its_interval_and_the_proponents_inside_and_before(case: Case, page: Page) -> None:
    assert page.data["queries"][0]["features"] == []
    (feature,) = page.data["queries"][1]["features"]
    found = make_transition()
    assert feature["likelihood"] == [10, 10, 90, 100]
    assert feature["lower"] == pytest.approx((100 * found.band[0]).tolist(), abs=0.051)  # one decimal is written
    assert feature["interval"] == [300, 700]  # from the latent before the first of its steps to that after the last
    assert feature["midpoint"] == [500, 500, 475]  # bounds, and where 55 % are reached between 10 and 90
    inside = case.scores.values[1, 1]  # of 900, 500, 100 only 500 is in it
    before = case.scores.values[1, 0]
    for side, values in (("inside", inside), ("before", before)):
        expected = [case.scores.train_ids[c] for c in values.argsort(descending=True)[:3] if values[c] > 0]
        assert [i for i, *_ in feature[side]] == expected


def test_the_story_says_when_the_feature_is_decided_and_by_whom(case: Case, tmp_path: Path) -> None:
    labels = ["seven"] * len(case.dataset)
    values = case.scores.values.clone()
    values[0] = 0.01
    values[0, 0, 3], values[0, 2, 3] = 1.0, -1.0  # helps early, hurts late
    case.scores = replace(case.scores, values=values)
    page = write(case, tmp_path / "r.html", top=4, labels=labels, transitions={(0, "is seven"): make_transition()})
    story = [sentence.replace("\u00a0", " ") for sentence in page.data["queries"][0]["story"]]
    assert story[0] == (
        "“is seven” is decided between t = 700 and t = 300: of the images that can still come out, 10 % have it before "
        "and 90 % after."
    )
    assert story[1] == "In these steps 4 of the 4 strongest proponents are “seven”; in the steps before, 4 of 4."
    assert story[2] == f"Training image #{case.scores.train_ids[3]} “seven” helps at t = 900 and hurts at t = 100."
    assert page.data["queries"][0]["pins"] == [case.scores.train_ids[3]]
    # Without a classifier the prediction tells: from here on it is the final image.
    case.trajectory.x0_hat[1, 1:] = case.trajectory.images[1]
    page = write(case, tmp_path / "r.html", labels=labels, transitions={(0, "flat"): make_transition([0.5] * 4)})
    assert page.data["queries"][0]["story"][0] == (
        "No steps were found that decide “flat”: its likelihood does not rise clearly."
    )
    assert page.data["queries"][1]["story"][0].replace("\u00a0", " ") == (
        "The predicted image makes most of its way to the final one between t = 900 and t = 500."
    )


def test_latents_are_shown_by_their_decoded_pictures(tmp_path: Path) -> None:
    case = make_case(channels=4, side=4)
    pictures = torch.randint(0, 256, (2, 4, 3, 16, 16), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    case.trajectory = replace(case.trajectory, pixels=pictures, prompts=("a red apple", "a pear"))
    case.dataset = list(pictures.flatten(0, 1).repeat(3, 1, 1, 1))
    page = write(case, tmp_path / "r.html", regions={"left": make_region(case, (0, 0, 16, 8))})
    query = page.data["queries"][1]
    assert query["caption"] == "a pear"
    assert np.array_equal(page.tile("predicted", query["predicted"][2]), pictures[1, 2].permute(1, 2, 0).numpy())
    assert np.array_equal(page.tile("predicted", query["image"]), pictures[1, 3].permute(1, 2, 0).numpy())
    noisy = page.data["sheets"]["noisy"]
    assert (noisy["width"], noisy["height"]) == (4, 4)
    for write_other in (write_png, write_gif):
        write_other(tmp_path / "other", case.trajectory, case.scores, case.dataset)


def test_the_file_loads_nothing_and_its_policy_admits_its_own_style_and_script_alone(page: Page) -> None:
    policy = next(e.attributes["content"] for e in page.all("meta") if "http-equiv" in e.attributes)
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    data, script = page.all("script")
    assert data.attributes["type"] == "application/json"
    for tag, text in (("style", page.all("style")[0].text), ("script", script.text)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    # The policy would block these, so they must not be there.
    assert not [e for e in page.elements if "style" in e.attributes or any(a.startswith("on") for a in e.attributes)]
    assert not [e for e in page.elements if {"src", "href", "srcset", "action"} & set(e.attributes)]
    assert "url(" not in page.all("style")[0].text
    assert "@import" not in page.all("style")[0].text
    # The one address in the script is the name of SVG's elements, which is not loaded.
    assert set(re.findall(r"https?:[^\"]*", script.text)) == {"http://www.w3.org/2000/svg"}
    assert "innerHTML" not in script.text


def test_hostile_texts_stay_texts(case: Case, tmp_path: Path) -> None:
    page = write(
        case,
        tmp_path / "r.html",
        title=HOSTILE,
        notes=[HOSTILE, "\ud800 \x00 \x1b"],
        labels=[HOSTILE] * len(case.dataset),
        query_captions=[HOSTILE, "\ud800 \u2028 ]]>"],
        regions={HOSTILE: make_region(case, (0, 0, 4, 4))},
        transitions={(0, HOSTILE): make_transition()},
    )
    assert len(page.all("script")) == 2
    assert not page.all("img")
    assert page.all("title")[0].text == page.all("h1")[0].text == HOSTILE
    assert [e.text for e in page.all("li")][3:] == [HOSTILE, "\ufffd \ufffd \ufffd"]
    first, second = page.data["queries"]
    assert first["caption"] == first["scopes"][1]["name"] == first["features"][0]["name"] == HOSTILE
    assert {words for _, words in page.data["training"].values()} == {HOSTILE}
    assert second["caption"] == "\ufffd \u2028 ]]>"
    # As bytes: no browser's rule for script elements can see an end, a comment or a tag.
    inside = page.source.partition('<script type="application/json" id="data">')[2].partition("</script>")[0]
    assert json.loads(inside) == page.data
    assert not set("<>&\u2028") & set(inside)


def test_everything_to_operate_has_a_name_and_headings_do_not_skip_levels(page: Page) -> None:
    labelled = {e.attributes.get("for") for e in page.all("label")}
    assert all(e.attributes["id"] in labelled for e in page.all("input"))
    assert all(e.text.strip() for e in page.all("button"))
    assert all(e.attributes.get("role") == "img" or "aria-hidden" in e.attributes for e in page.all("canvas"))
    levels = [int(e.tag[1]) for e in page.elements if re.fullmatch("h[1-6]", e.tag)]
    assert levels.count(1) == 1
    assert max(after - before for before, after in pairwise(levels)) <= 1
    assert page.all("html")[0].attributes["lang"] == "en"
    ids = [e.attributes["id"] for e in page.elements if "id" in e.attributes]
    assert len(ids) == len(set(ids))
    wanted = re.findall(r'find\("([\w-]+)"\)', page.all("script")[1].text)
    assert set(wanted) <= set(ids), "the script looks for what is not there"
    assert "JavaScript" in page.all("noscript")[0].text


def test_only_scored_steps_are_shown(case: Case, tmp_path: Path) -> None:
    scores = replace(case.scores, values=case.scores.values[:, 1:2], timesteps=torch.tensor(TIMESTEPS[1:2]))
    page = write(replace(case, scores=scores), tmp_path / "r.html")
    assert page.data["timesteps"] == [500]
    assert same(page.tile("noisy", page.data["queries"][1]["noisy"][0]), case.trajectory.x_t[1, 1])
    assert page.all("input")[0].attributes["max"] == "0"


def test_no_side_shows_scores_of_the_other_sign(case: Case, tmp_path: Path) -> None:
    case.scores = replace(case.scores, values=case.scores.values.abs() + 0.1)
    page = write(case, tmp_path / "r.html", top=100)
    for query in page.data["queries"]:
        assert [len(step) for step in query["scopes"][0]["pro"]] == [12] * 3
        assert query["scopes"][0]["opp"] == [[]] * 3
    case.scores = replace(case.scores, values=torch.zeros(2, 3, 12))
    assert write(case, tmp_path / "r.html").data["training"] == {}


def test_equal_inputs_give_equal_bytes(case: Case, tmp_path: Path) -> None:
    first, second = (
        write_report(tmp_path / name, case.trajectory, case.scores, case.dataset).read_bytes() for name in "ab"
    )
    assert first == second


def test_twenty_images_of_twenty_steps_leave_their_sheets_the_room_that_these_keep_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make_case(num_queries=20, num_train=1500, side=2, timesteps=range(980, 0, -49))
    case.scores = with_errors(case.scores)
    regions = {name: with_errors(make_region(case, (0, 0, 1, 1))) for name in "ab"}
    transitions = {(q, "it"): make_transition() for q in range(20)}
    labels = ["a caption of some length"] * 1505
    page = write(case, tmp_path / "r.html", regions=regions, transitions=transitions, labels=labels)
    sheets = sum(len(uri) for one in page.data["sheets"].values() for uri in one["uris"])
    assert len(page.data["training"]) == 1500
    assert len(page.source.encode()) - sheets + report_sheets._BUDGET < 10_000_000
    # Noise of 200 pixels does not fit in a small budget, so it is reduced and loses detail.
    monkeypatch.setattr(report_sheets, "_BUDGET", 60_000)
    case = make_case(num_queries=1, channels=3, side=200, timesteps=[500])
    page = write(case, tmp_path / "r.html")
    assert sum(len(uri) for one in page.data["sheets"].values() for uri in one["uris"]) < 60_000
    assert page.data["sheets"]["training"]["width"] in (48, 64, 88, 112, 144)
    assert "PNG" not in page.data["sheets"]["training"]["uris"][0].upper()[:16]


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


def csv_of(target: Path, trajectory: Trajectory, scores: Any, dataset: Any, **choices: Any) -> Path:
    """The table takes no dataset."""
    return write_csv(target, trajectory, scores, **choices)


PICTURES = pytest.mark.parametrize("write_one", [write_report, write_png, write_gif])


@pytest.mark.parametrize("write_one", [write_report, write_png, write_gif, csv_of])
def test_scores_and_trajectory_that_disagree_are_refused(write_one: Any, case: Case, tmp_path: Path) -> None:
    target = tmp_path / "out"
    queries = replace(case.scores, values=case.scores.values[:1])
    with pytest.raises(ValueError, match=r"scores\.values .* for the 2 queries of trajectory, got \[1, 3, 12\]"):
        write_one(target, case.trajectory, queries, case.dataset)
    steps = replace(case.scores, timesteps=torch.tensor([900, 500, 99]))
    with pytest.raises(ValueError, match=r"scores\.timesteps must be among trajectory\.timesteps \[900, 500, 100\]"):
        write_one(target, case.trajectory, steps, case.dataset)
    with pytest.raises(ValueError, match="top must be at least 1, got 0"):
        write_one(target, case.trajectory, case.scores, case.dataset, top=0)
    broken = case.scores.values.clone()
    broken[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"scores\.values must be finite"):
        write_one(target, case.trajectory, replace(case.scores, values=broken), case.dataset)
    with pytest.raises(ValueError, match="labels has no caption for"):
        write_one(target, case.trajectory, case.scores, case.dataset, labels={})
    assert not target.exists()


@PICTURES
def test_images_that_cannot_be_shown_are_refused(write_one: Any, case: Case, tmp_path: Path) -> None:
    target, (trajectory, scores, dataset) = tmp_path / "out", (case.trajectory, case.scores, case.dataset)
    with pytest.raises(ValueError, match=r"scores\.train_ids must be ids of dataset, which has 6 images"):
        write_one(target, trajectory, scores, dataset[:6])
    with pytest.raises(ValueError, match="query_captions has no caption for 0"):
        write_one(target, trajectory, scores, dataset, query_captions=[])
    with pytest.raises(TypeError, match=r"dataset\[\d+\] must be an image .* got str"):
        write_one(target, trajectory, scores, ["no image"] * 17)
    latent = make_case(channels=4)
    with pytest.raises(ValueError, match=r"latents need trajectory\.pixels"):
        write_one(target, latent.trajectory, latent.scores, latent.dataset)
    assert not target.exists()


def test_regions_and_transitions_that_do_not_belong_are_refused(case: Case, tmp_path: Path) -> None:
    region = make_region(case, (0, 0, 4, 4))
    with pytest.raises(ValueError, match=r"regions\['a'\] must have a name, and scores that were made with region="):
        write(case, tmp_path / "r", regions={"a": case.scores})
    with pytest.raises(ValueError, match=r"regions\[''\] must have a name"):
        write(case, tmp_path / "r", regions={"": region})
    few = replace(region, values=region.values[:, :2], timesteps=region.timesteps[:2])
    with pytest.raises(ValueError, match=r"regions\['a'\] must have the steps \[900, 500, 100\]"):
        write(case, tmp_path / "r", regions={"a": few})
    assert region.region is not None
    with pytest.raises(ValueError, match=r"regions\['a'\]\.region must have .* \[2, 8, 8\], got \[2, 4, 8\]"):
        write(case, tmp_path / "r", regions={"a": replace(region, region=region.region[:, :4])})
    with pytest.raises(ValueError, match=r"transitions must be of queries among 0\.\.1, got 2"):
        write(case, tmp_path / "r", transitions={(2, "it"): make_transition()})
    assert not (tmp_path / "r").exists()
