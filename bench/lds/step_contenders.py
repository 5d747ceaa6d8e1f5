"""What is compared at single steps: the library's way with other draws, kernels and dampings, and baselines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

import journey
from bench.lds.truth import Setting
from journey import baselines
from journey.draws import Draws, StratifiedDraws
from journey.recommended import recommended
from journey.scoring import Scores
from journey.solve import DEFAULT_DAMPING
from journey.trajectory import Trajectory

DEFAULT, WHOLE_IMAGE = "library default", "ours, of the whole image"
WHITENED = "whitened by EK-FAC, damping 10"
_WINDOW = 200  # timesteps on either side of a step
_OURS = recommended()
_WHITENED_DIM = 16384


@dataclass(frozen=True)
class StepContender:
    """A way to score at single steps.

    Args:
        name: Its row.
        scores: Returns scores [num_queries, num_steps, num_train] for a setting and its queries' steps.
        draws: Draws of the training images, None where there are no features.
        stored: Numbers that are kept of each image.
    """

    name: str
    scores: Callable[[Setting, Trajectory], Tensor]
    draws: Draws | None = None
    stored: int = 0


def step_contenders() -> list[StepContender]:
    """Return all that is compared."""
    default = StratifiedDraws(2, bins=10)
    return [
        _library(DEFAULT, default),
        _library("default, training draws near the step", default, window=True),
        _library("default, signed squares", default, adjust=lambda scores: scores * scores.abs()),
        _library("default, damping cross-validated", default, damping="auto"),
        _library("whitened by EK-FAC, damping 1", default, whitened=True),
        _library(WHITENED, default, whitened=True, damping=10.0),
        _library("whitened by EK-FAC, damping 1000", default, whitened=True, damping=1000.0),
        _library("default, independent draws", StratifiedDraws(2, bins=10, antithetic=False)),
        _library("16 bins of 2 independent draws", StratifiedDraws(2, bins=16, antithetic=False)),
        _library("32 bins of 1 draw", StratifiedDraws(1, bins=32)),
        _library("1 bin of 8 draws", StratifiedDraws(8)),
        _library("1 bin of 8 draws, cross-validated", StratifiedDraws(8), damping="auto"),
        _library("1 bin of 32 draws", StratifiedDraws(32)),
        StepContender("optimal denoiser at the latent", _at_steps(_optimal_at_latent)),
        StepContender("optimal denoiser at x0_hat", _at_steps(_optimal_at_prediction)),
        StepContender("pixels of x0_hat, cosine", _at_steps(_pixels)),
        StepContender(WHOLE_IMAGE, _whole_image, _OURS.draws, 16384),
    ]


def measured_scores(setting: Setting, trajectory: Trajectory, contender: StepContender) -> Tensor:
    """Score, or read what an earlier run scored. float32 [num_queries, num_steps, num_train]"""
    path = setting.work / "steps" / contender.name.replace(" ", "-").replace(",", "") / "scores.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        values = contender.scores(setting, trajectory).float()
        Scores(values, trajectory.timesteps, list(range(len(setting.train))), 0.0).save(path)
    return Scores.load(path).values


def _library(
    name: str,
    draws: Draws,
    *,
    window: bool = False,
    damping: float | Literal["auto"] = DEFAULT_DAMPING,
    adjust: Callable[[Tensor], Tensor] | None = None,
    whitened: bool = False,
) -> StepContender:
    """``journey.featurize`` and ``journey.score`` as they are."""

    def scores(setting: Setting, trajectory: Trajectory) -> Tensor:
        model, projector = setting.models[0], journey.CountSketch()
        if whitened:
            # As in presets.kfac_influence.
            fitted = StratifiedDraws(2, antithetic=False)
            curvature = journey.fit_ekfac(model, setting.train, draws=fitted, progress=False)
            projector = journey.Whitened(journey.CountSketch(_WHITENED_DIM), curvature, 1e-3)
        out = setting.work / "steps" / f"features-{draws.bins}x{_kind(draws)}{'-whitened' * whitened}"
        features = journey.featurize(model, list(setting.train), out, draws=draws, projector=projector, progress=False)
        if window:
            last = model.num_train_timesteps
            parts = [
                journey.score(
                    features,
                    trajectory,
                    steps=[t],
                    train_interval=(max(0, t - _WINDOW), min(last, t + _WINDOW)),
                    progress=False,
                ).values
                for t in trajectory.timesteps.tolist()
            ]
            return torch.cat(parts, 1)
        values = journey.score(features, trajectory, damping=damping, progress=False).values
        return values if adjust is None else adjust(values)

    return StepContender(name, scores, draws, draws.bins * (_WHITENED_DIM if whitened else 4096))


def _kind(draws: Draws) -> str:
    return f"{draws.num_draws}{'-pairs' if getattr(draws, 'antithetic', False) else ''}"


def _at_steps(one: Callable[[Setting, Trajectory, int], Tensor]) -> Callable[[Setting, Trajectory], Tensor]:
    """Ask a baseline at every step."""
    return lambda setting, trajectory: torch.stack(
        [one(setting, trajectory, index) for index in range(len(trajectory.timesteps))], 1
    )


def _optimal_at_latent(setting: Setting, trajectory: Trajectory, index: int) -> Tensor:
    t = int(trajectory.timesteps[index])
    return baselines.optimal_denoiser_at(setting.models[0], setting.train, trajectory.x_t[:, index], t)


def _optimal_at_prediction(setting: Setting, trajectory: Trajectory, index: int) -> Tensor:
    t = int(trajectory.timesteps[index])
    return baselines.optimal_denoiser(setting.models[0], setting.train, trajectory.x0_hat[:, index], timesteps=[t])


def _pixels(setting: Setting, trajectory: Trajectory, index: int) -> Tensor:
    return baselines.pixels(setting.train, trajectory.x0_hat[:, index], cosine=True)


def _whole_image(setting: Setting, trajectory: Trajectory) -> Tensor:
    scores = _OURS.run(setting.models[0], list(setting.train), trajectory.images, progress=False).values
    return scores.expand(-1, len(trajectory.timesteps), -1)
