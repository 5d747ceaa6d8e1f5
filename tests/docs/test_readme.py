"""The README's example runs as written, on fewer images and steps."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from journey.demo import digits

README = Path(__file__).parents[2] / "README.md"


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert "steps=300" in example
    whole = digits.load_digits_dataset()
    monkeypatch.setattr(
        digits, "load_digits_dataset", lambda: digits.DigitsDataset(whole.images[:12], whole.labels[:12])
    )
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(example.replace("steps=300", "steps=2"), names)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(re.fullmatch(r"\d+ \[(\(\d+, \d\)(, )?){5}\]", line) for line in lines), lines
