"""The published pipeline: per-sample gradients by ``vmap``, then a projection by traker's BasicProjector.

Its projection takes minutes even for the small UNet: the matrix of grad_dim by proj_dim entries is drawn again for
every call. So it is timed on a share of the matrix, some of its rows and two of its blocks of columns, drawn in the
call as the others would be; time is proportional to both. The gradients are timed whole.
"""

from __future__ import annotations

from typing import NamedTuple

from bench.case import PROJ_DIM, Context
from bench.featurize.per_sample import vmap_gradients
from bench.featurize.workload import Sizes, Workload
from bench.harness import Call, Goal, Ratio, Row, Timings, interleave
from bench.peers import basic_projector
from journey.measure.featurizer import Featurizer

BLOCK = 32  # columns of the matrix at a time: 4.6 GB for 35.7M parameters
AMORTISED = 32  # gradients that share a draw of the matrix, as many as fit beside it: 4.6 GB as well
SHARE_DIM = 1 << 21  # rows of the matrix that are timed

GOAL_SPEEDUP = {"cpu": 50.0, "cuda": 10.0}


class Share(NamedTuple):
    """A part of one projection of ``num_rows`` gradients, and how often it fits into the whole."""

    run: Call
    times: float


def rows(sizes: Sizes, context: Context, work: Workload, featurizer: Featurizer) -> list[Row]:
    """Time the pipeline beside featurizing the same batch.

    Args:
        sizes: Network and batch.
        context: Where and how thoroughly.
        work: The batch.
        featurizer: Ours.

    Returns:
        A row with the pipeline projecting 32 gradients at a time, which has the goal, and one with it projecting the
        gradients of the batch alone.

    Raises:
        AbsentPeerError: If traker is absent.
    """
    vmapped = vmap_gradients(work.network, work.num_draws)
    shares = {
        count: _share(context, count, featurizer.engine.num_parameters) for count in (AMORTISED, work.num_samples)
    }
    calls: dict[str, Call] = {
        "ours": lambda: work.features(featurizer),
        "gradients": lambda: vmapped(work.x_t, work.times, work.target),
        **{f"share {count}": share.run for count, share in shares.items()},
    }
    timings = interleave(calls, context.device, budget=0, rounds=(3, 3), in_series=True)
    found = []
    for count, share in shares.items():
        projection = [t * share.times * work.num_samples / count for t in timings.seconds[f"share {count}"]]
        whole = [g + p for g, p in zip(timings.seconds["gradients"], projection, strict=True)]
        both = Timings({"ours": timings.seconds["ours"], "published": whole})
        ratio = both.ratio("published", "ours")
        row = Row(f"  published pipeline, {count} gradients per projection", str(sizes), context.device.type)
        row.seconds, row.repetitions = both.of("published"), both.repetitions
        row.rate, row.rate_unit = work.num_samples / row.seconds.median, "samples/s"
        row.ratios.append(Ratio("featurize", ratio, "cost"))
        row.note = (
            f"vmap(grad) timed whole, {timings.of('gradients').median:.2g} s; "
            f"traker BasicProjector(block_size={BLOCK}) timed on 1/{share.times:.0f} of its matrix"
        )
        if count == AMORTISED:
            goal = GOAL_SPEEDUP[context.device.type]
            row.goal = Goal("speedup of featurize", ">=", goal, ratio.median)
        found.append(row)
    return found


def _share(context: Context, count: int, num_parameters: int) -> Share:
    # Of a single block traker would keep the matrix.
    projector = basic_projector(SHARE_DIM, BLOCK, "rademacher", context.device, proj_dim=2 * BLOCK)
    grads = context.randn(count, SHARE_DIM)
    return Share(lambda: projector.project(grads, 0), num_parameters / SHARE_DIM * PROJ_DIM / (2 * BLOCK))
