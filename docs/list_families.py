"""List the families of models from their adapters: ``python docs/list_families.py`` rewrites the table of the guide.

A row is a module of ``journey.models``: the pipelines that it takes, their guidance by default, and what its first line
says. A test fails while the page says anything else.
"""

from __future__ import annotations

import sys
from pathlib import Path

from journey.models import load

PAGE = Path(__file__).resolve().parents[1] / "docs" / "guides" / "text-models.md"
BEGIN, END = "<!-- families:begin -->", "<!-- families:end -->"


def table() -> str:
    """Return one row for each module that has an adapter."""
    modules: dict[str, list[str]] = {}
    for pipeline, adapter in load._ADAPTERS.items():
        modules.setdefault(adapter.__module__, []).append(pipeline)
    lines = ["| family | pipeline | guidance | network |", "|---|---|---|---|"]
    for module, pipelines in modules.items():
        family, _, network = (sys.modules[module].__doc__ or "").partition("\n")[0].partition(": ")
        guidance = sorted({f"{load._ADAPTERS[pipeline].default_guidance:g}" for pipeline in pipelines})
        names = ", ".join(f"`{pipeline}`" for pipeline in pipelines)
        lines.append(f"| {family} | {names} | {', '.join(guidance)} | {network.rstrip('.')} |")
    return "\n".join(lines)


def redraw(page: str) -> str:
    """Return a page with the table between its markers."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(redraw(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
