"""Run the benchmarks: one line per case on the terminal, everything in a JSON file.

Exit status 1 if a case failed, which it does when a result is wrong; a goal that is not met is only printed.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bench.case import Case, Context
from bench.featurize import featurize
from bench.harness import FULL, QUICK, Row, describe_goal, line
from bench.machine import describe, measure_ceilings, result_name
from bench.ops import gram as accumulate_gram
from bench.ops import norm, packed, philox, project, sketch, sketch_outer
from journey.ops import _native

RESULTS = Path("bench/results")

SUITES: tuple[Callable[[Context], Iterator[Case]], ...] = tuple(
    module.cases for module in (sketch, project, sketch_outer, norm, accumulate_gram, packed, philox, featurize)
)


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for.

    Args:
        arguments: Instead of the command line's.

    Returns:
        Exit status.
    """
    options = _parse(arguments)
    torch.set_num_threads(options.threads)
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32, for ours and for what it is compared with
    document: dict[str, Any] = describe(options.threads)
    document["command"] = "python -m bench " + shlex.join(sys.argv[1:] if arguments is None else arguments)
    machine = document["machine"]
    print(f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB; {options.threads} threads")
    print(f"torch {document['versions']['torch']}, journey {document['versions']['journey']}")
    if document["load_before"] > 0.5 * machine["cores"]:
        print(f"the machine is busy (load {document['load_before']}): the figures below are disturbed", file=sys.stderr)

    out = options.out or RESULTS / result_name(document)
    out.parent.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for device in _devices():
        ceilings, measured = measure_ceilings(device, QUICK if options.quick else FULL)
        rows += _shown(measured)
        context = Context(device, options.quick, ceilings)
        for suite in SUITES:
            for case in suite(context):
                if f"{case.op} {case.sizes}".startswith(options.only):
                    rows += _shown(_run(case, device))
                    # After each case: an interrupted run keeps what it has.
                    document["rows"] = [asdict(row) for row in rows]
                    out.write_text(json.dumps(document, indent=1) + "\n")
    if "rows" not in document:
        print(f"--only must be how a case's name begins, none begins with {options.only!r}", file=sys.stderr)
        return 2
    print()
    for row in rows:
        if row.goal is not None:
            print(f"{row.op}  {row.sizes}: {describe_goal(row.goal)}")
    failures = sum(bool(row.failure) for row in rows)
    print(f"{len(rows)} rows, {failures} failed; written to {out}")
    return 1 if failures else 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="fewer sizes and repetitions: one minute instead of twenty"
    )
    parser.add_argument("--threads", type=int, default=2, help="threads of torch and of the kernels (default: 2)")
    parser.add_argument("--out", type=Path, help=f"the JSON file (default: {RESULTS}/MACHINE-COMMIT.json)")
    parser.add_argument("--only", default="", help='cases whose name begins so, such as "featurize count sketch"')
    options = parser.parse_args(arguments)
    if options.threads < 1:
        parser.error(f"--threads must be positive, got {options.threads}")
    return options


def _devices() -> list[torch.device]:
    has_cuda = torch.cuda.is_available() and bool(_native.build_info()["cuda"])
    return [torch.device("cpu"), *([torch.device("cuda")] if has_cuda else [])]


def _run(case: Case, device: torch.device) -> list[Row]:
    """Run a case; whatever goes wrong in it becomes a failed row, and the next case still runs."""
    row = Row(case.op, case.sizes, device.type)
    try:
        return [row, *(case.run(row) or [])]
    except Exception as error:
        return [Row(case.op, case.sizes, device.type, failure=f"{type(error).__name__}: {error}")]


def _shown(rows: list[Row]) -> list[Row]:
    for row in rows:
        print(line(row), flush=True)
    return rows


if __name__ == "__main__":
    sys.exit(main())
