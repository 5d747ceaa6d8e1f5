"""Kronecker factors of the curvature of a model's training loss, in the form that costs least to fit and to apply.

For a weight with pseudo-gradient (``journey.curvature.pseudo_gradients``) ``sum_p g_p a_p^T`` over positions p the
curvature is taken as ``scale * (B ⊗ A)``: A is the second moment of the layer's input at a position, B that of its
output gradient, both scaled to a mean eigenvalue of one, and the scale gives G its trace. Unlike in EK-FAC, A has input
channels alone, also for a convolution, whose taps count as alike and independent. So no matrix is large, and gradients
are whitened as layer input and output gradient, before these are multiplied: whitened features cost two small products
per layer more than plain ones. Scores agree with retraining as well as those of EK-FAC (docs/results/choices.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from journey.curvature.blocks import KroneckerBlock
from journey.curvature.moments import accumulate_, check_finite, eigen
from journey.curvature.pseudo_gradients import PseudoGradients
from journey.curvature.scales import FLOOR
from journey.curvature.whitened import Curvature
from journey.gradients.engine import GradientEngine
from journey.gradients.passes import RowBudget
from journey.gradients.rows import row_gradients, squared_norms
from journey.gradients.rules import Contribution, Outer
from journey.gradients.selection import Selection, selector
from journey.measure.draws import Draws, StratifiedDraws
from journey.models.condition import Condition
from journey.models.load import as_denoiser
from journey.projectors.base import ParameterSlot

# Draws that go through the network at once where nobody says: more bring nothing.
ROWS_PER_BATCH = 32
# A larger side counts as the identity: its eigenvectors would cost more than they bring.
LARGEST_SIDE = 4096


def fit_kfac(
    model: Any,
    images: Tensor,
    *,
    draws: Draws = StratifiedDraws(num_draws=2, antithetic=False),  # noqa: B008 - frozen
    condition: Condition | None = None,
    select: Selection | None = None,
    uncovered: Literal["error", "autograd"] = "error",
    seed: int = 0,
    rows_per_batch: int | None = None,
    progress: bool = True,
) -> Curvature:
    """Fit Kronecker factors of the curvature of the training loss of a model under its current weights.

    ``G = scale * (B ⊗ A)`` for each parameter, with a floor of 1e-4 of the mean over all parameters under every scale.
    Weights of Linear and convolution layers get a factor for each side; biases, affine parameters of norms and
    embeddings one for their columns; convolutions in groups a scale alone. A side of more than 4,096 has no factor.

    One pass over images and draws, each a forward and a backward pass per draw, then an eigendecomposition in float64
    of a matrix for each side of each weight. Sums are float64. Memory: as for featurizing ``rows_per_batch`` draws, and
    two square matrices for each weight.

    Args:
        model: In any form that ``journey.featurize`` takes.
        images: Images in the space that the network denoises (latents for a model of latents), float32; image i has the
            draws of sample i. A few hundred are enough. [num_samples, C, H, W]
        draws: Timesteps and noise; bins count alike.
        condition: What the network is told, one row per image.
        select: Which trainable parameters, as for ``Featurizer``; all by default.
        uncovered: As for ``Featurizer``.
        seed: Names the sampled directions.
        rows_per_batch: Draws that go through the network at once; by default 32, fewer where these would keep more than
            4 GiB for the backward pass. Changes the curvature only by rounding.
        progress: Show a progress bar.

    Returns:
        The curvature, on the model's device; the same bits for the same arguments on one device.

    Raises:
        ValueError: If ``rows_per_batch`` is not positive, there are no images, or ``condition`` has another number of
            rows.
        CoverageError: If parameters are not covered, see ``GradientEngine``.
        NonFiniteGradientError: If a pseudo-gradient is NaN or infinite; names the parameter.

    Reference:
        Martens and Grosse, "Optimizing Neural Networks with Kronecker-factored Approximate Curvature", ICML 2015;
        Grosse and Martens, "A Kronecker-factored Approximate Fisher Matrix for Convolution Layers", ICML 2016, there
        with the taps of the kernel in A.
    """
    if rows_per_batch is not None and rows_per_batch < 1:
        raise ValueError(f"rows_per_batch must be positive, got {rows_per_batch}")
    denoiser = as_denoiser(model)
    gradients = PseudoGradients(denoiser, images, draws, condition, False, seed)
    engine = GradientEngine(denoiser.network, select=selector(select, denoiser.network), uncovered=uncovered)
    passes = RowBudget(denoiser.network, rows_per_batch)
    return fit_factors(gradients, engine, passes, rows_per_batch or ROWS_PER_BATCH, progress=progress)


def fit_factors(
    gradients: PseudoGradients, engine: GradientEngine, passes: RowBudget, rows_per_batch: int, *, progress: bool
) -> Curvature:
    """Fit Kronecker factors to pseudo-gradients, see ``fit_kfac``.

    Args:
        gradients: What is fitted to.
        engine: Captures the gradients of the parameters that get a block.
        passes: Bounds how many draws go through the network at once.
        rows_per_batch: Another bound, and what is taken where the other is wider.
        progress: Likewise.

    Returns:
        The curvature.

    Raises:
        NonFiniteGradientError: If a pseudo-gradient is NaN or infinite; names the parameter.
    """

    def fit(rows: int) -> _Factors:
        factors = _Factors(engine.slots, gradients.denoiser.device)
        total = gradients.num_gradients
        with tqdm(total=total, unit="draw", desc="curvature", disable=not progress, dynamic_ncols=True) as bar:
            gradients.for_each_parameter(engine, rows, factors.add, bar)
        return factors

    factors = passes.run(fit, gradients.first_row(), min(rows_per_batch, gradients.num_rows), gradients.shape)
    blocks = {name: factors.pop_block(name, gradients.num_rows) for name in engine.slots}
    sizes = {name: slot.rows * slot.cols for name, slot in engine.slots.items()}
    floor = FLOOR * sum(sizes[name] * block.scale for name, block in blocks.items()) / sum(sizes.values())
    return Curvature({name: replace(block, scale=block.scale + floor) for name, block in blocks.items()})


class _Factors:
    """Sums over pseudo-gradients, and the blocks that they make."""

    def __init__(self, slots: Mapping[str, ParameterSlot], device: torch.device) -> None:
        self._slots = slots
        self._squares = {name: torch.zeros((), dtype=torch.float64, device=device) for name in slots}
        self._inputs: dict[str, Tensor] = {}
        self._outputs: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, slot: ParameterSlot, contributions: list[Contribution], num_rows: int) -> None:
        """Add what the gradients of a parameter are made of."""
        outer = [c for c in contributions if isinstance(c, Outer)]
        self._squares[slot.name] += squared_norms(slot, contributions, num_rows).sum(dtype=torch.float64)
        if not outer:
            self._add(self._inputs, slot.name, row_gradients(slot, contributions, num_rows))
        elif len(outer) == len(contributions):  # not a weight that is an embedding as well
            for c in outer:
                if c.conv is None or c.conv.groups == 1:
                    self._add(self._inputs, slot.name, _channels_last(c.a, c))
                    self._add(self._outputs, slot.name, _channels_last(c.g, c))

    def _add(self, grams: dict[str, Tensor], name: str, vectors: Tensor) -> None:
        if vectors.shape[-1] <= LARGEST_SIDE:
            accumulate_(grams, name, vectors)

    def pop_block(self, name: str, num_rows: int) -> KroneckerBlock:
        """Return the block of a parameter, and forget its sums."""
        slot, squares = self._slots[name], self._squares.pop(name)
        check_finite(name, squares)
        scale = (squares / (num_rows * slot.rows * slot.cols)).float()[None]
        sides = [_factor(name, found.pop(name, None)) for found in (self._outputs, self._inputs)]
        return KroneckerBlock(scale, *sides[0], *sides[1])


def _channels_last(x: Tensor, layer: Outer) -> Tensor:
    return x if layer.conv is None else x.flatten(2).transpose(1, 2)


def _factor(name: str, gram: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Eigenvalues with a mean of one, and eigenvectors, float32; None without any."""
    if gram is None:
        return None, None
    values, vectors = eigen(name, gram)
    mean = values.mean()
    if not mean > 0:
        return None, None
    return (values.clamp(min=0) / mean).float(), vectors.float()
