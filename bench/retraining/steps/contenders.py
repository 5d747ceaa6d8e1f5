"""What is compared at single steps: the library's way with other draws, kernels and dampings, and baselines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

import journey
from bench.retraining.whole.truth import Setting
from journey.curvature.ekfac import fit_ekfac
from journey.curvature.whitened import Whitened
from journey.files.fingerprint import fingerprint_json
from journey.generation.trajectory import Trajectory
from journey.measure.draws import DEFAULT_DRAWS, Draws, StratifiedDraws
from journey.measure.left_out import LeftOutLoss
from journey.measure.measurements import Measurement, TrainingLoss
from journey.methods import baselines
from journey.methods.influence import recommended

from journey.projectors.base import Projector
from journey.scores.scores import Scores

DEFAULT, WHOLE_IMAGE = "library default", "ours, of the whole image"
TRAINING_LOSS, PLAIN = "training loss", "plain gradients, damping 1"
_WINDOW = 200  # timesteps on either side of a step
_OURS = recommended()
_SKETCH, _LONG = journey.CountSketch(), journey.CountSketch(16384)


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
    """Return all that is compared: the default with one thing changed, plain gradients, and baselines."""
    return [
        _library(DEFAULT),
        _library(TRAINING_LOSS, measurement=TrainingLoss()),
        _library("weight 0.3", measurement=LeftOutLoss(0.3)),
        _library("weight 3", measurement=LeftOutLoss(3.0)),
        _library("damping 1", damping=1.0),
        _library("damping 100", damping=100.0),
        _library("damping cross-validated", damping="auto"),
        _library("training draws near the step", window=True),
        _library("signed squares", adjust=lambda scores: scores * scores.abs()),
        _library("sketched to 16,384", projector=lambda _: Whitened(_LONG), proj_dim=16384),
        _library("independent draws", replace(DEFAULT_DRAWS, antithetic=False)),
        _library("32 bins of 1 draw", StratifiedDraws(1, bins=32)),
        _library("1 bin of 8 draws", StratifiedDraws(8)),
        _library("1 bin of 32 draws", StratifiedDraws(32)),
        _library("whitened by EK-FAC, sketched to 16,384", projector=_ekfac, proj_dim=16384),
        _plain(PLAIN, damping=1.0),
        _plain("plain gradients, left-out loss, damping 1", damping=1.0, measurement=LeftOutLoss()),
        _plain("plain gradients, damping cross-validated", damping="auto"),
        _plain("plain gradients, 32 bins of 1 draw", StratifiedDraws(1, bins=32), 1.0),
        _plain("plain gradients, 1 bin of 8 draws", StratifiedDraws(8), "auto"),
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
    draws: Draws = DEFAULT_DRAWS,
    damping: float | Literal["auto"] = DEFAULT_DAMPING,
    *,
    measurement: Measurement = LeftOutLoss(),  # noqa: B008 - frozen
    projector: Callable[[Setting], Projector] = lambda _: Whitened(),
    proj_dim: int = 4096,
    window: bool = False,
    adjust: Callable[[Tensor], Tensor] | None = None,
) -> StepContender:
    """``journey.featurize`` and ``journey.score`` as they are."""

    def scores(setting: Setting, trajectory: Trajectory) -> Tensor:
        model, chosen = setting.models[0], projector(setting)
        names = [part.fingerprint() for part in (measurement, draws, chosen)]
        features = journey.featurize(
            model,
            list(setting.train),
            setting.work / "steps" / f"features-{fingerprint_json(names)[:16]}",
            measurement=measurement,
            draws=draws,
            projector=chosen,
            progress=False,
        )
        if window:
            last = model.num_train_timesteps
            parts = [
                journey.score(
                    features,
                    trajectory,
                    steps=[t],
                    train_interval=(max(0, t - _WINDOW), min(last, t + _WINDOW)),
                    damping=damping,
                    progress=False,
                ).values
                for t in trajectory.timesteps.tolist()
            ]
            return torch.cat(parts, 1)
        values = journey.score(features, trajectory, damping=damping, progress=False).values
        return values if adjust is None else adjust(values)

    return StepContender(name, scores, draws, draws.bins * proj_dim)


def _plain(
    name: str,
    draws: Draws = DEFAULT_DRAWS,
    damping: float | Literal["auto"] = DEFAULT_DAMPING,
    *,
    measurement: Measurement = TrainingLoss(),  # noqa: B008 - has no state
) -> StepContender:
    """Features that are not whitened, of the published measurement if nothing else is said."""
    return _library(name, draws, damping, measurement=measurement, projector=lambda _: _SKETCH)


def _ekfac(setting: Setting) -> Projector:
    """As in ``presets.kfac_influence``."""
    fitted = StratifiedDraws(2, antithetic=False)
    curvature = fit_ekfac(setting.models[0], setting.train, draws=fitted, progress=False)
    return Whitened(_LONG, curvature, 1e-3)


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
