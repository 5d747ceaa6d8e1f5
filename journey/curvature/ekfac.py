"""EK-FAC: the curvature of a model's training loss in Kronecker-factored eigenbases, fitted to training images.

For a weight with pseudo-gradient (``journey.curvature.pseudo_gradients``) ``sum_p g_p a_p^T`` over positions p the
eigenbasis is taken from two small matrices, ``E[sum_p a_p a_p^T]`` and ``E[sum_p g_p g_p^T]`` ("expand": positions
count as if they were samples), and eigenvalues are what the pseudo-gradients really have in it: ``E[(U^T grad V)^2]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from journey.curvature.blocks import EigenBlock
from journey.curvature.moments import accumulate_, check_finite, eigen
from journey.curvature.pseudo_gradients import PseudoGradients
from journey.curvature.whitened import Curvature
from journey.gradients.engine import GradientEngine
from journey.gradients.passes import RowBudget
from journey.gradients.rows import row_gradients
from journey.gradients.rules import Contribution, Outer
from journey.gradients.selection import Selection, selector
from journey.measure.draws import Draws, StratifiedDraws
from journey.models.condition import Condition
from journey.models.load import as_denoiser
from journey.ops.weight_grad import as_positions
from journey.projectors.base import ParameterSlot

# Rows that go through the denoiser at once, at most, and floats of the gradients of one parameter that exist at once.
_ROWS_PER_BATCH = 128
_GRADIENT_FLOATS = 1 << 26
_LARGEST_EXACT = 1 << 13  # entries of a parameter whose whole block is formed
# The gradient of some parameters is rounding alone, such as that of the key biases of attention: 1e-16 of the mean
# square over all parameters in float32, 1e-7 in bfloat16. Whitened it would look like any other, so it counts as zero.
_ROUNDING = 1e-6


def fit_ekfac(
    model: Any,
    images: Tensor,
    *,
    draws: Draws = StratifiedDraws(),  # noqa: B008 - frozen
    condition: Condition | None = None,
    select: Selection | None = None,
    uncovered: Literal["error", "autograd"] = "error",
    exact: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> Curvature:
    """Fit the curvature of the training loss of a model under its current weights.

    Weights of Linear, Conv1d and Conv2d layers get a Kronecker-factored basis. Parameters of one row and at most 8,192
    entries (biases, affine parameters of norms) get the eigenbasis of their own block, which is exact. The others
    (embeddings, convolutions in groups or over three dimensions) get the diagonal.

    Two passes over images and draws, each a forward and a backward pass per draw (with ``exact``, one per entry of the
    output), then an eigendecomposition in float64 of a matrix for each side of each weight. Sums are float64. Peak
    memory: the layers' inputs and output gradients, and the gradients of one parameter, of up to 128 draws, fewer
    where the former would take over 4 GiB.

    Args:
        model: In any form that ``journey.featurize`` takes.
        images: Images in the space that the network denoises (latents for a model of latents), float32; image i has the
            draws of sample i. [num_samples, C, H, W]
        draws: Timesteps and noise; bins count alike.
        condition: What the network is told, one row per image.
        select: Which trainable parameters, as for ``Featurizer``; all by default.
        uncovered: As for ``Featurizer``.
        exact: Sum over all entries of the output in place of sampling a direction: no sampling error, for small models.
        seed: Names the sampled directions.
        progress: Show a progress bar.

    Returns:
        The curvature, on the model's device; the same bits for the same arguments on one device.

    Raises:
        ValueError: If there are no images, or ``condition`` has another number of rows.
        CoverageError: If parameters are not covered, see ``GradientEngine``.
        NonFiniteGradientError: If a pseudo-gradient is NaN or infinite; names the parameter.

    Reference:
        George et al., "Fast Approximate Natural Gradient Descent in a Kronecker-factored Eigenbasis", NeurIPS 2018;
        Mlodozeniec et al., "Influence Functions for Scalable Data Attribution in Diffusion Models", ICLR 2025, for the
        matrix and the loss; Eschenhagen et al., "Kronecker-Factored Approximate Curvature for Modern Neural Network
        Architectures", NeurIPS 2023, for layers with positions.
    """
    denoiser = as_denoiser(model)
    gradients = PseudoGradients(denoiser, images, draws, condition, exact, seed)
    engine = GradientEngine(denoiser.network, select=selector(select, denoiser.network), uncovered=uncovered)
    largest = max(slot.rows * slot.cols for slot in engine.slots.values())

    def fit(rows: int) -> dict[str, EigenBlock]:
        with tqdm(total=2 * gradients.num_gradients, unit="draw", desc="curvature", disable=not progress) as bar:
            factors = _Factors(engine.slots, denoiser.device)
            gradients.for_each_parameter(engine, rows, factors.add, bar)
            blocks = {name: factors.pop_basis(name) for name in engine.slots}

            def correct(slot: ParameterSlot, contributions: list[Contribution], count: int) -> None:
                squares = blocks[slot.name].rotate(row_gradients(slot, contributions, count))[0].square()
                blocks[slot.name].eigenvalues.add_(squares.sum(0, dtype=torch.float64) / gradients.num_rows)

            gradients.for_each_parameter(engine, rows, correct, bar)
        return blocks

    most = max(1, min(_ROWS_PER_BATCH, _GRADIENT_FLOATS // largest))
    blocks = RowBudget(denoiser.network).run(fit, gradients.first_row(), min(most, gradients.num_rows), gradients.shape)
    for name, block in blocks.items():
        check_finite(name, block.eigenvalues)
    mean = sum(block.eigenvalues.sum() for block in blocks.values()) / engine.num_parameters
    for block in blocks.values():
        if block.eigenvalues.mean() < _ROUNDING * mean:
            block.eigenvalues.zero_()
    return Curvature({name: replace(block, eigenvalues=block.eigenvalues.float()) for name, block in blocks.items()})


class _Factors:
    """The small matrices whose eigenvectors are the bases."""

    def __init__(self, slots: Mapping[str, ParameterSlot], device: torch.device) -> None:
        self._slots = slots
        self._device = device
        self._inputs: dict[str, Tensor] = {}
        self._outputs: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, slot: ParameterSlot, contributions: list[Contribution], num_rows: int) -> None:
        """Add second moments of inputs and output gradients, or of the gradients of a vector."""
        if slot.rows == 1 and slot.cols <= _LARGEST_EXACT:
            accumulate_(self._inputs, slot.name, row_gradients(slot, contributions, num_rows))
            return
        for contribution in contributions:
            if isinstance(contribution, Outer):
                pair = as_positions(contribution.a, contribution.g, contribution.conv)
                if pair is not None:
                    accumulate_(self._inputs, slot.name, pair[0])
                    accumulate_(self._outputs, slot.name, pair[1])

    def pop_basis(self, name: str) -> EigenBlock:
        """Return a block with the bases of a parameter and eigenvalues of zero, float64, and forget its factors."""
        slot = self._slots[name]
        outputs, inputs = (_eigenvectors(name, found.pop(name, None)) for found in (self._outputs, self._inputs))
        return EigenBlock(torch.zeros(slot.rows, slot.cols, dtype=torch.float64, device=self._device), outputs, inputs)


def _eigenvectors(name: str, gram: Tensor | None) -> Tensor | None:
    """Columns, float32."""
    return None if gram is None else eigen(name, gram)[1].float()
