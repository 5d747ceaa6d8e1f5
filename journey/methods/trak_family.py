"""TRAK and its relatives: gradients compared through the damped kernel of all training features."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from journey.measure.batch import measure_values
from journey.measure.draws import GridDraws, UniformDraws
from journey.measure.measurements import MeanOutput, SquaredNorm, TrainingLoss
from journey.measure.shared_draws import SharedDraws
from journey.methods.method import Method, Scored
from journey.methods.preconditioners import Gram
from journey.projectors.random import Gaussian


def journey_trak(*, num_draws: int = 20, proj_dim: int = 2048, rescaled: bool = True, seed: int = 0) -> Method:
    """Return Journey-TRAK: the loss of the image predicted at a step, noised again to that step.

    Quirks of the published code: gradients are summed over draws and divided by the root of the number of parameters,
    features are float16 (constant factors and rounding, not repeated here); no damping, here the pseudo-inverse; flips
    of the training images stay on (the caller's dataset decides); the noise is regressed whatever the model predicts
    (here what it was trained to predict). Training features cover the whole range of timesteps whatever the step.
    ``docs/guides/other-libraries.md`` compares the two number by number.

    Args:
        num_draws: Uniform timesteps per training image, and noises per query and step.
        proj_dim: Features.
        rescaled: As published: see ``journey.methods.preconditioners.Gram``.
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


def _residual_and_leverage(squared: bool) -> Callable[[Tensor, Scored], Tensor]:
    """Return what DAS does to scores."""

    def adjust(scores: Tensor, scored: Scored) -> Tensor:
        method, denoiser, samples, measured = scored
        assert isinstance(method.preconditioner, Gram)
        spectrum, damping = method.preconditioner.spectrum(measured.train, measured.values)
        free = 1 - spectrum.leverages(damping)
        residual = measure_values(denoiser, samples, draws=method.draws, measurement=TrainingLoss()).mean(1).sqrt()
        adjusted = scores * residual.to(scores) / free.clamp(min=torch.finfo(torch.float32).eps)
        return adjusted.square() if squared else adjusted

    return adjust
