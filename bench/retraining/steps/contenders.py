"""What is compared at single steps: the library's default, the default with one thing changed, and baselines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import journey
from bench.retraining.library import DEFAULT, LIBRARY, WHOLE_IMAGE, Choices, features_of, step_scores
from bench.retraining.whole.truth import Setting
from journey.curvature.gram import DEFAULT_DAMPING
from journey.curvature.kfac import fit_kfac
from journey.curvature.whitened import Whitened
from journey.generation.trajectory import Trajectory
from journey.measure.draws import Draws, StratifiedDraws
from journey.measure.measurements import TrainingLoss
from journey.methods import baselines, journey_trak
from journey.methods.preconditioners import Gram
from journey.models.encoding import choose_captions, encode_all
from journey.projectors.base import Projector
from journey.projectors.random import CountSketch
from journey.scores.scores import Scores

TRAINING_LOSS, PLAIN, PUBLISHED = "training loss", "plain gradients", "journey_trak"
_WINDOW = 200  # timesteps on either side of a step
_TRAK = journey_trak().change(projector=CountSketch(4096))


@dataclass(frozen=True)
class StepContender:
    """A way to score at single steps.

    Args:
        name: Its row.
        scores: Returns scores [num_queries, num_steps, num_train] for a setting and its queries' steps.
        draws: Draws of the training images, None where there are no features.
        stored: Bytes that are kept of each image.
    """

    name: str
    scores: Callable[[Setting, Trajectory], Tensor]
    draws: Draws | None = None
    stored: int = 0


def step_contenders() -> list[StepContender]:
    """Return all that is compared."""
    return [
        _library(DEFAULT),
        _library(TRAINING_LOSS, Choices(TrainingLoss())),
        _library("damping 0.3", damping=0.3),
        _library("damping 3", damping=3.0),
        _library("signed squares", adjust=lambda scores: scores * scores.abs()),
        _library("pseudo-gradients alone", Choices(own_share=0.0)),
        _library("own gradients alone", Choices(own_share=1.0)),
        _library("20,480 pseudo-gradients", Choices(pseudo_gradients=20480)),
        _library("rows of 4 bits", Choices(row="int4")),
        _library("rows of float32", Choices(row="float32")),
        _library("8 draws", Choices(draws=StratifiedDraws(8))),
        _library("independent draws", Choices(draws=StratifiedDraws(20, antithetic=False))),
        _library("training draws near the step", Choices(draws=StratifiedDraws(2, bins=10)), window=True),
        _library(PLAIN, Choices(projector=CountSketch())),
        _library("plain gradients, damping 0.1", Choices(projector=CountSketch()), damping=0.1),
        _library("whitened by Kronecker factors", Choices(projector=_whitened)),
        _library("whitened by Kronecker factors, damping 3", Choices(projector=_whitened), damping=3.0),
        StepContender(PUBLISHED, _published(0.3), _TRAK.draws, 4 * 4096),
        StepContender("journey_trak, as published", _published(0.0), _TRAK.draws, 4 * 4096),
        StepContender("optimal denoiser at the latent", _at_steps(_optimal_at_latent)),
        StepContender("optimal denoiser at x0_hat", _at_steps(_optimal_at_prediction)),
        StepContender("pixels of x0_hat, cosine", _at_steps(_pixels)),
        StepContender(WHOLE_IMAGE, _whole_image, LIBRARY.draws, LIBRARY.stored),
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
    choices: Choices = LIBRARY,
    damping: float = DEFAULT_DAMPING,
    *,
    window: bool = False,
    adjust: Callable[[Tensor], Tensor] | None = None,
) -> StepContender:
    """``journey.fit``, ``journey.featurize`` and ``journey.score`` as they are."""

    def scores(setting: Setting, trajectory: Trajectory) -> Tensor:
        if window:
            return _near_the_step(setting, trajectory, choices, damping)
        values = step_scores(setting, trajectory, choices, damping=damping)
        return values if adjust is None else adjust(values)

    return StepContender(name, scores, choices.draws, choices.stored)


def _near_the_step(setting: Setting, trajectory: Trajectory, choices: Choices, damping: float) -> Tensor:
    """Count the training images' draws near the step alone."""
    features, _ = features_of(setting, choices)
    last = setting.model.num_train_timesteps
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


def _whitened(setting: Setting) -> Projector:
    """Kronecker factors of the curvature in place of one scale per parameter."""
    samples = encode_all(setting.model, setting.dataset)
    told = samples.conditions(choose_captions(0, range(len(samples)), samples.counts, 1))
    return Whitened(CountSketch(), fit_kfac(setting.model, samples.x0, condition=told, progress=False))


def _published(damping: float) -> Callable[[Setting, Trajectory], Tensor]:
    method = _TRAK.change(preconditioner=Gram(damping))
    return lambda setting, trajectory: method.run(setting.model, setting.dataset, trajectory, progress=False).values


def _at_steps(one: Callable[[Setting, Trajectory, int], Tensor]) -> Callable[[Setting, Trajectory], Tensor]:
    """Ask a baseline at every step."""
    return lambda setting, trajectory: torch.stack(
        [one(setting, trajectory, index) for index in range(len(trajectory.timesteps))], 1
    )


def _optimal_at_latent(setting: Setting, trajectory: Trajectory, index: int) -> Tensor:
    t = int(trajectory.timesteps[index])
    return baselines.optimal_denoiser_at(setting.model, setting.train, trajectory.x_t[:, index], t)


def _optimal_at_prediction(setting: Setting, trajectory: Trajectory, index: int) -> Tensor:
    t = int(trajectory.timesteps[index])
    return baselines.optimal_denoiser(setting.model, setting.train, trajectory.x0_hat[:, index], timesteps=[t])


def _pixels(setting: Setting, trajectory: Trajectory, index: int) -> Tensor:
    return baselines.pixels(setting.train, trajectory.x0_hat[:, index], cosine=True)


def _whole_image(setting: Setting, trajectory: Trajectory) -> Tensor:
    features, _ = features_of(setting)
    scores = journey.score(features, images=trajectory, progress=False).strengths().values
    return scores.expand(-1, len(trajectory.timesteps), -1)
