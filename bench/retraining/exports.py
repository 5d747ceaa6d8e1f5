"""How short may a row of an export be? ``python -m bench.retraining.exports --tier laptop``.

Rows of the library's store, cut to fewer numbers (``journey.curvature.directions``) and written as an index of FAISS
with a byte a number, are asked for the scores of single steps, and these held against the losses of retrained models
that ``bench.retraining`` keeps. The numbers are ``exports-NAME.json`` in ``bench/results``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

import journey
from bench.retraining.arguments import make_parser, write_into
from bench.retraining.library import DEFAULT, features_of
from bench.retraining.steps.compare import add_kind, tuning_lds
from bench.retraining.steps.truth import STEP_KINDS, StepTruth, read_step_truth
from bench.retraining.tiers import TIERS
from bench.retraining.whole.truth import open_setting
from journey.curvature.directions import Directions
from journey.exports.vectors import write_faiss
from journey.features.features import Features

DIMS = (2048, 1024, 512, 256, 128)


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for.

    Args:
        arguments: Instead of the command line's.

    Returns:
        Exit status.
    """
    options = make_parser("bench.retraining.exports", __doc__).parse_args(arguments)
    tier = TIERS[options.tier]
    torch.set_num_threads(1)
    features, _ = features_of(open_setting(tier, options.data, options.work))
    truth = read_step_truth(options.out / f"lds-{tier.name}-steps.json")
    found = journey.score(features, truth.trajectory, progress=False)
    assert found.solutions is not None
    whole = Directions.of(features.fit.gram(), features.blocks(), max(DIMS))
    scores = {DEFAULT: found.values}
    for dims in DIMS:
        cut = Directions(whole.of_rows[:, :dims].contiguous(), whole.of_queries[:, :dims].contiguous())
        scores[str(dims)] = indexed_scores(features, cut, found.solutions[0])
    document = compare(scores, truth)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"exports-{tier.name}.json").write_text(json.dumps(document, indent=1) + "\n")
    print(table(document))
    write_into(options, table(document), f"exports-{tier.name}")
    return 0


def indexed_scores(features: Features, cut: Directions, solutions: Tensor) -> Tensor:
    """Return the scores that an index of cut rows finds.

    Args:
        features: The training images, whose ids are 0, 1, ...
        cut: The directions.
        solutions: Solved queries. [num_queries, num_steps, proj_dim]

    Returns:
        float32. [num_queries, num_steps, num_train]
    """
    import faiss

    with TemporaryDirectory() as folder:
        path = Path(folder) / "rows.faiss"
        write_faiss(path, features.blocks(directions=cut), cut.dims)
        index = faiss.read_index(str(path))
    values, ids = index.search(cut.queries(solutions).flatten(0, 1).numpy(), features.num_samples)
    found = torch.empty(values.shape).scatter_(1, torch.from_numpy(ids), torch.from_numpy(values))
    return found.view(*solutions.shape[:2], -1)


def compare(scores: dict[str, Tensor], truth: StepTruth) -> dict[str, Any]:
    """Return the LDS of each length of rows, on tuning halves and on reported ones.

    Args:
        scores: Of the store's rows, named ``DEFAULT``, and of cut ones. Each [num_queries, num_steps, num_train]
        truth: What really happens.

    Returns:
        The document, see ``table``.
    """
    rows = {name: {"tuning": tuning_lds(truth, values)} for name, values in scores.items()}
    document: dict[str, Any] = {"rows": rows, "ceiling": {}}
    subsets, losses = truth.reported()
    for kind in STEP_KINDS:
        part = truth.of_kind(kind)
        add_kind(document, kind, {name: values[part] for name, values in scores.items()}, losses[:, :, part], subsets)
    return document


def table(document: dict[str, Any]) -> str:
    """Render a document as Markdown: tuning halves, then reported ones with the loss on the same resamples."""
    first, second = STEP_KINDS
    head = ["numbers, a byte each", f"tuning halves, {first} / {second}", f"{first}", "lost", f"{second}", "lost"]
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    for name, row in document["rows"].items():
        if "tuning" not in row:  # controls
            continue
        cells = ["4,096 of the store" if name == DEFAULT else f"{int(name):,}"]
        cells.append(" / ".join(f"{row['tuning'][kind]:.3f}" for kind in STEP_KINDS))
        for kind in STEP_KINDS:
            cells.append("{:.3f}".format(row[kind]["mean"][0]))
            cells.append("" if name == DEFAULT else "{:.3f} [{:.3f}, {:.3f}]".format(*row[kind]["behind"]))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
