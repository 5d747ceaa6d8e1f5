"""EK-FAC: the curvature of a model's training loss in Kronecker-factored eigenbases, fitted to training images.

The loss is a mean square over the D entries of the network's output f, whose Hessian is ``2 / D I``, so its generalised
Gauss-Newton matrix is ``G = E[J^T (2 / D) J]`` with ``J = df / dθ``: the images' targets do not enter. The gradient of
``sqrt(2 / D) <u, f>`` with ``E[u u^T] = I`` has the second moment G; such pseudo-gradients are all that is used.

For a weight with gradient ``sum_p g_p a_p^T`` over positions p the eigenbasis is taken from two small matrices,
``E[sum_p a_p a_p^T]`` and ``E[sum_p g_p g_p^T]`` ("expand": positions count as if they were samples), and eigenvalues
are what the pseudo-gradients really have in it: ``E[(U^T grad V)^2]``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from journey import ops
from journey.condition import Condition
from journey.curvature import Block, Curvature
from journey.denoiser import Denoiser, as_denoiser
from journey.draws import Draws, StratifiedDraws, keyed_noise
from journey.errors import NonFiniteGradientError
from journey.featurizer import Selection, selector
from journey.gradients import GradientEngine, Values
from journey.keys import derive_key, to_signed
from journey.layer_rules import Contribution, Outer
from journey.projectors import ParameterSlot
from journey.row_gradients import row_gradients
from journey.weight_grad import as_positions

# Rows that go through the denoiser at once, at most, and floats of the gradients of one parameter that exist at once.
_ROWS_PER_BATCH = 128
_GRADIENT_FLOATS = 1 << 26
_LARGEST_EXACT = 1 << 13  # entries of a parameter whose whole block is formed


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
    memory: the layers' inputs and output gradients, and the gradients of one parameter, of up to 128 draws.

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
    if not len(images):
        raise ValueError("images must not be empty")
    if condition is not None and len(condition) != len(images):
        raise ValueError(f"condition must have a row for each of the {len(images)} images, got {len(condition)}")
    denoiser = as_denoiser(model)
    engine = GradientEngine(denoiser.network, select=selector(select, denoiser), uncovered=uncovered)
    num_rows = len(images) * draws.bins * draws.num_draws
    bar = tqdm(total=2 * num_rows, unit="draw", desc="curvature", disable=not progress)
    batches = _Batches(denoiser, images, draws, condition, exact, seed)

    def collected() -> Iterator[tuple[dict[str, list[Contribution]], int]]:
        largest = max(slot.rows * slot.cols for slot in engine.slots.values())
        for rows in torch.arange(num_rows).split(max(1, min(_ROWS_PER_BATCH, _GRADIENT_FLOATS // largest))):
            for values in batches.pseudo_losses(rows):
                yield engine.collect(values, num_rows=len(rows)), len(rows)
            bar.update(len(rows))

    factors = _Factors(engine.slots, denoiser.device)
    for contributions, count in collected():
        factors.add(contributions, count)
    blocks = {name: factors.pop_basis(name) for name in engine.slots}
    for contributions, count in collected():
        for name in list(contributions):
            grads = row_gradients(engine.slots[name], contributions.pop(name), count)
            squares = blocks[name].rotate(grads)[0].square()
            blocks[name].eigenvalues.add_(squares.sum(0, dtype=torch.float64) / num_rows)
    bar.close()
    for name, block in blocks.items():
        _check_finite(name, block.eigenvalues)
    return Curvature({name: block._replace(eigenvalues=block.eigenvalues.float()) for name, block in blocks.items()})


@dataclass(frozen=True)
class _Batches:
    """Rows, image after image and draw after draw, with the pseudo-losses whose gradients are wanted."""

    denoiser: Denoiser
    images: Tensor
    draws: Draws
    condition: Condition | None
    exact: bool
    seed: int

    def pseudo_losses(self, rows: Tensor) -> Iterator[Values]:
        """Yield ``sqrt(2 / D) <u, prediction>`` of some rows, for one random u or for each unit vector."""
        denoiser, device, shape = self.denoiser, self.denoiser.device, tuple(self.images.shape[1:])
        per_image = self.draws.bins * self.draws.num_draws
        ids = list(range(int(rows[0]) // per_image, int(rows[-1]) // per_image + 1))
        here = (rows - ids[0] * per_image).to(device)  # among all draws of these images
        timesteps = self.draws.timesteps(ids, denoiser.num_train_timesteps)
        times = timesteps.flatten().to(device)[here]
        counts = self.draws.row_weights(timesteps, denoiser.num_train_timesteps)
        noise = self.draws.noise(ids, shape, device).flatten(0, 2)[here]
        x0 = self.images[rows // per_image].to(device)
        x_t = denoiser.add_noise(x0, noise, times)
        told = None if self.condition is None else self.condition.select(rows // per_image).to(device)
        size = prod(shape)
        scale = torch.full((len(rows),), 2 / size, device=device)
        if counts is not None:
            scale *= counts.flatten().to(device)[here]

        def along(directions: Tensor) -> Values:
            def values(part: slice) -> Tensor:
                prediction = denoiser.predict(x_t[part], times[part], None if told is None else told.select(part))
                return scale[part].sqrt() * (directions[part] * prediction.flatten(1)).sum(1)

            return values

        if self.exact:
            for unit in torch.eye(size, device=device):
                yield along(unit.expand(len(rows), size))
        else:
            keys = torch.tensor([to_signed(derive_key(self.seed, "pseudo-gradient", i)) for i in ids])
            drawn = keyed_noise(keys, per_image, shape, device, antithetic=False, per=per_image)
            yield along(drawn.flatten(0, 2).flatten(1)[here])


class _Factors:
    """The small matrices whose eigenvectors are the bases."""

    def __init__(self, slots: Mapping[str, ParameterSlot], device: torch.device) -> None:
        self._slots = slots
        self._device = device
        self._inputs: dict[str, Tensor] = {}
        self._outputs: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, collected: Mapping[str, list[Contribution]], num_rows: int) -> None:
        """Add second moments of inputs and output gradients, or of the gradients of vectors."""
        for name, contributions in collected.items():
            slot = self._slots[name]
            if slot.rows == 1 and slot.cols <= _LARGEST_EXACT:
                _accumulate(self._inputs, name, row_gradients(slot, contributions, num_rows))
                continue
            for contribution in contributions:
                if isinstance(contribution, Outer):
                    pair = as_positions(contribution.a, contribution.g, contribution.conv)
                    if pair is not None:
                        _accumulate(self._inputs, name, pair[0])
                        _accumulate(self._outputs, name, pair[1])

    def pop_basis(self, name: str) -> Block:
        """Return a block with the bases of a parameter and eigenvalues of zero, float64, and forget its factors."""
        slot = self._slots[name]
        outputs, inputs = (_eigenvectors(name, found.pop(name, None)) for found in (self._outputs, self._inputs))
        return Block(torch.zeros(slot.rows, slot.cols, dtype=torch.float64, device=self._device), outputs, inputs)


def _accumulate(grams: dict[str, Tensor], name: str, vectors: Tensor) -> None:
    """Add the second moment of vectors [..., dim], float64, upper triangle."""
    size = vectors.shape[-1]
    if name not in grams:
        grams[name] = torch.zeros(size, size, dtype=torch.float64, device=vectors.device)
    ops.accumulate_gram_(grams[name], vectors.reshape(-1, size).contiguous())


def _eigenvectors(name: str, gram: Tensor | None) -> Tensor | None:
    """Columns, float32; of the upper triangle."""
    if gram is None:
        return None
    _check_finite(name, gram)
    basis: Tensor = torch.linalg.eigh(gram, UPLO="U").eigenvectors
    return basis.float()


def _check_finite(name: str, tensor: Tensor) -> None:
    if not torch.isfinite(tensor).all():
        raise NonFiniteGradientError(
            f"the curvature of {name!r} is NaN or infinite. Check the model's weights and the images; a float16 model "
            "may need bfloat16 or float32"
        )
