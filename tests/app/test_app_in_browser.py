"""The app in a real browser, by mouse and keys: what it shows is of what was asked, for everybody who asks."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from app_cases import NUM_TRAIN, make_workbench
from browser import Browser, Tab
from PIL import Image
from report_cases import HOSTILE

from journey.app.serve import serve
from journey.app.session import Session
from journey.app.workbench import Workbench

pytestmark = pytest.mark.slow  # Gradio comes with the extra [app], which the default tests do without

LABELS = [f"{HOSTILE} kind {i % 2}" for i in range(NUM_TRAIN)]
STATE = "document.querySelector('#state textarea').value"
READY = "!!document.querySelector('#brush canvas') && !!document.querySelector('#generate')"
_PIPE = 0.05  # seconds that a pass takes at least, so that there is something to wait for


class Visitor:
    """A tab with the app; what its frame shows is read from inside of the frame."""

    def __init__(self, browser: Browser, address: str, width: int = 1440) -> None:
        self.address = address
        self.tab: Tab = browser.visit(address, READY, width)
        time.sleep(0.5)  # the session comes with the first answer

    def ask(self, selector: str, expected: str) -> str:
        self.tab.click(selector)
        self.tab.wait(f"{STATE}.includes({json.dumps(expected)})")
        return self.tab.run(STATE)

    def open_part(self, name: str) -> None:
        """Open an accordion."""
        self.tab.click(f"#{name} button")
        time.sleep(0.3)

    def page(self) -> dict[str, Any]:
        """The data of the page in the frame."""
        source = self.tab.run("document.querySelector('iframe').srcdoc")
        return json.loads(source.partition('id="data">')[2].partition("</script>")[0])

    def paint(self, *places: tuple[float, float]) -> None:
        self.tab.drag("#brush canvas", *places)
        self.tab.settle()

    def leave(self) -> None:
        # Gradio warns of itself after an upload.
        assert [c for c in self.tab.complaints(self.address) if "Method not implemented." not in str(c)] == []
        self.tab.close()


@pytest.fixture(scope="module")
def workbench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    made = make_workbench(tmp_path_factory.mktemp("features"), LABELS)
    made.denoiser.network.register_forward_hook(lambda *_: time.sleep(_PIPE))
    return made


@pytest.fixture(scope="module")
def address(workbench: Workbench) -> Iterator[str]:
    blocks, found = serve(workbench)
    yield found
    blocks.close(verbose=False)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


def scope_of(page: dict[str, Any], place: int) -> dict[str, Any]:
    return page["queries"][0]["scopes"][place]


def test_generate_paint_and_ask_when(browser: Browser, address: str, workbench: Workbench, tmp_path: Path) -> None:
    visitor = Visitor(browser, address)
    visitor.ask("#generate", "Generated")
    expected = Session(workbench)
    expected.generate()
    first = visitor.page()
    alone = json.loads(expected.page().partition('id="data">')[2].partition("</script>")[0])
    assert first == alone
    assert sorted(name for name, _ in first["groups"]) == ["kind 0", "kind 1"]
    visitor.paint((0.3, 0.3), (0.5, 0.5), (0.6, 0.4))
    begin = time.monotonic()
    visitor.ask("#attribute", "part 1")
    print(f"from the press to the answer: {time.monotonic() - begin:.2f} s")
    page = visitor.page()
    assert scope_of(page, 0) == scope_of(first, 0)
    top, left, bottom, right = scope_of(page, 1)["box"]
    assert (top, left, bottom, right) == pytest.approx((25, 25, 62.5, 75), abs=13)
    assert scope_of(page, 1)["curves"] != scope_of(page, 0)["curves"]
    assert "paint a part" in visitor.ask("#attribute", "paint a part"), "the brush is clean for the next part"
    visitor.open_part("decision")
    visitor.ask("#decide", "is decided")
    assert visitor.page()["queries"][0]["features"][0]["name"] == "part 1 looks as it does in the end"
    visitor.open_part("downloads")
    visitor.ask("#write", "Written")
    visitor.tab.wait("document.querySelectorAll('#files a').length > 0")
    links = visitor.tab.run("[...document.querySelectorAll('#files a')].map((a) => a.href)")
    assert [link.rpartition("/")[2] for link in links] == [
        *("report.html", "report.csv", "scores.parquet", "part-1.parquet")
    ]
    visitor.leave()


def test_the_page_keeps_its_place_when_a_part_is_added(browser: Browser, address: str) -> None:
    """The frame is another origin: what it shows is asked through its messages, as the app's script does."""
    visitor = Visitor(browser, address)
    listen = "window.told = []; addEventListener('message', (e) => e.data.place && told.push(e.data.place))"
    visitor.tab.run(listen)
    visitor.ask("#generate", "Generated")
    visitor.tab.wait("told.length > 0")
    pins = [3, 1, 4]
    send = f"{{ journey: 'open', place: {{ t: 16, pins: {pins}, tab: 'groups' }} }}"
    visitor.tab.run(f"document.querySelector('iframe').contentWindow.postMessage({send}, '*')")
    visitor.tab.wait("told.at(-1).t === 16 && told.at(-1).tab === 'groups'")
    visitor.paint((0.2, 0.2), (0.8, 0.2))
    visitor.ask("#attribute", "part 1")
    visitor.tab.wait("told.at(-1).scope === 1")
    place = visitor.tab.run("told.at(-1)")
    assert (place["t"], place["tab"], place["pins"][:3]) == (16, "groups", pins)
    visitor.leave()


def test_keys_paint_as_the_mouse_does(browser: Browser, address: str) -> None:
    visitor = Visitor(browser, address)
    visitor.ask("#generate", "Generated")
    visitor.tab.run("document.querySelector('#brush canvas').focus()")
    for key in ("ArrowLeft", "ArrowLeft", " ", "ArrowRight", " "):
        visitor.tab.press(key)
    visitor.ask("#attribute", "part 1")
    top, left, bottom, right = scope_of(visitor.page(), 1)["box"]
    assert top < 50 < bottom
    assert left < 50 <= right
    visitor.leave()


def test_work_is_cancelled_and_the_next_is_done(browser: Browser, address: str) -> None:
    visitor = Visitor(browser, address)
    visitor.tab.click("#generate")
    time.sleep(1)
    begin = time.monotonic()
    visitor.ask("#cancel", "Cancelled")
    assert visitor.tab.run("!document.querySelector('iframe').srcdoc")
    time.sleep(0.5)  # Gradio takes no press of the same button at the same moment
    visitor.ask("#generate", "Generated")  # begins when the pass that was cancelled ends, not when its work would have
    assert time.monotonic() - begin < 60
    visitor.leave()


def test_two_visitors_at_once_get_what_each_asked_for(browser: Browser, address: str, workbench: Workbench) -> None:
    visitors = [Visitor(browser, address) for _ in range(2)]
    for seed, visitor in enumerate(visitors):
        visitor.tab.front()
        visitor.open_part("options")
        visitor.tab.run(
            "(() => { const input = document.querySelector('#seed input'); input.value = '"
            + str(seed + 5)
            + "'; input.dispatchEvent(new Event('input', { bubbles: true })); })()"
        )
    for visitor in visitors:
        visitor.tab.front()
        visitor.tab.click("#generate")
    for seed, visitor in enumerate(visitors):
        visitor.tab.wait(f"{STATE}.includes('Generated')")
        expected = Session(workbench)
        expected.generate(seed=seed + 5)
        alone = json.loads(expected.page().partition('id="data">')[2].partition("</script>")[0])
        assert visitor.page() == alone
        visitor.leave()


@pytest.mark.parametrize("kind", ["good", "broken", "huge"])
def test_an_upload_is_attributed_or_gets_a_sentence(browser: Browser, address: str, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "<img src=x onerror=alert(1)>.png"
    if kind == "good":
        Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4).save(path)
    elif kind == "huge":
        Image.new("1", (20_000, 10_000)).save(path)
    else:
        path.write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    visitor = Visitor(browser, address)
    visitor.open_part("own")
    root = visitor.tab.call("DOM.getDocument")["root"]["nodeId"]
    node = visitor.tab.call("DOM.querySelector", nodeId=root, selector="#file input[type=file]")["nodeId"]
    visitor.tab.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])
    visitor.tab.wait("document.querySelector('#file').innerText.includes('onerror')")
    expected = {"good": "Read.", "broken": "cannot be read", "huge": "50,000,000 that are read; scale it down"}
    visitor.ask("#open", expected[kind])
    assert visitor.tab.run("document.querySelectorAll('#file img[onerror]').length") == 0
    visitor.leave()


@pytest.mark.parametrize("width", [390, 800, 1440])
def test_nothing_is_wider_than_the_window(browser: Browser, address: str, width: int) -> None:
    visitor = Visitor(browser, address, width)
    visitor.ask("#generate", "Generated")
    sizes = visitor.tab.run("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert sizes == [width, width]
    visitor.leave()
