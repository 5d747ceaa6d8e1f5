"""Gram matrix of the columns of the features, accumulated in float64, beside the full product."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from bench.case import PROJ_DIM, Case, Context
from bench.harness import Bound, Effort, Goal, Ratio, Row, checked, measure, relative_error
from journey import ops
from journey.ops import reference

# float64 on the CPU; on CUDA products are float32 within 512 samples.
TOLERANCE = {"cpu": 1e-13, "cuda": 1e-6}

GOAL_SPEEDUP = {"cpu": 1.5, "cuda": 1.4}

# All sides do the same kind of work for a third of a second: a median over a few rounds would say more about the
# machine's other users than about them.
FEWEST_ROUNDS = 15


def cases(context: Context) -> Iterator[Case]:
    """Yield the cases: on the CPU also few samples, whose time is that of reading and writing the matrix."""
    sizes = [(512, PROJ_DIM)] if context.quick else [(1024, PROJ_DIM)]
    if context.device.type == "cpu" and not context.quick:
        sizes += [(64, PROJ_DIM), (64, 1024)]
    for num_samples, proj_dim in sizes:
        run = partial(_run, context=context, num_samples=num_samples, proj_dim=proj_dim)
        yield Case("accumulate_gram", f"{num_samples}x{proj_dim} float32 -> float64", run)


def _run(row: Row, *, context: Context, num_samples: int, proj_dim: int) -> None:
    features = context.randn(num_samples, proj_dim)
    gram = torch.zeros(proj_dim, proj_dim, dtype=torch.float64, device=context.device)
    ops.accumulate_gram_(gram, features)
    expected = reference.gram(features.cpu())
    row.error = checked(relative_error(gram.triu(), expected.triu()), TOLERANCE[context.device.type])

    full = torch.empty_like(gram)
    name = "full features.double().T @ features.double()"

    def full_product() -> None:
        wide = features.double()
        torch.mm(wide.T, wide, out=full)

    # One triangle needs half of the products of the full matrix, which therefore serves as the float64 ceiling.
    flops = num_samples * proj_dim * (proj_dim + 1.0)
    bound = Bound("fp64 GEMM rate", flops, full_product, 2.0 * num_samples * proj_dim**2)
    narrow = context.zeros(proj_dim, proj_dim)
    torch.mm(features.T, features, out=narrow)
    narrow_name = "full features.T @ features in float32"
    narrow_error = relative_error(narrow.triu(), expected.triu())
    del expected
    timings = measure(
        row,
        lambda: ops.accumulate_gram_(gram, features),
        effort=Effort(context.effort.budget, (FEWEST_ROUNDS, max(FEWEST_ROUNDS, context.effort.rounds[1]))),
        bound=bound,
        peers={narrow_name: lambda: torch.mm(features.T, features, out=narrow)},
    )
    row.ratios[0].error = narrow_error
    speedup = timings.ratio("probe", "ours")
    row.ratios.insert(0, Ratio(name, speedup))
    row.goal = Goal(f"speedup over {name}", ">=", GOAL_SPEEDUP[context.device.type], speedup.median)
