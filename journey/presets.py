"""Published attribution methods as configurations of one engine.

Each is a few lines over ``journey.method.Method``: what is differentiated, at which (t, noise), projected how, and
compared how. ``preset().run(model, dataset, queries)`` returns ``Scores``; ``preset().change(projector=...)`` replaces
a part. Damping is a fraction of the mean eigenvalue. Where a paper tuned it on the scores that it reports, the preset
takes a plain value or generalised cross-validation; tune it on held-out subsets (``docs/evaluation.md``).

All are read from the papers and, where there is any, the published code; what is known to differ is said at each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from journey.curvature import Whitened
from journey.denoiser import Denoiser
from journey.draws import GridDraws, StratifiedDraws, UniformDraws
from journey.ekfac import fit_ekfac
from journey.measurements import MeanOutput, SquaredNorm, TrainingLoss
from journey.method import Measured, Method
from journey.preconditioners import BlockGram, Gram, Plain
from journey.projectors import CountSketch, Gaussian
from journey.selective_mask import Selected, fit_selective_mask
from journey.shared_draws import CubicDraws, SharedDraws
from journey.structured_projectors import Factored, Masked
from journey.values import measure_values


def journey_trak(*, num_draws: int = 20, proj_dim: int = 2048, rescaled: bool = True, seed: int = 0) -> Method:
    """Return Journey-TRAK: the loss of the image predicted at a step, noised again to that step.

    Quirks of the published code: gradients are summed over draws and divided by the root of the number of parameters,
    features are float16 (constant factors and rounding, not repeated here); no damping, here the pseudo-inverse; flips
    of the training images stay on (the caller's dataset decides); the noise is regressed whatever the model predicts
    (here what it was trained to predict). Training features cover the whole range of timesteps whatever the step.
    ``docs/interop.md`` compares the two number by number.

    Args:
        num_draws: Uniform timesteps per training image, and noises per query and step.
        proj_dim: Features.
        rescaled: As published: see ``journey.preconditioners.Gram``.
        seed: Names draws and projection.

    Returns:
        The method.

    Reference:
        Georgiev et al., "The Journey, Not the Destination: How Data Guides Diffusion Models", 2023, section 3.
    """
    return Method(
        "journey_trak",
        "Georgiev et al. 2023",
        draws=UniformDraws(num_draws, antithetic=False, seed=seed),
        projector=Gaussian(proj_dim, seed=seed),
        at_steps=True,
        query_draws=num_draws,
        preconditioner=Gram(0.0, rescaled=rescaled),
    )


def trak(*, num_draws: int = 10, proj_dim: int = 4096, batch_slots: int | None = 52, seed: int = 0) -> Method:
    """Return TRAK on the training loss of the finished image, as it is compared with in the D-TRAK paper.

    Args:
        num_draws: Timesteps on the grid 0, 1000 / n, 2000 / n, ...
        proj_dim: Features.
        batch_slots: The published code seeds the noise of each batch, so images in the same slot of a batch of 52 share
            theirs; None gives every image its own.
        seed: Names draws and projection.

    Returns:
        The method.

    Reference:
        Park et al., "TRAK: Attributing Model Behavior at Scale", ICML 2023; Zheng et al., ICLR 2024, for diffusion.
    """
    draws = GridDraws(num_draws, antithetic=False, seed=seed)
    return Method(
        "trak",
        "Park et al. 2023",
        draws=draws if batch_slots is None else SharedDraws(draws, batch_slots),
        projector=Gaussian(proj_dim, seed=seed),
    )


def dtrak(*, num_draws: int = 10, proj_dim: int = 4096, batch_slots: int | None = 52, seed: int = 0) -> Method:
    """Return D-TRAK: TRAK with the squared norm of the prediction in place of the loss.

    Args:
        num_draws: As for ``trak``.
        proj_dim: As for ``trak``.
        batch_slots: As for ``trak``.
        seed: Names draws and projection.

    Returns:
        The method.

    Reference:
        Zheng et al., "Intriguing Properties of Data Attribution on Diffusion Models", ICLR 2024, section 4.
    """
    base = trak(num_draws=num_draws, proj_dim=proj_dim, batch_slots=batch_slots, seed=seed)
    # Its values are of another quantity than a loss, so nothing can be cross-validated; the published choices are of
    # the order of the mean eigenvalue.
    return base.change(name="dtrak", reference="Zheng et al. 2024", measurement=SquaredNorm(), preconditioner=Gram(1.0))


def das(
    *, num_draws: int = 10, proj_dim: int = 4096, batch_slots: int | None = 52, squared: bool = True, seed: int = 0
) -> Method:
    """Return DAS: mean output, every draw normalised, weighted by residual and leverage, squared.

    ``score = (query K^-1 train_i * r_i / (1 - h_ii))^2`` with ``r_i`` the root of the training loss of image i.

    Args:
        num_draws: As for ``trak``.
        proj_dim: As for ``trak``.
        batch_slots: As for ``trak``.
        squared: As published: every score is a proponent's. Otherwise the sign is kept.
        seed: Names draws and projection.

    Returns:
        The method.

    Reference:
        Lin et al., "Diffusion Attribution Score", ICLR 2025. Not checked against its code, which does not run.
    """
    base = trak(num_draws=num_draws, proj_dim=proj_dim, batch_slots=batch_slots, seed=seed)
    return base.change(
        name="das",
        reference="Lin et al. 2025",
        measurement=MeanOutput(),
        per_draw="normalized",
        preconditioner=Gram(1.0),
        adjust=_residual_and_leverage(squared),
    )


def dmin(*, num_draws: int = 10, proj_dim: int = 4096, seed: int = 0) -> Method:
    """Return DMin: one noise for everything, every draw normalised, equal timesteps compared with each other.

    Its compressor (permutation, signs, sums of blocks) is a count sketch with balanced buckets; ours is another one.

    Args:
        num_draws: Timesteps, denser towards pure noise.
        proj_dim: Features per timestep.
        seed: Names noise and sketch.

    Returns:
        The method.

    Reference:
        Lin et al., "DMin: Scalable Training Data Influence Estimation for Diffusion Models", 2024.
    """
    draws = SharedDraws(CubicDraws(num_draws, antithetic=False, seed=seed), one_noise=True)
    return Method(
        "dmin",
        "Lin et al. 2024",
        draws=draws,
        projector=CountSketch(proj_dim, seed=seed),
        per_draw="concatenated",
        preconditioner=Plain(),
    )


def tracin(*, num_draws: int = 10, proj_dim: int = 4096, seed: int = 0) -> Method:
    """Return TracIn: inner products of loss gradients, averaged over ``checkpoints`` with equal learning rates.

    Args:
        num_draws: Timesteps on a grid.
        proj_dim: Features.
        seed: Names draws and sketch.

    Returns:
        The method.

    Reference:
        Pruthi et al., "Estimating Training Data Influence by Tracing Gradient Descent", NeurIPS 2020, Eq. 2.
    """
    return Method(
        "tracin",
        "Pruthi et al. 2020",
        draws=GridDraws(num_draws, antithetic=False, seed=seed),
        projector=CountSketch(proj_dim, seed=seed),
        preconditioner=Plain(),
    )


def diffusion_retrac(*, num_draws: int = 10, proj_dim: int = 4096, seed: int = 0) -> Method:
    """Return Diffusion-ReTrac: TracIn with features divided by their norms.

    Published, a training image is measured at the one timestep that it was trained on in each epoch, from a log of the
    training; here at timesteps on a grid, since such a log is rarely kept.

    Args:
        num_draws: Timesteps on a grid.
        proj_dim: Features.
        seed: Names draws and sketch.

    Returns:
        The method.

    Reference:
        Xie et al., "Data Attribution for Diffusion Models: Timestep-induced Bias in Influence Estimation", TMLR 2024.
    """
    base = tracin(num_draws=num_draws, proj_dim=proj_dim, seed=seed)
    return base.change(name="diffusion_retrac", reference="Xie et al. 2024", cosine=True)


def carv(*, num_draws: int = 8, proj_dim: int = 4096, seed: int = 0) -> Method:
    """Return the attribution of CARV: cosines of normalised gradients at a few (t, noise) that all images share.

    Args:
        num_draws: Stratified timesteps.
        proj_dim: Features.
        seed: Names draws and sketch.

    Returns:
        The method.

    Reference:
        Bettencourt et al., "Variance Reduction for Expectations with Diffusion Teachers", 2026. From its description.
    """
    return Method(
        "carv",
        "Bettencourt et al. 2026",
        draws=SharedDraws(StratifiedDraws(num_draws, antithetic=False, seed=seed)),
        projector=CountSketch(proj_dim, seed=seed),
        per_draw="normalized",
        preconditioner=Plain(),
        cosine=True,
    )


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
        projector=lambda denoiser, images: Factored.of(denoiser.network, in_dim=in_dim, out_dim=out_dim, seed=seed),
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
            inner products (``journey.selective_mask``).
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

    def selected(denoiser: Denoiser, images: Tensor) -> Selected:
        kept = fit_selective_mask(denoiser, images, draws=draws, measurement=TrainingLoss(), keep=keep)
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
        projector=lambda denoiser, images: Factored.of(denoiser.network, **dims),
        preconditioner=BlockGram(0.1),
    )


def kfac_influence(
    *, num_draws: int = 32, curvature_draws: int = 8, proj_dim: int = 16384, damping: float = 1e-3, seed: int = 0
) -> Method:
    """Return the influence function with EK-FAC of the Gauss-Newton matrix of the training loss.

    ``score = query^T (G + damping I)^-1 train_i``, both sides whitened and sketched (``journey.curvature.Whitened``).

    Published, gradients are means over 250 draws and curvature over 125 per image; gradients of training images are not
    projected but streamed past the preconditioned ones of the queries; only weights and biases of Linear and Conv2d
    layers count, here all parameters do; and the damping, 1e-8, is absolute, here a fraction of each parameter's mean
    eigenvalue. Whitened gradients of different images are nearly orthogonal, so the sketch must be long.

    Args:
        num_draws: Stratified timesteps per image.
        curvature_draws: Timesteps per training image for the curvature.
        proj_dim: Features.
        damping: Fraction of the mean eigenvalue of each parameter.
        seed: Names draws and sketch.

    Returns:
        The method.

    Reference:
        Mlodozeniec et al., "Influence Functions for Scalable Data Attribution in Diffusion Models", ICLR 2025.
    """

    def projector(denoiser: Denoiser, images: Tensor) -> Whitened:
        draws = StratifiedDraws(curvature_draws, antithetic=False, seed=seed)
        curvature = fit_ekfac(denoiser, images, draws=draws, seed=seed, progress=False)
        return Whitened(CountSketch(proj_dim, seed=seed), curvature, damping)

    return Method(
        "kfac_influence",
        "Mlodozeniec et al. 2025",
        draws=StratifiedDraws(num_draws, seed=seed),
        projector=projector,
        preconditioner=Plain(),
    )


PRESETS: dict[str, Callable[[], Method]] = {
    preset.__name__: preset
    for preset in (
        journey_trak,
        trak,
        dtrak,
        das,
        dmin,
        diffusion_retrac,
        carv,
        logra,
        grass,
        factgrass,
        kfac_influence,
        tracin,
    )
}


def _residual_and_leverage(squared: bool) -> Callable[[Method, Denoiser, Tensor, Measured, Tensor], Tensor]:
    """Return what DAS does to scores."""

    def adjust(method: Method, denoiser: Denoiser, images: Tensor, measured: Measured, scores: Tensor) -> Tensor:
        assert isinstance(method.preconditioner, Gram)
        spectrum, damping = method.preconditioner.spectrum(measured.train, measured.values)
        free = 1 - spectrum.leverages(damping)
        residual = measure_values(denoiser, images, draws=method.draws, measurement=TrainingLoss()).mean(1).sqrt()
        adjusted = scores * residual.to(scores) / free.clamp(min=torch.finfo(torch.float32).eps)
        return adjusted.square() if squared else adjusted

    return adjust
