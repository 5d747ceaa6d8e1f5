"""What is compared: the library with one thing changed, every preset, their relatives, and baselines."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import journey
from bench.retraining.library import DEFAULT, LIBRARY, Choices, features_of
from bench.retraining.whole.truth import Setting
from journey.curvature.gram import DEFAULT_DAMPING
from journey.files.fingerprint import fingerprint_tensors
from journey.generation.noised import noised_trajectory
from journey.generation.trajectory import Trajectory
from journey.measure.draws import StratifiedDraws
from journey.measure.measurements import MeanOutput, TrainingLoss
from journey.methods import PRESETS, baselines, grass, journey_trak, kfac_influence
from journey.methods.method import Measured, Method, Scored
from journey.methods.preconditioners import BlockGram, Gram, Preconditioner
from journey.models.condition import Encoded
from journey.projectors.random import CountSketch, Gaussian

# A dense projection to 4096 costs hundreds of times the gradient here; the sketch has the same accuracy.
_SKETCH = CountSketch(4096)
_STEPS = (800, 500, 200)  # where methods that ask at a step are asked; their scores are averaged
# Relative dampings to choose from, on the halves for tuning.
DAMPINGS = (1e-4, 1e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0)


@dataclass(frozen=True)
class Contender:
    """A method with what is known about its cost.

    Args:
        name: Its row.
        method: The method, None for a baseline.
        baseline: Scores from the setting, for one that is no ``Method``. [num_queries, num_train]
        library: The library as it is, with these options, for one that is no ``Method``.
        damping: Of the library's scores.
        strengths: Score by the signed squares of the library's scores.
        of_steps: Score by the mean of the library's scores at single steps instead.
        ensemble: Models of the whole training set whose scores are averaged.
        tune: Choose the damping on the halves for tuning.
    """

    name: str
    method: Method | None = None
    baseline: Callable[[Setting], Tensor] | None = None
    library: Choices | None = None
    damping: float = DEFAULT_DAMPING
    strengths: bool = True
    of_steps: bool = False
    ensemble: int = 1
    tune: bool = True

    @property
    def damped(self) -> bool:
        """Whether there is a damping to choose."""
        return self.tune and self.method is not None and isinstance(self.method.preconditioner, Gram | BlockGram)


def contenders() -> list[Contender]:
    """Return all that is compared, in the order of the table."""
    linear, training = f"{DEFAULT}, linear scores", Choices(TrainingLoss())
    found = [
        Contender(DEFAULT, library=LIBRARY),
        Contender(linear, library=LIBRARY, strengths=False),
        Contender(f"{DEFAULT}, of three steps", library=LIBRARY, of_steps=True),
        Contender("training loss", library=training),
        Contender("plain gradients", library=Choices(projector=_SKETCH)),
        Contender("pseudo-gradients alone", library=Choices(own_share=0.0)),
        Contender("own gradients alone", library=Choices(own_share=1.0)),
        Contender("rows of 4 bits", library=Choices(row="int4")),
        Contender("damping 0.3", library=LIBRARY, damping=0.3),
        Contender("damping 3", library=LIBRARY, damping=3.0),
    ]
    found += [Contender(name, _affordable(preset())) for name, preset in PRESETS.items()]
    found.append(Contender("journey_trak, as published", _affordable(journey_trak()), tune=False))
    found += [
        Contender("mean output, squared", MEAN_OUTPUT),
        Contender("loss, 32 draws", LOSS),
        Contender("loss, 32 draws, 2 models", LOSS, ensemble=2),
        Contender("loss, 32 draws, proponents squared", LOSS.change(adjust=_square_proponents)),
        Contender("kfac_influence, signed squares", kfac_influence().change(adjust=_signed_squares)),
        Contender("grass, selective mask", grass(mask="selective")),
        Contender("EK-FAC and Gram", kfac_influence().change(preconditioner=Gram(3.0))),
    ]
    found += [
        Contender("pixels, inner product", baseline=lambda s: baselines.pixels(s.train, s.queries)),
        Contender("pixels, cosine", baseline=lambda s: baselines.pixels(s.train, s.queries, cosine=True)),
        Contender("optimal denoiser (NDA)", baseline=_optimal_denoiser),
    ]
    return found


def library_scores(setting: Setting, contender: Contender) -> tuple[Tensor, float]:
    """Scores of whole images by the library as it is, and the CPU seconds of fit, store and scores."""
    assert contender.library is not None
    features, seconds = features_of(setting, contender.library)
    begin, asked = time.process_time(), setting.asked
    if contender.of_steps:
        trajectory = noised_trajectory(setting.model, asked.x0, _STEPS, condition=asked.condition)
        found = journey.score(features, trajectory, damping=contender.damping, progress=False).values.mean(1)
    else:
        scores = journey.score(features, images=setting.pictures, damping=contender.damping, progress=False)
        found = (scores.strengths() if contender.strengths else scores).values[:, 0]
    return found, seconds + time.process_time() - begin


def _square_proponents(scores: Tensor, scored: Scored) -> Tensor:
    return scores.clamp(min=0).square()


def _squared(scores: Tensor, scored: Scored) -> Tensor:
    return scores.square()


def _signed_squares(scores: Tensor, scored: Scored) -> Tensor:
    return scores * scores.abs()


# The loss with many draws, each normalised; and with its strong proponents emphasised.
LOSS = Method(
    "loss32",
    "this library",
    draws=StratifiedDraws(32),
    projector=_SKETCH,
    per_draw="normalized",
    preconditioner=Gram(0.3),
)
# DAS with our draws, without its weights of images; its scores have no sign.
MEAN_OUTPUT = LOSS.change(name="mean-output", measurement=MeanOutput(), preconditioner=Gram(0.01), adjust=_squared)


def measure(setting: Setting, contender: Contender) -> tuple[list[Measured], float]:
    """Measure, or read what an earlier run measured.

    Returns:
        Per model what was measured, and the seconds it took.
    """
    assert contender.method is not None
    found, seconds = [], 0.0
    for index, model in enumerate(setting.models[: contender.ensemble]):
        path = setting.work / "measured" / f"{contender.method.name}-{index}.safetensors"
        names = {"weights": fingerprint_tensors(model.network.state_dict()), "method": _describe(contender.method)}
        if path.exists() and _metadata(path) == names:
            saved = load_file(path)
        else:
            begin = time.process_time()
            measured, _ = contender.method.measure(
                model, setting.dataset, _queries(setting, contender.method), steps=_STEPS, progress=False
            )
            took = time.process_time() - begin
            blocks = torch.tensor(measured.blocks)
            saved = {**measured._asdict(), "blocks": blocks, "seconds": torch.tensor(took, dtype=torch.float64)}
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(saved, path, metadata=names)
        found.append(Measured(saved["train"], saved["values"], saved["query"], saved["blocks"].tolist()))
        seconds += saved["seconds"].item()
    return found, seconds


def scores_at(
    setting: Setting, contender: Contender, measured: Sequence[Measured], damping: float | None
) -> tuple[Tensor, float]:
    """Scores of finished images, mean over models and steps, and the damping used. [num_queries, num_train]"""
    assert contender.method is not None
    method = contender.method
    if damping is not None:
        method = method.change(preconditioner=with_damping(method.preconditioner, damping))
    total, used = torch.zeros(()), 0.0
    for model, features in zip(setting.models, measured, strict=False):
        scores, used = method.compare(model, setting.dataset, features)
        total = total + scores.mean(1) / len(measured)
    return total, used


def with_damping(preconditioner: Preconditioner, damping: float) -> Preconditioner:
    """Return the same kernel with another damping."""
    return BlockGram(damping) if isinstance(preconditioner, BlockGram) else Gram(damping)


def _affordable(method: Method) -> Method:
    return method.change(projector=_SKETCH) if isinstance(method.projector, Gaussian) else method


def _queries(setting: Setting, method: Method) -> Encoded | Trajectory:
    if not method.at_steps:
        return setting.asked
    real = setting.asked.select(0, 2 * setting.tier.num_queries)
    noised = noised_trajectory(setting.model, real.x0, _STEPS, condition=real.condition)
    recorded = setting.trajectory
    kept = [recorded.timesteps.tolist().index(t) for t in _STEPS]
    return Trajectory(
        torch.tensor(_STEPS),
        torch.cat([noised.x_t, recorded.x_t[:, kept]]),
        torch.cat([noised.x0_hat, recorded.x0_hat[:, kept]]),
        torch.cat([noised.images, recorded.images]),
        setting.asked.condition,
    )


def _optimal_denoiser(setting: Setting) -> Tensor:
    return baselines.optimal_denoiser(setting.model, setting.train, setting.queries)


def _describe(method: Method) -> str:
    """What a measurement depends on, as text."""
    projector = method.projector.fingerprint() if not callable(method.projector) else method.name
    parts = (method.measurement.fingerprint(), method.draws.fingerprint(), projector)
    asked = (_STEPS, method.query_draws) if method.at_steps else None
    return repr((*parts, method.per_draw, method.at_steps, asked))


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())
