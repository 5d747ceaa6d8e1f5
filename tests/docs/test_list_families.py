"""The table of families in the guide is made from the adapters and is up to date."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_guide_lists_the_families() -> None:
    spec = importlib.util.spec_from_file_location("list_families", ROOT / "docs" / "list_families.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    page = script.PAGE.read_text(encoding="utf-8")
    assert page == script.redraw(page), "run: python docs/list_families.py"
    assert "| Z-Image | `ZImagePipeline` | 5 | " in page
