"""Compare attribution methods with what retraining does: ``python -m bench.lds --tier laptop``.

Trains models on random halves of the training set (kept in ``--work``, continued after an interruption), measures
every query under each of them, scores all methods, and writes ``lds-NAME.json`` (the losses), ``lds-NAME-table.json``,
``.md`` and ``.png``, and the same of single steps as ``lds-NAME-steps*``. With the losses at hand nothing is retrained
but the attributed models.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench.lds.compare import compare, plot, table
from bench.lds.step_compare import SHOWN, compare_steps, plot_steps, step_table
from bench.lds.step_truth import make_step_truth, read_step_truth
from bench.lds.tiers import TIERS
from bench.lds.truth import make_truth, open_setting, read_truth
from bench.table import insert


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for.

    Args:
        arguments: Instead of the command line's.

    Returns:
        Exit status.
    """
    parser = argparse.ArgumentParser(prog="python -m bench.lds", description=__doc__)
    parser.add_argument("--tier", choices=TIERS, default="laptop", help="data and sizes (default: laptop)")
    parser.add_argument("--data", type=Path, help="folder of the data, where the tier needs one")
    parser.add_argument("--work", type=Path, default=Path("build/lds"), help="folder of models and features")
    parser.add_argument("--out", type=Path, default=Path("bench/results"), help="folder of the results")
    parser.add_argument("--processes", type=int, default=1, help="trainings at once, one thread each (default: 1)")
    parser.add_argument("--seeds", type=int, help="trainings per reported half (default: the tier's)")
    parser.add_argument("--into", type=Path, help="write the tables into this file, between its markers")
    parser.add_argument("--retrain", action="store_true", help="make the tables of losses again")
    parser.add_argument("--only", choices=("images", "steps"), help="whole images or single steps alone")
    parser.add_argument("--short", action="store_true", help="at single steps compare only what is shown and drawn")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    tier = TIERS[options.tier]
    if options.seeds is not None:
        tier = replace(tier, num_seeds=options.seeds)
    setting = open_setting(tier, options.data, options.work)
    if options.only != "steps":
        losses = options.out / f"lds-{tier.name}.json"
        if options.retrain or not losses.exists():
            make_truth(setting, losses, options.processes)
        document = compare(setting, read_truth(losses))
        stem = options.out / f"lds-{tier.name}-table"
        plot(document, stem.with_suffix(".png"))
        _write(document, table(document), stem)
        if options.into is not None:
            options.into.write_text(insert(options.into.read_text(), table(document), "lds"))
    if options.only != "images":
        responses = options.out / f"lds-{tier.name}-steps.json"
        if options.retrain or not responses.exists():
            make_step_truth(setting, responses, options.processes)
        document = compare_steps(setting, read_step_truth(responses), short=options.short)
        stem = options.out / f"lds-{tier.name}-steps-table"
        plot_steps(document, stem.with_suffix(".png"))
        _write(document, step_table(document), stem)
        if options.into is not None:
            options.into.write_text(insert(options.into.read_text(), step_table(document, SHOWN), "lds-steps"))
    return 0


def _write(document: dict[str, Any], text: str, stem: Path) -> None:
    """Write a comparison as JSON and Markdown."""
    stem.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
    stem.with_suffix(".md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    sys.exit(main())
