"""How far scores are from what infinitely many draws would give, estimated from draws that are split in two.

Queries: a score is linear in the query's feature, and this is a mean over independent pairs of noises. With the scores
A and B of its two halves, the score is (A + B) / 2 and ``(A - B)^2 / 4`` is an unbiased estimate of its variance.

Training images: the store holds one mean per bin, so draws of one bin cannot be split. The sums over even and over odd
bins are independent parts E and O of the score E + O, whose variance is that of ``E - O``; but E and O also differ by
what differs between timesteps, so ``(E - O)^2`` is an upper bound on average, close where there are many bins.

The Gram matrix is taken as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from journey.features.features import Features
from journey.generation.trajectory import Trajectory
from journey.scores.queries import plan_queries
from journey.scores.score import solved, weighted_rows
from journey.scores.spectrum import DEFAULT_DAMPING

_MIN_BINS = 4  # fewer bins differ by their timesteps above all


@dataclass(frozen=True)
class ScoreNoise:
    """Monte-Carlo noise of scores, root mean squares over queries and training images.

    Attributes:
        timesteps: The steps.
        spread: Standard deviation of the scores over the training images: signal and noise together.
        query_error: Standard error from the queries' draws.
        train_error: Upper bound of the standard error from the training images' draws; None with fewer than 4 bins.
        snr: Signal-to-noise ratio, in variances, of a score beside the queries' error:
            ``max(0, spread^2 - query_error^2) / query_error^2``.
    """

    timesteps: list[int]
    spread: list[float]
    query_error: list[float]
    train_error: list[float] | None
    snr: list[float]

    def lines(self) -> list[str]:
        """Return a text table."""
        bounds = ["-"] * len(self.timesteps) if self.train_error is None else [f"{x:.3g}" for x in self.train_error]
        rows = zip(self.timesteps, self.spread, self.query_error, self.snr, bounds, strict=True)
        return [
            "scores: standard errors by draws",
            "  step     spread   query draws        SNR   train draws (at most)",
            *(f"  {t:>4} {s:>10.3g} {e:>13.3g} {r:>10.3g}   {b:>10}" for t, s, e, r, b in rows),
        ]

    def warnings(self) -> list[str]:
        """Return what deserves attention, in plain words."""
        found = []
        noisy = [t for t, ratio in zip(self.timesteps, self.snr, strict=True) if ratio < 1]
        if noisy:
            found.append(
                f"steps {', '.join(map(str, noisy))}: more than half of the scores' variance is noise of the query "
                "draws; score with a larger num_draws"
            )
        bounds = zip(self.timesteps, self.spread, self.train_error or [], strict=False)
        loud = [t for t, spread, error in bounds if error > spread]
        if loud:
            found.append(
                f"steps {', '.join(map(str, loud))}: even and odd bins of timesteps disagree about the training images "
                "as much as they agree; featurize with more draws, or score with a train_interval"
            )
        return found


def measure_score_noise(
    features: Features,
    trajectory: Trajectory,
    *,
    steps: Sequence[int] | None = None,
    damping: float | Literal["auto"] = DEFAULT_DAMPING,
    num_draws: int = 16,
    seed: int = 0,
    progress: bool = True,
) -> ScoreNoise:
    """Estimate the noise of the scores that ``journey.score`` gives for the same arguments.

    Args:
        features: The training images.
        trajectory: The generated images.
        steps: Timesteps among the recorded ones; all by default.
        damping: As for ``journey.score``.
        num_draws: Noises per query and step, a multiple of 4.
        seed: Names the noises.
        progress: Show a progress bar.

    Returns:
        The noise of each step.

    Raises:
        ValueError: If ``num_draws`` is not a multiple of 4, or as ``journey.score``.
        StoreMismatchError: If the model's weights are no longer those of the features.
    """
    if num_draws < 4 or num_draws % 4:
        raise ValueError(f"num_draws must be a multiple of 4, two halves of antithetic pairs, got {num_draws}")
    plan = plan_queries(features, trajectory, steps=steps, interval=None, region=None, num_draws=num_draws, seed=seed)
    halves = [replace(plan, draws=half) for half in ((0, num_draws // 2), (num_draws // 2, None))]
    weights = features.draws.weights(features.featurizer.denoiser.num_train_timesteps)
    alternating = (
        weights * torch.tensor([1.0, -1.0], dtype=torch.float64, device="cpu").repeat(len(weights))[: len(weights)]
    )

    by_query: list[Tensor] = []
    difference: Tensor | None = None
    for name, checkpoint in zip(features.store.manifest.checkpoints, features.checkpoints, strict=True):
        spectrum, used = solved(features, name, damping)
        measured = [half.measure(features, checkpoint, progress).double() for half in halves]
        solution = spectrum.precondition(torch.cat(measured).flatten(0, 1), used)
        whole, alternate = (
            torch.cat([solution @ rows.double().T for rows in weighted_rows(features, name, w)], 1)
            for w in (weights, alternating)
        )
        shape = (2, len(plan.ids), len(plan.steps), -1)
        by_query.append(whole.view(shape))
        difference = alternate.view(shape).mean(0) + (0 if difference is None else difference)
    assert difference is not None
    count = len(by_query)
    first, second = torch.stack(by_query).mean(0)  # each [num_queries, num_steps, num_train]
    spread = _rms((first + second) / 2 - ((first + second) / 2).mean(-1, keepdim=True))
    error = _rms((first - second) / 2)
    bound = _rms(difference / count).tolist() if len(weights) >= _MIN_BINS else None
    snr = (spread.square() - error.square()).clamp(min=0) / error.square().clamp(min=torch.finfo(error.dtype).tiny)
    return ScoreNoise(plan.steps, spread.tolist(), error.tolist(), bound, snr.tolist())


def _rms(values: Tensor) -> Tensor:
    """Root mean square over queries and training images. [num_queries, num_steps, num_train] -> [num_steps]"""
    return values.square().mean((0, 2)).sqrt()
