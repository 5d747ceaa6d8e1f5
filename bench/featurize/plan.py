"""Whether a plan comes true: ``python -m bench.featurize.plan``.

Plans featurizing digits of the demo with its model, then fits and featurizes, and compares times and bytes. On a
machine whose load changes meanwhile the two differ by that; there ``--cpu-seconds`` compares what one thread took.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import journey
from journey.demo.digits import DigitsDataset, load_digits_dataset, train
from journey.features.plan import plan


def main() -> int:
    """Print the plan, and each number of it beside the true one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-images", type=int, default=1797, help="digits (default: all 1,797)")
    parser.add_argument("--seconds", type=float, default=20.0, help="of the plan (default 20)")
    parser.add_argument("--cpu-seconds", action="store_true", help="of both, for a busy machine; with one thread")
    options = parser.parse_args()
    clock = time.process_time if options.cpu_seconds else time.perf_counter
    digits = load_digits_dataset()
    dataset = DigitsDataset(digits.images[: options.num_images], digits.labels[: options.num_images])
    model = train(dataset, steps=50, progress=False)
    load = os.getloadavg()[0]
    begin = time.perf_counter()
    with patch("time.perf_counter", clock):
        planned = plan(model, dataset, seconds=options.seconds)
    print(
        f"{planned}\nplanned in {time.perf_counter() - begin:.1f} s, {os.cpu_count()} cores with a load of {load:.1f}\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        fit, out = Path(folder) / "fit", Path(folder) / "features"
        fitting = _seconds(clock, lambda: journey.fit(model, dataset, fit, progress=False))
        measuring = _seconds(clock, lambda: journey.featurize(model, dataset, out, fit=fit, progress=False))
        stored = sum(path.stat().st_size for path in out.iterdir())
    rows = {
        "fit, seconds": (planned.fit_seconds.median, fitting),
        "measuring, seconds": (planned.seconds.median - planned.fit_seconds.median, measuring),
        "together, seconds": (planned.seconds.median, fitting + measuring),
        "store, bytes": (planned.store_bytes, stored),
    }
    print("| | planned | true | planned / true |\n|---|---|---|---|")
    for name, (expected, found) in rows.items():
        print(f"| {name} | {expected:,.1f} | {found:,.1f} | {expected / found:.2f} |")
    return 0


def _seconds(clock: Callable[[], float], run: Callable[[], object]) -> float:
    begin = clock()
    run()
    return clock() - begin


if __name__ == "__main__":
    sys.exit(main())
