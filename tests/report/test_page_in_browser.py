"""The page in a real browser: all moves together, by mouse and by keys, at every width, whatever captions say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from browser import Browser, Tab
from report_cases import HOSTILE, Case, bytes_of, make_case, make_region, make_transition, with_errors

from journey.report.page import write_report

TIMES = [900, 700, 500, 300, 100]
QUERY = 1
BOX = (0, 2, 4, 8)  # top, left, bottom, right of 8x8 pixels

# What the page shows, read from its elements as a person would.
SHOWN = """(() => {
  const side = (id) => [...document.querySelectorAll(`#${id} li`)].filter((e) => !e.hidden)
    .map((e) => [Number(e.querySelector(".id").textContent.slice(1)), e.querySelector(".value").textContent]);
  const gray = (id) => { const c = document.getElementById(id);
    const [width, height] = [c.width, c.height];
    const copy = Object.assign(document.createElement("canvas"), { width, height }).getContext("2d");
    copy.drawImage(c, 0, 0);
    return [...copy.getImageData(0, 0, width, height).data].filter((_, i) => i % 4 === 0); };
  const cursors = [...document.querySelectorAll("svg .cursor")].map((e) => parseFloat(e.getAttribute("d").slice(1)));
  return { where: document.getElementById("where").textContent, slider: Number(document.getElementById("step").value),
    spoken: document.getElementById("spoken").textContent, pro: side("pro"), opp: side("opp"), cursors,
    noisy: gray("noisy"), predicted: gray("predicted"), image: gray("image"),
    name: document.getElementById("name").textContent };
})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


def make_page(path: Path, words: str = "caption") -> Case:
    """Two images, a region, a feature of the second; all texts are ``words`` and a number."""
    case = make_case(timesteps=TIMES)
    write_report(
        path,
        case.trajectory,
        case.scores,
        case.dataset,
        top=3,
        title=words,
        notes=[words],
        labels=[f"{words} {i}" for i in range(len(case.dataset))],
        query_captions=[f"{words} first", f"{words} second"],
        regions={words: make_region(case, BOX)},
        transitions={(QUERY, words): make_transition()},
    )
    return case


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, Path]:
    path = tmp_path_factory.mktemp("page") / "report.html"
    return make_page(path), path


@pytest.fixture
def tab(browser: Browser, case: tuple[Case, Path]) -> Iterator[Tab]:
    found = browser.open(case[1])
    yield found
    assert found.complaints() == []
    found.close()


def check_step(tab: Tab, case: Case, query: int, step: int, *, region: bool = False) -> None:
    """Everything on the page is of this step: pictures, ranking, words and the cursors of the curves."""
    shown = tab.run(SHOWN)
    values = case.scores.values[query, step]
    values = values.flip(0) if region else values
    for side, descending in (("pro", True), ("opp", False)):
        order = values.argsort(descending=descending, stable=True)[:3]
        wanted = [case.scores.train_ids[c] for c in order if (values[c] > 0) == descending]
        assert [i for i, _ in shown[side]] == wanted
        assert all(text.startswith("+" if descending else "−") for _, text in shown[side])
    for name, image in (
        ("noisy", case.trajectory.x_t[query, step]),
        ("predicted", case.trajectory.x0_hat[query, step]),
    ):
        assert shown[name] == bytes_of(image).flatten().tolist()
    assert shown["image"] == bytes_of(case.trajectory.images[query]).flatten().tolist()
    assert shown["where"] == f"step {step + 1} of 5, t = {TIMES[step]}"
    assert shown["slider"] == step
    assert shown["spoken"].startswith(f"step {step + 1} of 5, t = {TIMES[step]}. Strongest proponent: training image")
    first, last = tab.run(
        "(() => { const s = [...document.querySelectorAll('#curves circle.pin0')]; "
        "return [s.at(0), s.at(-1)].map((c) => Number(c.getAttribute('cx'))); })()"
    )
    expected = first + (last - first) * (TIMES[0] - TIMES[step]) / (TIMES[0] - TIMES[-1])
    assert shown["cursors"] == pytest.approx([expected] * len(shown["cursors"]), abs=0.1)


def test_slider_keys_film_and_curves_move_pictures_rankings_and_cursors_together(
    tab: Tab, case: tuple[Case, Path]
) -> None:
    made, _ = case
    check_step(tab, made, 0, 2)
    tab.press("ArrowRight")
    check_step(tab, made, 0, 3)
    tab.run("document.getElementById('step').focus()")
    tab.press("ArrowLeft")
    tab.press("ArrowLeft")
    check_step(tab, made, 0, 1)
    tab.run("document.activeElement.blur()")
    for _ in range(7):
        tab.press("ArrowRight")
    check_step(tab, made, 0, 4)
    tab.click("#film")
    check_step(tab, made, 0, 2)
    tab.click("#gallery li:nth-child(2) button")
    check_step(tab, made, QUERY, 2)
    assert len(tab.run(SHOWN)["cursors"]) == 2, "the feature's curve has its cursor too"
    tab.click("#feature0")
    check_step(tab, made, QUERY, 2)  # its middle is the middle step
    tab.press("ArrowLeft")
    check_step(tab, made, QUERY, 1)


def test_the_box_lies_where_the_region_is_and_shows_its_attributions(tab: Tab, case: tuple[Case, Path]) -> None:
    made, _ = case
    box, image = tab.run(
        "['#boxes button', '#image'].map((s) => document.querySelector(s).getBoundingClientRect())"
        ".map((b) => [b.top, b.left, b.bottom, b.right])"
    )
    top, left, bottom, right = image
    sides = [top, left, top, left]
    expected = [side + edge / 8 * (bottom - top) for side, edge in zip(sides, BOX, strict=True)]
    assert right - left == pytest.approx(bottom - top)
    assert box == pytest.approx(expected, abs=0.6)
    tab.click("#boxes button")
    check_step(tab, made, 0, 2, region=True)
    assert tab.run("document.querySelector('#scopes input:checked').value") == "1"
    tab.press("ArrowRight")
    check_step(tab, made, 0, 3, region=True)
    tab.click("#scopes label")
    check_step(tab, made, 0, 3)


def test_lines_on_bars_are_two_standard_errors_and_groups_move_with_the_steps(browser: Browser, tmp_path: Path) -> None:
    case = make_case(timesteps=TIMES)
    scores = with_errors(case.scores)
    groups = {"Ann": scores.train_ids[:4], HOSTILE: scores.train_ids[4:]}
    path = write_report(tmp_path / "report.html", case.trajectory, scores, case.dataset, top=3, groups=groups)
    tab = browser.open(path)
    tab.press("ArrowRight")
    shares = tab.run(
        "[...document.querySelectorAll('#pro li:not([hidden]), #opp li:not([hidden])')]"
        ".map((e) => [e.querySelector('.bar span').style.width, "
        "e.querySelector('i').style.left, e.querySelector('i').style.width].map(parseFloat))"
    )
    top = scores.top(3)
    shown = [side.values[0, 3] * sign > 0 for side, sign in zip(top, (1, -1), strict=True)]
    values = torch.cat([side.values[0, 3][mine] for side, mine in zip(top, shown, strict=True)]).abs()
    margins = 2 * torch.cat([side.errors[0, 3][mine] for side, mine in zip(top, shown, strict=True)])
    scale = (values + margins).max()
    for (bar, left, width), value, margin in zip(shares, values.tolist(), margins.tolist(), strict=True):
        low = max(value - margin, 0)
        expected = [100 * part / float(scale) for part in (value, low, value + margin - low)]
        assert [bar, left, width] == pytest.approx(expected, abs=0.1)
    tab.click("#tabs button:nth-child(2)")
    assert tab.run("document.getElementById('training').hidden && !document.getElementById('groups').hidden")
    for step in (3, 4):
        sums = scores.groups(groups).sums[0, step]
        order = [list(groups)[i] for i in sums.argsort(descending=True).tolist()]
        assert tab.run("[...document.querySelectorAll('#bars bdi')].map((e) => e.textContent)") == order
        sides = tab.run("[...document.querySelectorAll('#bars .bar')].map((e) => e.className)")
        above = scores.groups(groups).above_noise()[0, step][sums.argsort(descending=True)].tolist()
        assert [side == "bar within" for side in sides] == [not one for one in above]
        tab.press("ArrowRight")
    assert tab.complaints() == []
    tab.close()


def test_a_keyboard_alone_reaches_and_does_everything(tab: Tab, case: tuple[Case, Path]) -> None:
    focused = (
        "(() => { const e = document.activeElement; const name = e.id || e.getAttribute('aria-label') || e.tagName;"
        "return [name, getComputedStyle(e).outlineStyle, e.closest('[id]')?.id]; })()"
    )
    reached = []
    for _ in range(60):
        tab.press("Tab")
        name, outline, place = tab.run(focused)
        if name == "BODY":
            break
        assert outline != "none", f"{name} does not show that it has the focus"
        reached.append(place)
        if name == "play":
            tab.press(" ")
            assert tab.run("document.getElementById('play').textContent") == "Pause"
            tab.press("Enter")
            assert tab.run("document.getElementById('play').textContent") == "Play"
        if place == "scopes":
            tab.press("ArrowRight")
            assert tab.run("document.querySelector('#scopes input:checked').value") == "1"
            tab.press("ArrowLeft")
        if place == "opp" and reached.count("opp") == 2:
            before = tab.run("document.querySelectorAll('#pins li').length")
            pressed = "document.activeElement.getAttribute('aria-pressed')"
            assert tab.run(pressed) == "false"
            tab.press("Enter")
            assert (tab.run("document.querySelectorAll('#pins li').length"), tab.run(pressed)) == (before + 1, "true")
    wanted = ["gallery", "play", "step", "boxes", "scopes", "pro", "opp", "pins"]
    assert list(dict.fromkeys(reached)) == wanted
    tab.run("document.querySelector('#gallery li:nth-child(2) button').focus()")
    tab.press("Enter")
    assert tab.run(SHOWN)["name"] == "caption second"


def test_whatever_can_be_operated_or_looked_at_has_a_name_for_a_screen_reader(
    tab: Tab, case: tuple[Case, Path]
) -> None:
    tab.click("#gallery li:nth-child(2) button")
    nodes = tab.call("Accessibility.getFullAXTree")["nodes"]
    found: dict[str, list[str]] = {}
    for node in nodes:
        if not node["ignored"]:
            found.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
    for role in ("button", "slider", "radio", "image", "heading", "region", "navigation", "group"):
        assert found.get(role), f"no {role}"
        assert all(found[role]), f"a {role} without a name: {found[role]}"
    spoken = tab.run("document.getElementById('step').getAttribute('aria-valuetext')")
    assert spoken == "step 3 of 5, t = 500"
    assert any("Likelihood of “caption” with its band. t = 900: 10 %" in name for name in found["image"])


def test_hostile_texts_run_nothing_load_nothing_and_can_be_read(browser: Browser, tmp_path: Path) -> None:
    make_page(tmp_path / "report.html", HOSTILE)
    tab = browser.open(tmp_path / "report.html")
    tab.click("#gallery li:nth-child(2) button")
    tab.click("#boxes button")
    tab.press("ArrowRight")
    assert tab.run("document.querySelectorAll('img, iframe, object, body script ~ :not(script)').length") == 0
    assert tab.run("document.scripts.length") == 2
    texts = tab.run(
        "['h1', '#name', '#pro bdi', '#scopes bdi:last-child', '#features h3', '#pins bdi', 'footer li']"
        ".map((s) => [...document.querySelectorAll(s)].at(-1).textContent)"
    )
    assert all(HOSTILE in text for text in texts), texts
    assert tab.complaints() == []
    tab.close()


@pytest.mark.parametrize("width", [360, 800, 1400])
def test_nothing_is_wider_than_the_window(browser: Browser, tmp_path: Path, width: int) -> None:
    make_page(tmp_path / "report.html", "A" * 200)
    tab = browser.open(tmp_path / "report.html", width)
    tab.click("#gallery li:nth-child(2) button")
    # What is cut off by a parent on purpose, or for screen readers alone, does not count.
    outside = tab.run(
        "[...document.querySelectorAll('body *')].filter((e) => !e.closest('bdi, .unseen, .boxed')"
        "&& e.getBoundingClientRect().right > innerWidth + 0.5).map((e) => e.outerHTML.slice(0, 80))"
    )
    assert outside == []
    assert tab.run("[document.documentElement.scrollWidth, document.documentElement.clientWidth]") == [width, width]
    scrubber, height = tab.run("[document.getElementById('scrubber').offsetHeight, innerHeight]")
    assert scrubber < height / 4, "what stays on top leaves little room for the rest"
    assert tab.complaints() == []
    tab.close()


def test_twenty_images_of_twenty_steps_stay_below_ten_megabytes_and_open(browser: Browser, tmp_path: Path) -> None:
    # Noise is what compresses worst.
    case = make_case(num_queries=20, num_train=400, channels=3, side=64, timesteps=range(980, 0, -49))
    path = write_report(tmp_path / "report.html", case.trajectory, case.scores, case.dataset, top=8)
    assert path.stat().st_size < 10_000_000
    tab = browser.open(path)
    tab.run("document.activeElement.blur()")
    milliseconds: list[Any] = tab.run(
        "Array.from({length: 9}, () => { const begin = performance.now(); document.dispatchEvent("
        "new KeyboardEvent('keydown', {key: 'ArrowRight'})); return performance.now() - begin; })"
    )
    print(f"a step takes {sorted(milliseconds)[4]:.1f} ms")
    assert tab.run("document.getElementById('where').textContent").startswith("step 20 of 20")
    assert tab.complaints() == []
    tab.close()


def test_an_address_opens_the_page_at_its_image_step_and_region(browser: Browser, case: tuple[Case, Path]) -> None:
    made, path = case
    tab = browser.open(path)
    tab.run("location.hash = '#image-2,t-300,region-1'")
    tab.settle()
    check_step(tab, made, QUERY, 3, region=True)
    tab.close()


def test_one_step_and_no_scores_leave_a_page_without_complaints(browser: Browser, tmp_path: Path) -> None:
    case = make_case(num_queries=1, timesteps=[500])
    case.scores = replace(case.scores, values=torch.zeros_like(case.scores.values))
    tab = browser.open(write_report(tmp_path / "report.html", case.trajectory, case.scores, case.dataset))
    assert tab.run("document.getElementById('scrubber').hidden")
    assert tab.run("getComputedStyle(document.getElementById('pro'), '::after').content").startswith(
        '"No training image'
    )
    assert tab.complaints() == []
    tab.close()
