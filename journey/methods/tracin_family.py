"""TracIn and its relatives: plain inner products of gradients, or their cosines."""

from __future__ import annotations

from journey.measure.draws import GridDraws, StratifiedDraws
from journey.measure.shared_draws import CubicDraws, SharedDraws
from journey.methods.method import Method
from journey.methods.preconditioners import Plain
from journey.projectors.random import CountSketch


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
