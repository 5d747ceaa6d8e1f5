"""What a benchmark case is, and what every case is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bench.harness import FULL, QUICK, Effort, Row
from bench.machine import Ceilings

SEED = 0
PROJ_DIM = 4096


@dataclass(frozen=True)
class Context:
    """Where and how thoroughly to measure.

    Args:
        device: Where the operations run.
        quick: Fewer sizes and fewer repetitions.
        ceilings: Probes of the machine's ceilings on that device.
    """

    device: torch.device
    quick: bool
    ceilings: Ceilings

    @property
    def effort(self) -> Effort:
        """How long to measure a row."""
        return QUICK if self.quick else FULL

    def randn(self, *shape: int, seed: int = SEED) -> Tensor:
        """Return fp32 normals, the same in every run."""
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(self.device)

    def zeros(self, *shape: int) -> Tensor:
        """Return fp32 zeros."""
        return torch.zeros(shape, device=self.device)


class Case(NamedTuple):
    """One thing to measure.

    Args:
        op: Name of the operation.
        sizes: Its sizes, as they are printed.
        run: Checks the result, then times it; fills in the row that it is given, and may return more rows.
    """

    op: str
    sizes: str
    run: Callable[[Row], list[Row] | None]
