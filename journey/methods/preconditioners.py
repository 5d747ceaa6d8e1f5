"""What stands between the features of a query and those of the training images: scores = query K^-1 train^T."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from journey.methods.spectrum import Spectrum, decompose


class Preconditioner(ABC):
    """A kernel between features."""

    @abstractmethod
    def scores(
        self,
        query: Tensor,  # [num_queries, proj_dim]
        train: Tensor,  # [num_train, proj_dim]
        values: Tensor,  # [num_train]
        blocks: Sequence[int],
    ) -> tuple[Tensor, float]:
        """Score training images for queries.

        Args:
            query: Features of the queries, float32. [num_queries, proj_dim]
            train: Features of the training images, float32. [num_train, proj_dim]
            values: What was measured for them, from which damping may be chosen. [num_train]
            blocks: Lengths of the features' parts, in order: one for each layer, or one for all.

        Returns:
            Scores, float64 [num_queries, num_train], and the relative damping that was used.
        """

    def alone(self) -> Preconditioner:
        """Return the kernel for a single set of weights, without what only weighs several against each other."""
        return self


@dataclass(frozen=True)
class Plain(Preconditioner):
    """None: the inner product of features."""

    def scores(self, query: Tensor, train: Tensor, values: Tensor, blocks: Sequence[int]) -> tuple[Tensor, float]:
        """Return ``query train^T``, see ``Preconditioner.scores``; the damping is infinite."""
        return query.double() @ train.double().T, float("inf")


@dataclass(frozen=True)
class Gram(Preconditioner):
    """The damped Gram matrix of the training features, ``query (train^T train + damping I)^-1 train^T``.

    Args:
        damping: Fraction of the mean eigenvalue; ``"auto"`` chooses it by generalised cross-validation.
        rescaled: Divide the inverse by the mean magnitude of its entries, as the published code of TRAK does so that
            it fits into float16. Over several sets of weights this decides how much each counts. Under a single one it
            is a constant, and ``Method.run`` leaves it out: it takes time proj_dim**2 * min(num_train, proj_dim).

    Reference:
        Park et al., "TRAK: Attributing Model Behavior at Scale", ICML 2023, section 3.
    """

    damping: float | Literal["auto"] = "auto"
    rescaled: bool = False

    def scores(self, query: Tensor, train: Tensor, values: Tensor, blocks: Sequence[int]) -> tuple[Tensor, float]:
        """Score training images, see ``Preconditioner.scores``."""
        spectrum, damping = self.spectrum(train, values)
        scores = spectrum.scores(query, damping)
        if self.rescaled:
            scores = scores / spectrum.inverse_magnitude(damping)
        return scores, damping

    def alone(self) -> Preconditioner:
        """Return the kernel without ``rescaled``, see ``Preconditioner.alone``."""
        return replace(self, rescaled=False)

    def spectrum(self, train: Tensor, values: Tensor) -> tuple[Spectrum, float]:
        """Return the decomposition and the relative damping that is used with it."""
        spectrum = decompose(lambda: iter([train]), *train.shape)
        damping = spectrum.choose_damping(values) if self.damping == "auto" else float(self.damping)
        spectrum.check(damping)
        return spectrum, damping


@dataclass(frozen=True)
class BlockGram(Preconditioner):
    """A damped Gram matrix for each block of the features: scores add up over blocks.

    Args:
        damping: Fraction of the mean eigenvalue of each block.

    Reference:
        Choe et al., "What is Your Data Worth to GPT?", 2024, for one block per layer.
    """

    damping: float = 0.1

    def scores(self, query: Tensor, train: Tensor, values: Tensor, blocks: Sequence[int]) -> tuple[Tensor, float]:
        """Score training images, see ``Preconditioner.scores``."""
        if sum(blocks) != train.shape[1]:
            raise ValueError(f"blocks must add up to the {train.shape[1]} features, got {sum(blocks)}")
        total = torch.zeros(len(query), len(train), dtype=torch.float64, device="cpu")
        pairs = zip(query.split(list(blocks), 1), train.split(list(blocks), 1), strict=True)
        for query_block, train_block in pairs:
            if train_block.any():  # a layer whose gradient is zero for every image says nothing
                total += Gram(self.damping).scores(query_block, train_block, values, [train_block.shape[1]])[0]
        return total, self.damping
