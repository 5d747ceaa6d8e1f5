"""What really happens at single steps: how every query's steps fare under the models retrained on random halves.

The response at step t is what a step's query measures: the image x0_hat(t) that the attributed model predicts from the
latent is noised again to t, and the retrained model's loss on it is taken, mean over noises that all models share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bench.retraining.whole.truth import Setting, by_subset, measure_models, read_table, retrained, write_table
from journey.evaluate.subsets import Subsets
from journey.files.fingerprint import fingerprint_tensors
from journey.generation.noised import noised_trajectory
from journey.generation.trajectory import Trajectory
from journey.measure.batch import measure_values
from journey.measure.draws import ExplicitDraws
from journey.measure.measurements import TrainingLoss
from journey.models.checkpoints import loaded
from journey.models.condition import Condition, Encoded
from journey.models.denoiser import Denoiser
from journey.ops.noise import query_noise

STEPS = (950, 800, 650, 500, 350, 200, 50)
STEP_KINDS = ("held-out", "generated")
# Other noises than those that methods measure queries with: a method must not know what it is held against.
_NOISE_SEED, _LATENT_SEED = 7, 1


@dataclass(frozen=True, eq=False)
class StepTruth:
    """The table of responses, and what it belongs to.

    Attributes:
        trajectory: The queries' steps, kind after kind.
        subsets: The reported halves, then those for tuning.
        num_reported: How many are reported.
        responses: Losses; NaN where a half was not trained with that seed.
            [num_subsets, num_seeds, num_queries, num_steps]
    """

    trajectory: Trajectory
    subsets: Subsets
    num_reported: int
    responses: Tensor

    def reported(self) -> tuple[Subsets, Tensor]:
        """Return halves that are reported. [num_reported, num_seeds, num_queries, num_steps]"""
        return self.subsets.select(slice(0, self.num_reported)), self.responses[: self.num_reported]

    def tuning(self) -> tuple[Subsets, Tensor]:
        """Return halves that choices are made on, one seed each. [num_tuning, 1, num_queries, num_steps]"""
        return self.subsets.select(slice(self.num_reported, None)), self.responses[self.num_reported :, :1]

    def of_kind(self, kind: str) -> slice:
        """Return which queries are of a kind."""
        count = self.trajectory.num_queries // len(STEP_KINDS)
        first = STEP_KINDS.index(kind) * count
        return slice(first, first + count)


def step_trajectory(setting: Setting) -> Trajectory:
    """Return the steps of all queries: held-out images noised to each step, then the recorded generations."""
    model, real, recorded = setting.model, setting.samples(STEP_KINDS[0]), setting.trajectory
    noised = noised_trajectory(model, real.x0, STEPS, condition=real.condition, seed=_LATENT_SEED)
    kept = [recorded.timesteps.tolist().index(t) for t in STEPS]
    told = [part.condition for part in (noised, recorded) if part.condition is not None]
    return Trajectory(
        noised.timesteps,
        torch.cat([noised.x_t, recorded.x_t[:, kept]]),
        torch.cat([noised.x0_hat, recorded.x0_hat[:, kept]]),
        torch.cat([noised.images, recorded.images]),
        Condition.cat(told) if told else None,
        prompts=(*setting.words(STEP_KINDS[0]), *recorded.prompts),
        schedule=noised.schedule,
        levels=noised.levels,
    )


def make_step_truth(setting: Setting, path: Path, processes: int) -> StepTruth:
    """Retrain what is not there yet, measure all steps, and write the table, with the steps in a file beside it."""
    tier = setting.tier
    subsets, runs, weights = retrained(setting, processes)
    trajectory = step_trajectory(setting)
    responses = by_subset(subsets, runs, measure_steps(setting, trajectory, weights))
    write_table(
        path,
        {
            "what": "loss of every query's steps under models retrained on random halves: [subset][seed][query][step]",
            "training": setting.training.fingerprint(),
            **setting.about,
            "noises": tier.num_noises,
            "steps": STEPS,
            "queries": {"kinds": STEP_KINDS, "of_each": tier.num_queries},
            "subsets": subsets.to_json(),
            "num_reported": tier.num_subsets,
        },
        responses,
        digits=5,
    )
    trajectory.save(path.with_suffix(".safetensors"))
    return StepTruth(trajectory, subsets, tier.num_subsets, responses)


def measure_steps(setting: Setting, trajectory: Trajectory, paths: Sequence[Path]) -> Tensor:
    """Measure all steps of all queries under every model. [num_models, num_queries, num_steps]"""
    model, ids, shape = setting.model, range(trajectory.num_queries), tuple(trajectory.images.shape[1:])
    each, device = setting.tier.num_noises, torch.device("cpu")
    noise = torch.stack([query_noise(_NOISE_SEED, ids, t, each, shape, device) for t in STEPS], 1)
    told = {} if trajectory.condition is None else trajectory.condition.tensors
    of = fingerprint_tensors({**told, "x0_hat": trajectory.x0_hat, "noise": noise})

    def measure(path: Path) -> Tensor:
        with loaded(model.network, path):
            return step_responses(model, trajectory, noise)

    return measure_models(setting, paths, [of], measure)


def read_step_truth(path: Path) -> StepTruth:
    """Read the table that ``make_step_truth`` wrote."""
    document, responses = read_table(path)
    trajectory = Trajectory.load(path.with_suffix(".safetensors"))
    return StepTruth(trajectory, Subsets.from_json(document["subsets"]), document["num_reported"], responses)


def step_responses(denoiser: Denoiser, trajectory: Trajectory, noise: Tensor) -> Tensor:
    """Measure every step of every query under the denoiser's current weights.

    Args:
        denoiser: The model.
        trajectory: The steps, as the attributed model made them.
        noise: What the predicted images are noised with. [num_queries, num_steps, num_noises, C, H, W]

    Returns:
        float32. [num_queries, num_steps]
    """
    found = []
    for index, t in enumerate(trajectory.timesteps.tolist()):
        draws = ExplicitDraws(torch.full(noise.shape[:1] + noise.shape[2:3], t), noise[:, index])
        samples = Encoded.single(trajectory.x0_hat[:, index], trajectory.condition)
        measured = measure_values(denoiser, samples, draws=draws, measurement=TrainingLoss())
        found.append(measured[:, 0])
    return torch.stack(found, 1)
