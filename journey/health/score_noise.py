"""How far scores are from what infinitely many draws would give: their standard errors, step by step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from journey.scores.scores import Scores


@dataclass(frozen=True)
class ScoreNoise:
    """Monte-Carlo noise of scores, root mean squares over queries and training images.

    Attributes:
        timesteps: The steps.
        spread: Standard deviation of the scores over the training images: signal and noise together.
        error: Standard error of a score from the draws of both sides, at most; None where it is not known.
        snr: Signal-to-noise ratio in variances: ``max(0, spread^2 - error^2) / error^2``; None likewise.
    """

    timesteps: list[int]
    spread: list[float]
    error: list[float] | None
    snr: list[float] | None

    def lines(self) -> list[str]:
        """Return a text table."""
        unknown = ["-"] * len(self.timesteps)
        columns = [unknown if c is None else [f"{x:.3g}" for x in c] for c in (self.error, self.snr)]
        rows = zip(self.timesteps, self.spread, *columns, strict=True)
        return [
            "scores: standard errors by draws",
            "  step     spread   error (at most)        SNR",
            *(f"  {t:>4} {s:>10.3g} {e:>17} {r:>10}" for t, s, e, r in rows),
        ]

    def warnings(self) -> list[str]:
        """Return what deserves attention, in plain words."""
        noisy = [t for t, ratio in zip(self.timesteps, self.snr or [], strict=False) if ratio < 1]
        if not noisy:
            return []
        return [
            f"steps {', '.join(map(str, noisy))}: more than half of the scores' variance may be noise of the draws; "
            "featurize with more draws, or score with a larger num_draws"
        ]


def score_noise(scores: Scores) -> ScoreNoise:
    """Summarize the standard errors of some scores.

    Args:
        scores: From ``journey.score``.

    Returns:
        The noise of each step.
    """
    spread = _rms(scores.values - scores.values.mean(-1, keepdim=True))
    error = _rms(scores.standard_errors())
    if not torch.isfinite(error).all():
        return ScoreNoise(scores.timesteps.tolist(), spread.tolist(), None, None)
    snr = (spread.square() - error.square()).clamp(min=0) / error.square().clamp(min=torch.finfo(error.dtype).tiny)
    return ScoreNoise(scores.timesteps.tolist(), spread.tolist(), error.tolist(), snr.tolist())


def _rms(values: Tensor) -> Tensor:
    """Root mean square over queries and training images. [num_queries, num_steps, num_train] -> [num_steps]"""
    return values.double().square().mean((0, 2)).sqrt()
