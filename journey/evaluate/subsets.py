"""Random subsets of the training set, all of one size, to retrain on.

All subsets have the same size: with coin flips for every image, a score that is the same for all images would predict
the size of a subset, and through it the loss, without knowing anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from journey import ops
from journey.data.numbers import as_tensor
from journey.files.fingerprint import JSONValue
from journey.ops.keys import derive_key, to_signed

_STREAM_SUBSET = 7  # none of those in csrc/common/philox.h


@dataclass(frozen=True, eq=False)
class Subsets:
    """Which training images each subset holds.

    Attributes:
        members: True where subset j holds image i; every subset holds equally many images (or groups of them).
            [num_subsets, num_train]
    """

    members: Tensor

    def __post_init__(self) -> None:
        """Check the matrix."""
        if self.members.dim() != 2 or self.members.dtype != torch.bool:
            raise ValueError(
                "members must be a bool matrix [num_subsets, num_train], "
                f"got {self.members.dtype} {list(self.members.shape)}"
            )

    def __len__(self) -> int:
        """Number of subsets."""
        return len(self.members)

    @property
    def num_train(self) -> int:
        """Number of images that subsets are drawn from."""
        return self.members.shape[1]

    def indices(self, subset: int) -> tuple[int, ...]:
        """Return the images of one subset, ascending."""
        return tuple(self.members[subset].nonzero().flatten().tolist())

    def select(self, subsets: slice) -> Subsets:
        """Return some of the subsets."""
        return Subsets(self.members[subsets])

    def to_json(self) -> JSONValue:
        """Return the manifest: sizes, and each subset as hexadecimal digits of its bits, image 0 first."""
        width = (self.num_train + 3) // 4
        rows = []
        for row in self.members.tolist():
            bits = "".join("1" if member else "0" for member in row).ljust(4 * width, "0")
            rows.append(f"{int(bits, 2):0{width}x}")
        return {"num_train": self.num_train, "members": rows}

    @staticmethod
    def from_json(manifest: dict[str, object]) -> Subsets:
        """Read what ``to_json`` returned.

        Args:
            manifest: The manifest.

        Returns:
            The subsets.

        Raises:
            ValueError: If it is not a manifest of subsets.
        """
        num_train, rows = manifest.get("num_train"), manifest.get("members")
        if not isinstance(num_train, int) or not isinstance(rows, list):
            raise ValueError(f"manifest must hold num_train and members, got {sorted(manifest)}")
        width = (num_train + 3) // 4
        bits = [f"{int(row, 16):0{4 * width}b}"[:num_train] for row in rows]
        chosen = torch.tensor([[bit == "1" for bit in row] for row in bits], dtype=torch.bool, device="cpu")
        return Subsets(chosen.view(len(rows), num_train))


def random_subsets(
    num_train: int,
    num_subsets: int,
    *,
    fraction: float = 0.5,
    groups: Sequence[int] | Tensor | None = None,
    seed: int = 0,
) -> Subsets:
    """Draw subsets of one size at random.

    Args:
        num_train: Number of training images.
        num_subsets: How many subsets; the first ones are the same for any number.
        fraction: Share of the images (of the groups, if there are any) that each subset holds, rounded down.
        groups: The group of each image, for group LDS: whole groups are in or out. [num_train]
        seed: Names the subsets; the same on every machine.

    Returns:
        The subsets.

    Raises:
        ValueError: If a number is out of range, or ``groups`` has another length.
    """
    if groups is not None and len(groups) != num_train:
        raise ValueError(f"groups must name a group for each of the {num_train} images, got {len(groups)}")
    labels = as_tensor(range(num_train) if groups is None else groups).unique(return_inverse=True)[1]
    num_units = int(labels.max()) + 1 if num_train else 0
    size = int(num_units * fraction)
    if num_subsets < 1 or not 0 < size < num_units:
        raise ValueError(
            f"num_subsets must be positive and fraction leave some of {num_units} in and some out, "
            f"got num_subsets {num_subsets} and fraction {fraction}"
        )
    keys = [to_signed(derive_key(seed, "subset", j)) for j in range(num_subsets)]
    words = ops.philox_words(
        torch.tensor(keys, dtype=torch.int64, device="cpu").repeat_interleave(num_units),
        torch.arange(num_units, dtype=torch.int64, device="cpu").repeat(num_subsets),
        torch.zeros(num_subsets * num_units, dtype=torch.int64, device="cpu"),
        stream=_STREAM_SUBSET,
    )
    order = words[:, 0].view(num_subsets, num_units).argsort(dim=1, stable=True)
    chosen = torch.zeros(num_subsets, num_units, dtype=torch.bool, device="cpu")
    chosen.scatter_(1, order[:, :size], True)
    return Subsets(chosen[:, labels])
