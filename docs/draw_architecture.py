"""Draw the map of ``journey/`` from the import contract: ``python docs/draw_architecture.py`` rewrites the page.

The layers are those of ``[tool.importlinter]`` in pyproject.toml, the jobs are the first lines of the packages'
docstrings. A test fails while the page says anything else.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "development" / "architecture.md"
BEGIN, END = "<!-- layers:begin -->", "<!-- layers:end -->"


def contracts(root: Path = ROOT) -> list[dict[str, Any]]:
    """Return the contracts of import-linter."""
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    found: list[dict[str, Any]] = settings["tool"]["importlinter"]["contracts"]
    return found


def layers(root: Path = ROOT) -> list[list[str]]:
    """Return the layers from the top to the bottom, each as the names of its packages without ``journey.``.

    Rooms that the contract names and nobody has built yet are left out.
    """
    (contract,) = [contract for contract in contracts(root) if contract["type"] == "layers"]
    rows = []
    for layer in contract["layers"]:
        text = layer if isinstance(layer, str) else " | ".join(layer)
        names = text.replace("|", " ").replace(":", " ").replace("(", " ").replace(")", " ").split()
        rows.append([name for name in (name.removeprefix("journey.") for name in names) if source(name, root).exists()])
    return [row for row in rows if row]


def source(name: str, root: Path = ROOT) -> Path:
    """Return the file with the docstring of a package or module."""
    path = root / "journey" / Path(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def job(name: str, root: Path = ROOT) -> str:
    """Return the first line of the docstring of a package or module."""
    text = ast.get_docstring(ast.parse(source(name, root).read_text(encoding="utf-8"))) or ""
    return text.partition("\n\n")[0].replace("\n", " ").replace("``", "`").replace(" | ", ", ")


def draw(root: Path = ROOT) -> str:
    """Return the table of layers, the contract's top first, and the names of the other contracts."""
    lines = ["| level | package | job |", "|---|---|---|"]
    rows = layers(root)
    for level, names in zip(range(len(rows), 0, -1), rows, strict=True):
        lines += [f"| {level} | `{name}` | {job(name, root)} |" for name in names]
    others = [contract["name"] for contract in contracts(root) if contract["type"] != "layers"]
    if others:
        lines += ["", "Further contracts:", "", *(f"- {name}." for name in others)]
    return "\n".join(lines)


def redraw(page: str, root: Path = ROOT) -> str:
    """Return a page with the drawing between its markers."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{draw(root)}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(redraw(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
