"""Compare attribution methods with what retraining does: ``python -m bench.retraining --tier laptop``.

Trains models on random halves of the training set (kept in ``--work``, continued after an interruption), measures
every query under each of them, scores all methods, and writes ``lds-NAME.json`` (the losses), ``lds-NAME-table.json``,
``.md`` and ``.png``, and the same of single steps as ``lds-NAME-steps*``. The tier ``emoji-lora`` fine-tunes adapters
and needs the packages of the extra ``demo-text`` and peft. Numbers go to ``bench/results``, tables and
pictures to ``docs/results``. With the losses at hand nothing is retrained
but the attributed models.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch

from bench.retraining.arguments import make_parser, write_into, write_results
from bench.retraining.emoji_lora import EMOJI_LORA, open_emoji_lora
from bench.retraining.steps.compare import SHOWN, compare_steps, plot_steps, step_table
from bench.retraining.steps.truth import make_step_truth, read_step_truth
from bench.retraining.tiers import TIERS
from bench.retraining.whole.compare import compare, plot, table
from bench.retraining.whole.truth import Setting, make_truth, open_setting, read_truth


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for.

    Args:
        arguments: Instead of the command line's.

    Returns:
        Exit status.
    """
    parser = make_parser("bench.retraining", __doc__, EMOJI_LORA)
    parser.add_argument("--processes", type=int, default=1, help="trainings at once, one thread each (default: 1)")
    parser.add_argument("--seeds", type=int, help="trainings per reported half (default: the tier's)")
    parser.add_argument("--retrain", action="store_true", help="make the tables of losses again")
    parser.add_argument("--truth", action="store_true", help="stop when the tables of losses are there: no method")
    parser.add_argument("--only", choices=("images", "steps"), help="whole images or single steps alone")
    parser.add_argument("--short", action="store_true", help="compare fewer: at single steps what is drawn")
    options = parser.parse_args(arguments)
    if options.into is not None and options.only is None:
        parser.error("--into needs --only images or --only steps: each table has a file of its own")
    torch.set_num_threads(1)
    is_lora = options.tier == EMOJI_LORA.name
    tier = EMOJI_LORA if is_lora else TIERS[options.tier]
    if options.seeds is not None:
        tier = replace(tier, num_seeds=options.seeds)
    losses, responses = (options.out / f"lds-{tier.name}{part}.json" for part in ("", "-steps"))
    if is_lora:
        setting: Setting = open_emoji_lora(
            tier, options.work, None if options.retrain else responses.with_suffix(".safetensors")
        )
    else:
        setting = open_setting(tier, options.data, options.work)
    if options.only != "steps" and (options.retrain or not losses.exists()):
        make_truth(setting, losses, options.processes)
    if options.only != "images" and (options.retrain or not responses.exists()):
        make_step_truth(setting, responses, options.processes)
    if options.truth:
        return 0
    if options.only != "steps":
        document = compare(setting, read_truth(losses), short=options.short)
        write_results(options, f"lds-{tier.name}-table", document, table(document))
        plot(document, options.pages / f"lds-{tier.name}-table.png")
        write_into(options, table(document), "lds")
    if options.only != "images":
        document = compare_steps(setting, read_step_truth(responses), short=options.short)
        write_results(options, f"lds-{tier.name}-steps-table", document, step_table(document))
        plot_steps(document, options.pages / f"lds-{tier.name}-steps-table.png")
        write_into(options, step_table(document, SHOWN), "lds-steps")
    return 0


if __name__ == "__main__":
    sys.exit(main())
