"""Plant faults, train, check, count: ``python -m bench.check --copies``.

Folders of 40 emoji with three faults each: a copy, sometimes altered; two captions that changed places; a
damaged image or one of something else. A LoRA is trained on each, on the base of the text demo. Thresholds were chosen
on other seeds. With ``--copies`` also AUC of copies of training images against held-out images.

Models, features and what was found are kept in ``--work``; results are ``check-emoji.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from bench.check import copying, faults
from bench.check.folders import COPIES
from bench.retraining.arguments import write_into

_TITLES = {"duplicates": "duplicates", "caption": "swapped captions", "odd": "damaged or off topic"}


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for.

    Args:
        arguments: Instead of the command line's.

    Returns:
        Exit status.
    """
    parser = argparse.ArgumentParser(prog="python -m bench.check", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[*range(100, 120)], metavar="N", help="folders")
    parser.add_argument("--unknown", action="store_true", help="of things that the base does not know")
    parser.add_argument("--copies", action="store_true", help="also ask about copies")
    parser.add_argument("--work", type=Path, default=Path("build/check"), help="folder of models and features")
    parser.add_argument("--out", type=Path, default=Path("bench/results"), help="folder of the numbers, as JSON")
    parser.add_argument("--into", type=Path, help="also write the tables into this file, between their markers")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    known, seeds = not options.unknown, options.seeds
    document: dict[str, Any] = {"seeds": seeds, "known": known, "folders": [], "copies": []}
    for seed in seeds:
        document["folders"].append(faults.folder(seed, known, options.work))
        if options.copies:
            document["copies"].append(copying.folder(seed, known, options.work))
        print(f"folder {seed}: {document['folders'][-1]['counts']}", flush=True)
    name = "check-emoji" if known else "check-emoji-unknown"
    text = table(document) + ("\n\n" + copies_table(document) if options.copies else "")
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    print(text)
    write_into(options, table(document), name)
    if options.copies:
        write_into(options, copies_table(document), f"{name}-copies")
    return 0


def table(document: dict[str, Any]) -> str:
    """Render precision and recall, and how often each ranking has the fault first, as Markdown."""
    folders = document["folders"]
    sums = {
        kind: [sum(found["counts"][kind][n] for found in folders) for n in range(4)] for kind in (*_TITLES, "opponent")
    }
    whole = [sum(part[n] for part in sums.values()) for n in range(4)]
    lines = [f"| {len(folders)} folders | precision | recall |", "| --- | --- | --- |"]
    for title, counts in [
        *((title, sums[kind]) for kind, title in _TITLES.items()),
        ("images against the rest (none planted)", sums["opponent"]),
        ("**all**", whole),
    ]:
        lines.append(f"| {title} | {_share(counts[0], counts[1])} | {_share(counts[2], counts[3])} |")
    names = list(dict.fromkeys(name for found in folders for part in found["ranks"].values() for name in part))
    lines += ["", f"| the fault comes first | {' | '.join(_TITLES.values())} |", "| --- | --- | --- | --- |"]
    for name in names:
        cells = []
        for kind in _TITLES:
            ranks = [found["ranks"][kind][name] for found in folders if name in found["ranks"][kind]]
            cells.append(_share(sum(rank == 1 for rank in ranks), len(ranks)) if ranks else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def copies_table(document: dict[str, Any]) -> str:
    """Render the AUC of copies against held-out images as Markdown."""
    folders = document["copies"]
    lines = [
        f"| AUC, {len(folders)} folders | {' | '.join(COPIES)} |",
        f"| {' | '.join(['---'] * (1 + len(COPIES)))} |",
    ]
    for name in folders[0]["near"]:
        cells = []
        for kind in COPIES:
            value, low, high = copying.interval(folders, name, kind)
            cells.append(f"{value:.2f} [{low:.2f}, {high:.2f}]")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    cells = []
    for kind in COPIES:
        p_values = [p for found in folders for p in found["p values"][kind]]
        cells.append(_share(sum(p <= 0.05 for p in p_values), len(p_values)))
    lines.append(f"| {copying.OURS}, p ≤ .05 | {' | '.join(cells)} |")
    return "\n".join(lines)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.2f} ({part} of {whole})" if whole else f"({part} of {whole})"


if __name__ == "__main__":
    sys.exit(main())
