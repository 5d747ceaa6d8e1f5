"""The method that agrees best with retraining of those that were compared (docs/evaluation.md)."""

from __future__ import annotations

from torch import Tensor

from journey.draws import StratifiedDraws
from journey.measurements import MeanOutput
from journey.method import Measured, Method
from journey.models.base import Denoiser
from journey.preconditioners import Gram
from journey.projectors import CountSketch


def recommended(*, num_draws: int = 32, proj_dim: int = 4096, seed: int = 0) -> Method:
    """Return the method with the highest LDS on digits among those that only need gradients.

    ``score(q, i) = (query^T (gram + damping I)^-1 features[i])^2``

    The measurement is the mean of the network's output; every draw's gradient is divided by its norm before they are
    averaged; draws are stratified over timesteps in antithetic pairs, each image's own. The square keeps what is
    strongest and has no sign: there are no opponents. It answers for the whole generation, not for one step, for which
    there is ``journey.score``.

    Args:
        num_draws: Draws per image; more are worth more than any other choice.
        proj_dim: Features.
        seed: Names draws and projection.

    Returns:
        The method.

    Reference:
        Lin et al., "Diffusion Attribution Score", ICLR 2025, for the output as measurement and the square.
    """
    return Method(
        "ours",
        "this library",
        measurement=MeanOutput(),
        draws=StratifiedDraws(num_draws, seed=seed),
        projector=CountSketch(proj_dim, seed=seed),
        per_draw="normalized",
        preconditioner=Gram(0.01),
        adjust=_square,
    )


def _square(method: Method, denoiser: Denoiser, images: Tensor, measured: Measured, scores: Tensor) -> Tensor:
    return scores.square()
