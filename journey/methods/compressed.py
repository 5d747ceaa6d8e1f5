"""LoGra, GraSS and FactGraSS: gradients made short by masks or layer by layer, then a damped kernel."""

from __future__ import annotations

from typing import Literal

from journey.measure.draws import StratifiedDraws
from journey.measure.measurements import TrainingLoss
from journey.methods.method import Method
from journey.methods.preconditioners import BlockGram, Gram
from journey.methods.selective_mask import Selected, fit_selective_mask
from journey.models.condition import Encoded
from journey.models.denoiser import Denoiser
from journey.projectors.random import CountSketch
from journey.projectors.structured import Factored, Masked


def logra(*, num_draws: int = 8, in_dim: int = 16, out_dim: int = 16, seed: int = 0) -> Method:
    """Return LoGra: projected inputs times projected output gradients, one damped Gram matrix per layer.

    Args:
        num_draws: Stratified timesteps.
        in_dim: Length of projected layer inputs.
        out_dim: Length of projected output gradients.
        seed: Names draws and projections.

    Returns:
        The method.

    Reference:
        Choe et al., "What is Your Data Worth to GPT? LLM-Scale Data Valuation with Influence Functions", 2024.
    """
    return Method(
        "logra",
        "Choe et al. 2024",
        draws=StratifiedDraws(num_draws, seed=seed),
        projector=lambda denoiser, *_: Factored.of(denoiser.network, in_dim=in_dim, out_dim=out_dim, seed=seed),
        preconditioner=BlockGram(0.1),
    )


def grass(
    *,
    num_draws: int = 8,
    proj_dim: int = 4096,
    keep: float = 0.1,
    mask: Literal["random", "selective"] = "random",
    seed: int = 0,
) -> Method:
    """Return GraSS: a mask, then a sparse sketch.

    Args:
        num_draws: Stratified timesteps.
        proj_dim: Features.
        keep: Share of the gradient that the mask keeps.
        mask: ``"random"``, or ``"selective"``: chosen on a sample of the training images to keep the ranking of their
            inner products (``journey.methods.selective_mask``).
        seed: Names draws, mask and sketch.

    Returns:
        The method.

    Raises:
        ValueError: If ``mask`` is neither of the two.

    Reference:
        Hu et al., "GraSS: Scalable Influence Function with Sparse Gradient Compression", NeurIPS 2025.
    """
    if mask not in ("random", "selective"):
        raise ValueError(f'mask must be "random" or "selective", got {mask!r}')
    draws, sketch = StratifiedDraws(num_draws, seed=seed), CountSketch(proj_dim, seed=seed)

    def selected(denoiser: Denoiser, samples: Encoded) -> Selected:
        kept = fit_selective_mask(denoiser, samples, draws=draws, measurement=TrainingLoss(), keep=keep)
        return Selected(sketch, kept)

    projector = Masked(sketch, keep, seed) if mask == "random" else selected
    name = "grass" if mask == "random" else "grass, selective mask"
    return Method(name, "Hu et al. 2025", draws=draws, projector=projector, preconditioner=Gram(0.1))


def factgrass(*, num_draws: int = 8, factor_dim: int = 32, sketch_dim: int = 128, seed: int = 0) -> Method:
    """Return FactGraSS: masked layer inputs times masked output gradients, sketched, one Gram matrix per layer.

    Args:
        num_draws: Stratified timesteps.
        factor_dim: Coordinates kept of inputs and of output gradients.
        sketch_dim: Features per layer, a multiple of 32.
        seed: Names draws, masks and sketches.

    Returns:
        The method.

    Reference:
        Hu et al., "GraSS: Scalable Influence Function with Sparse Gradient Compression", NeurIPS 2025.
    """
    dims = {"in_dim": factor_dim, "out_dim": factor_dim, "kind": "mask", "sketch_dim": sketch_dim, "seed": seed}
    return Method(
        "factgrass",
        "Hu et al. 2025",
        draws=StratifiedDraws(num_draws, seed=seed),
        projector=lambda denoiser, *_: Factored.of(denoiser.network, **dims),
        preconditioner=BlockGram(0.1),
    )
