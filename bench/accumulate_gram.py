"""Gram matrix of the columns of the features, accumulated in float64, beside the full product."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bench.case import PROJ_DIM, Case, Context
from bench.harness import Bound, Goal, Ratio, Row, checked, measure, relative_error
from journey import ops, reference

# float64 on the CPU; on CUDA products are float32 within 512 samples.
TOLERANCE = {"cpu": 1e-13, "cuda": 1e-6}

GOAL_SPEEDUP = {"cpu": 1.5, "cuda": 1.4}


def cases(context: Context) -> Iterator[Case]:
    """Yield the one case."""
    num_samples = 512 if context.quick else 1024
    yield Case(
        "accumulate_gram", f"{num_samples}x{PROJ_DIM} float32 -> float64", lambda row: _run(row, context, num_samples)
    )


def _run(row: Row, context: Context, num_samples: int) -> None:
    features = context.randn(num_samples, PROJ_DIM)
    gram = torch.zeros(PROJ_DIM, PROJ_DIM, dtype=torch.float64, device=context.device)
    ops.accumulate_gram_(gram, features)
    expected = reference.gram(features.cpu())
    row.error = checked(relative_error(gram.triu(), expected.triu()), TOLERANCE[context.device.type])

    full = torch.empty_like(gram)
    name = "full features.double().T @ features.double()"

    def full_product() -> None:
        wide = features.double()
        torch.mm(wide.T, wide, out=full)

    # One triangle needs half of the products of the full matrix, which therefore serves as the float64 ceiling.
    flops = num_samples * PROJ_DIM * (PROJ_DIM + 1.0)
    bound = Bound("fp64 GEMM rate", flops, full_product, 2.0 * num_samples * PROJ_DIM**2)
    narrow = context.zeros(PROJ_DIM, PROJ_DIM)
    torch.mm(features.T, features, out=narrow)
    narrow_name = "full features.T @ features in float32"
    narrow_error = relative_error(narrow.triu(), expected.triu())
    del expected
    timings = measure(
        row,
        lambda: ops.accumulate_gram_(gram, features),
        effort=context.effort,
        bound=bound,
        peers={narrow_name: lambda: torch.mm(features.T, features, out=narrow)},
    )
    row.ratios[0].error = narrow_error
    speedup = timings.ratio("probe", "ours")
    row.ratios.insert(0, Ratio(name, speedup))
    row.goal = Goal(f"speedup over {name}", ">=", GOAL_SPEEDUP[context.device.type], speedup.median)
