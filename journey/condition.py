"""What a network is told besides the noised image: text embeddings, class labels, guidance; one row per image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Condition:
    """Named tensors whose first dimension is the row; their meaning is the denoiser's.

    Args:
        tensors: At least one. Each [num_rows, ...]

    Raises:
        ValueError: If there is none, or they have different numbers of rows.
    """

    tensors: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        """Check that the rows agree."""
        rows = {name: tensor.shape[0] if tensor.dim() else None for name, tensor in self.tensors.items()}
        if len(set(rows.values())) != 1 or None in rows.values():
            raise ValueError(f"tensors of a condition must have the same number of rows, got {rows or 'no tensor'}")

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def repeat(self, times: int) -> Condition:
        """Return every row ``times`` times in a row."""
        return Condition({name: tensor.repeat_interleave(times, 0) for name, tensor in self.tensors.items()})

    def select(self, rows: Sequence[int] | slice | Tensor) -> Condition:
        """Return some rows."""
        index = torch.as_tensor(rows) if isinstance(rows, Sequence) else rows
        return Condition({name: tensor[index] for name, tensor in self.tensors.items()})

    def expand(self, num_rows: int) -> Condition:
        """Return the condition for ``num_rows`` images: itself, or its only row as often.

        Raises:
            ValueError: If it has neither one row nor ``num_rows``.
        """
        if len(self) == num_rows:
            return self
        if len(self) != 1:
            raise ValueError(f"condition must have 1 or {num_rows} rows, one per image, got {len(self)}")
        return self.repeat(num_rows)

    def to(self, device: torch.device) -> Condition:
        """Return the condition on a device."""
        return Condition({name: tensor.to(device) for name, tensor in self.tensors.items()})

    @staticmethod
    def cat(conditions: Sequence[Condition]) -> Condition:
        """Return the rows of several conditions with the same names, one after the other.

        Raises:
            ValueError: If their names or the shapes of their rows differ.
        """
        shapes = [{name: tuple(tensor.shape[1:]) for name, tensor in c.tensors.items()} for c in conditions]
        if any(shape != shapes[0] for shape in shapes):
            raise ValueError(f"conditions must have rows of the same names and shapes, got {shapes[:2]}")
        return Condition({name: torch.cat([c.tensors[name] for c in conditions]) for name in shapes[0]})
