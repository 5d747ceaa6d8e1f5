"""Keyed standard normal noise, beside torch's generator."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bench.case import SEED, Case, Context
from bench.harness import Bound, Row, checked, measure
from journey import ops
from journey.ops import reference
from journey.ops.keys import derive_key, to_signed

IMAGE = 3 * 32 * 32

# Logarithm, sine and cosine in float32, for normals of up to 5.8.
TOLERANCE = 4e-6


def cases(context: Context) -> Iterator[Case]:
    """Yield the one case: the noise of a batch of images."""
    num_rows = 2048
    yield Case("philox_normal", f"{num_rows}x{IMAGE} float32", lambda row: _run(row, context, num_rows))


def _run(row: Row, context: Context, num_rows: int) -> None:
    keys = torch.tensor([to_signed(derive_key(SEED, "bench", i)) for i in range(num_rows)], device=context.device)
    minors = torch.arange(num_rows, device=context.device)
    noise = ops.philox_normal(keys, minors, IMAGE)
    expected = torch.stack([reference.noise(int(keys[i]), int(minors[i]), IMAGE) for i in (0, num_rows - 1)])
    row.error = checked(float((noise[[0, -1]].cpu() - expected).abs().max()), TOLERANCE)

    source, copied = torch.empty_like(noise), torch.empty_like(noise)
    noise_bytes = 4.0 * noise.numel()
    measure(
        row,
        lambda: ops.philox_normal(keys, minors, IMAGE),
        effort=context.effort,
        bound=Bound("copy bandwidth", noise_bytes, lambda: copied.copy_(source), 2 * noise_bytes),
        peers={"torch.randn": lambda: torch.randn(num_rows, IMAGE, device=context.device)},
    )
