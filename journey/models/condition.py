"""What a network is told besides the noised image: text embeddings, class labels, guidance; and samples with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# What the name of a tensor's mask ends with.
_MASK = "_mask"


@dataclass(frozen=True)
class Condition:
    """Named tensors whose first dimension is the row; their meaning is the denoiser's.

    Rows may hold texts of different lengths: then a tensor ``NAME`` [num_rows, num_tokens, ...] comes with a boolean
    ``NAME_mask`` [num_rows, num_tokens], False where a row is padded.

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
        index = torch.as_tensor(rows, dtype=torch.int64, device="cpu") if isinstance(rows, Sequence) else rows
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

    @property
    def _num_tokens(self) -> dict[str, int]:
        """Tokens of the tensors that have masks, and of these masks."""
        masks = {name: tensor.shape[1] for name, tensor in self.tensors.items() if name.endswith(_MASK)}
        return {**masks, **{name.removesuffix(_MASK): length for name, length in masks.items()}}

    def trimmed(self) -> Condition:
        """Return the condition without the tokens that are padding in every row; at least one is left."""
        found = dict(self.tensors)
        for name in [name for name in found if name.endswith(_MASK)]:
            used = found[name].any(0).nonzero()
            length = int(used.max()) + 1 if len(used) else 1
            for trimmed in (name, name.removesuffix(_MASK)):
                found[trimmed] = found[trimmed][:, :length]
        return Condition(found)

    def _padded(self, num_tokens: Mapping[str, int]) -> Condition:
        """The condition with so many tokens; those that are added are zero, and False in the masks."""
        found = dict(self.tensors)
        for name, length in num_tokens.items():
            rows, present, *rest = found[name].shape
            if present < length:
                found[name] = torch.cat([found[name], found[name].new_zeros(rows, length - present, *rest)], 1)
        return Condition(found)

    @staticmethod
    def cat(conditions: Sequence[Condition]) -> Condition:
        """Return the rows of several conditions with the same names, one after the other.

        Texts with a mask are padded to the longest.

        Raises:
            ValueError: If their names or the shapes of their rows differ.
        """
        lengths = [c._num_tokens for c in conditions]
        if all(length.keys() == lengths[0].keys() for length in lengths):
            longest = {name: max(length[name] for length in lengths) for name in lengths[0]}
            conditions = [c._padded(longest) for c in conditions]
        shapes = [{name: tuple(tensor.shape[1:]) for name, tensor in c.tensors.items()} for c in conditions]
        if any(shape != shapes[0] for shape in shapes):
            raise ValueError(f"conditions must have rows of the same names and shapes, got {shapes[:2]}")
        return Condition({name: torch.cat([c.tensors[name] for c in conditions]) for name in shapes[0]})


@dataclass(frozen=True)
class Encoded:
    """Samples of a dataset as the network takes them.

    Attributes:
        x0: Images or their latents, float32. [num_samples, C, H, W]
        condition: One row for each caption of each sample, in their order; None for an unconditional model.
        counts: How many captions each sample has. Their sum is the number of rows.
    """

    x0: Tensor
    condition: Condition | None
    counts: list[int]

    def __len__(self) -> int:
        return len(self.counts)

    def select(self, begin: int, end: int) -> Encoded:
        """Return the samples of a range of positions."""
        if self.condition is None:
            return Encoded(self.x0[begin:end], None, self.counts[begin:end])
        first, last = sum(self.counts[:begin]), sum(self.counts[:end])
        return Encoded(self.x0[begin:end], self.condition.select(slice(first, last)), self.counts[begin:end])

    def conditions(self, choice: Tensor) -> Condition | None:
        """Return the condition of each draw.

        Args:
            choice: Which of its captions each sample takes, int64. [num_samples, num_draws]

        Returns:
            One row per sample and draw, draws fastest.
        """
        if self.condition is None:
            return None
        counts = torch.tensor(self.counts, dtype=torch.int64, device="cpu")
        return self.condition.select((counts.cumsum(0) - counts)[:, None].add(choice).flatten())

    @staticmethod
    def single(x0: Tensor, condition: Condition | None = None) -> Encoded:
        """Return samples of one caption each, or of none.

        Args:
            x0: Images or their latents, float32. [num_samples, C, H, W]
            condition: One row per sample; None for an unconditional model.
        """
        return Encoded(x0, condition, [1] * len(x0))

    @staticmethod
    def cat(parts: Sequence[Encoded]) -> Encoded:
        """Return the samples of several parts, one after the other."""
        conditions = [part.condition for part in parts if part.condition is not None]
        return Encoded(
            torch.cat([part.x0 for part in parts]),
            Condition.cat(conditions) if conditions else None,
            [count for part in parts for count in part.counts],
        )
