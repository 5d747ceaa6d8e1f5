"""A check tells what is there, in words, tables and a page in which hostile texts stay texts."""

from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from models import Images, make_images, make_scheduler, make_unet
from torch import Tensor

import journey
from journey.audit.finding import KINDS, Check, Finding, Shown
from journey.audit.page import write_page

HOSTILE = '<script>alert("1")</script><img src=x onerror=alert(2)>'


def make_training() -> Tensor:
    images = make_images(14)
    images[9] = images[4]
    return images


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Check:
    features = journey.featurize(
        (make_unet(), make_scheduler()),
        Images(make_training()),
        tmp_path_factory.mktemp("check") / "features",
        draws=journey.StratifiedDraws(40),
        projector=journey.CountSketch(1024),
        progress=False,
    )
    return journey.check(features, Images(make_training()), progress=False)


def test_the_numbers_of_every_image_are_in_the_order_of_rows(found: Check) -> None:
    assert found.ids == tuple(range(14))
    memorised = found.of_kind("memorised")
    own = torch.tensor(found.numbers["self_influence"])
    assert memorised[0].ids == (int(own.argmax()),)
    assert memorised[0].value == pytest.approx(own.max().item(), rel=1e-6)
    assert {len(values) for values in found.numbers.values()} == {14}
    assert "caption_misfit" not in found.numbers  # the model is told nothing
    assert any("told nothing" in note for note in found.notes)


def test_findings_come_in_the_order_of_kinds_and_predict(found: Check) -> None:
    places = [list(KINDS).index(finding.kind) for finding in found.findings]
    assert places == sorted(places)
    for finding in found.findings:
        assert finding.kind == "undecided" or re.search(r"\d", finding.prediction), finding
    with pytest.raises(ValueError, match="kind must be one of"):
        found.of_kind("typo")


def test_prompts_must_be_a_list(found: Check, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="put it in a list"):
        journey.check(None, [], prompts="a red apple")  # type: ignore[arg-type]


def make_check(ids: tuple[int | str, ...] = (0, 1)) -> Check:
    shown = (Shown(ids[0]), Shown(ids[0], HOSTILE, -torch.ones(3, 8, 8)))
    first = Finding("caption", ids[:1], f"The caption {HOSTILE} does not fit.", 0.25, 0.5, "misfit", HOSTILE, shown)
    second = Finding("duplicates", ids, "These two images do the same.", 0.9, None, "cosine")
    return Check((second, first), ids, {"self_influence": [0.5, 0.25]}, (HOSTILE,))


class Reader(HTMLParser):
    """Collects the elements of a page with their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, Any]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, Any]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_hostile_texts_stay_texts_and_nothing_is_loaded(tmp_path: Path) -> None:
    dataset = [{"image": image, "file_name": name} for image, name in zip(make_images(2), (HOSTILE, "b"), strict=True)]
    path = write_page(tmp_path / "new" / "check.html", make_check((HOSTILE, "b")), dataset, labels=[HOSTILE, "b"])
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    tags = [tag for tag, _ in reader.elements]
    assert "script" not in tags
    assert not [name for _, attributes in reader.elements for name in attributes if name.startswith("on")]
    assert all(a["src"].startswith("data:image/") for tag, a in reader.elements if tag == "img")
    assert tags.count("img") == 4
    assert reader.text.count(HOSTILE) >= 5
    (policy,) = [a["content"] for tag, a in reader.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "0.250 ± 0.500" in reader.text


def test_equal_checks_give_equal_pages(tmp_path: Path) -> None:
    pages = [write_page(tmp_path / f"{i}.html", make_check(), Images(make_images(2))) for i in range(2)]
    assert pages[0].read_bytes() == pages[1].read_bytes()
    with pytest.raises(ValueError, match="got none of id 1"):
        write_page(tmp_path / "c.html", make_check(), Images(make_images(1)))


def test_tables_hold_the_findings(tmp_path: Path) -> None:
    make_check().save(tmp_path)
    told = json.loads((tmp_path / "findings.json").read_text())
    assert [finding["kind"] for finding in told["findings"]] == ["duplicates", "caption"]
    assert told["images"] == {"id": [0, 1], "self_influence": [0.5, 0.25]}
    with (tmp_path / "findings.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["kind"] for row in rows] == ["duplicates", "caption"]
    assert rows[0]["ids"] == "0 | 1"
    assert rows[1]["standard_error"] == "0.5"
    assert HOSTILE in rows[1]["sentence"]
    assert make_check().summary()[:2] == ["Near-duplicates: 1", "  0, 1: These two images do the same."]
