"""Influence functions with the curvature of the training loss."""

from __future__ import annotations

from journey.curvature.ekfac import fit_ekfac
from journey.curvature.whitened import Whitened
from journey.measure.draws import StratifiedDraws
from journey.methods.method import Method
from journey.methods.preconditioners import Plain
from journey.models.condition import Encoded
from journey.models.denoiser import Denoiser
from journey.models.encoding import choose_captions
from journey.projectors.random import CountSketch


def kfac_influence(
    *, num_draws: int = 32, curvature_draws: int = 2, proj_dim: int = 16384, damping: float = 1e-3, seed: int = 0
) -> Method:
    """Return the influence function with EK-FAC of the Gauss-Newton matrix of the training loss.

    ``score = query^T (G + damping I)^-1 train_i``, both sides whitened and sketched
    (``journey.curvature.whitened.Whitened``).

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

    def projector(denoiser: Denoiser, samples: Encoded) -> Whitened:
        draws = StratifiedDraws(curvature_draws, antithetic=False, seed=seed)
        told = samples.conditions(choose_captions(seed, range(len(samples)), samples.counts, 1))
        curvature = fit_ekfac(denoiser, samples.x0, draws=draws, condition=told, seed=seed, progress=False)
        return Whitened(CountSketch(proj_dim, seed=seed), curvature, damping)

    return Method(
        "kfac_influence",
        "Mlodozeniec et al. 2025",
        draws=StratifiedDraws(num_draws, seed=seed),
        projector=projector,
        preconditioner=Plain(),
    )
