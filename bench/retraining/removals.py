"""Remove what attributions name, retrain, and see what changes: ``python -m bench.retraining.removals --tier laptop``.

For every generated query the strongest proponents of each method are removed and a model is trained without them, from
the attributed model's own seed. Two questions. *Whole*: how far does the generation move, and how much does the query's
loss rise? *At a step*: attributions of one step against those of the whole trajectory, with the retrained model used at
that step and the next two alone. Models are kept in ``--work`` and continued after an interruption; results are
``removals-NAME.json``, ``.md`` and ``.png``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import journey
from bench.retraining.arguments import make_parser, write_into, write_results
from bench.retraining.library import DEFAULT, WHOLE_IMAGE, features_of
from bench.retraining.removals_report import AT_STEP, NEAREST, plot, tables
from bench.retraining.tiers import TIERS
from bench.retraining.whole.contenders import contenders, measure, scores_at
from bench.retraining.whole.truth import Setting, open_setting
from journey.evaluate.counterfactual import measure_effect
from journey.evaluate.effects import (
    Effect,
    embedding_distance,
    generation_change,
    loss_change,
    prediction_change,
    step_loss_change,
)
from journey.evaluate.removal import remove
from journey.evaluate.training import RemovalTraining
from journey.features.features import Features
from journey.measure.draws import StratifiedDraws
from journey.methods import baselines
from journey.models.denoiser import Denoiser
from journey.scores.scores import Scores

STEPS = (500,)  # in the middle of the way, where digits are decided
WIDTH = 100  # of the interval in which a retrained model replaces the attributed one: a step and the next two
# Of 48 one is clear of both controls with four queries; 16 are fewer than there are of one digit.
NUM_REMOVED = (48, 16)
NUM_QUERIES = 32
NUM_CONTROLS = 4
OPTIMAL, PIXELS, MEAN_OUTPUT = "optimal denoiser", NEAREST, "mean output, squared"
SETS = "library, removal set"

# What a method says of the whole generation, of which so many images are removed at most; and what it says of one step.
# [num_queries, num_train]
WHOLE: dict[str, Callable[[Setting, int], Tensor]] = {
    WHOLE_IMAGE: lambda setting, _: _whole_scores(setting).values[:, 0],
    SETS: lambda setting, most: _sets(setting, most),
    DEFAULT: lambda setting, _: journey.score(
        _features(setting), setting.trajectory, interval=(0, 1000), progress=False
    ).values[:, 0],
    PIXELS: lambda setting, _: baselines.pixels(setting.train, setting.trajectory.images, cosine=True),
    OPTIMAL: lambda setting, _: baselines.optimal_denoiser(setting.model, setting.train, setting.trajectory.images),
    MEAN_OUTPUT: lambda setting, _: _method(setting, MEAN_OUTPUT),
}
STEPWISE: dict[str, Callable[[Setting, int], Tensor]] = {
    DEFAULT: lambda setting, step: journey.score(
        _features(setting), setting.trajectory, steps=[step], progress=False
    ).values[:, 0],
    OPTIMAL: lambda setting, step: baselines.optimal_denoiser(
        setting.model, setting.train, _predicted(setting, step), timesteps=[step]
    ),
}


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for.

    Args:
        arguments: Instead of the command line's.

    Returns:
        Exit status.
    """
    parser = make_parser("bench.retraining.removals", __doc__)
    parser.add_argument("--processes", type=int, default=1, help="trainings at once, one thread each (default: 1)")
    parser.add_argument("--queries", type=int, default=NUM_QUERIES, help=f"generated queries (default: {NUM_QUERIES})")
    parser.add_argument(
        "--removed", type=int, nargs="+", default=NUM_REMOVED, help="images removed, the first at steps"
    )
    parser.add_argument("--methods", nargs="+", choices=WHOLE, default=list(WHOLE), help="whole-image methods (all)")
    parser.add_argument("--step-queries", type=int, help="queries at single steps (default: as --queries)")
    parser.add_argument("--steps", type=int, nargs="*", default=STEPS, help="single steps that are asked about")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    setting = open_setting(TIERS[options.tier], options.data, options.work)
    sizes = (options.queries, options.queries if options.step_queries is None else options.step_queries)
    methods = {name: WHOLE[name] for name in options.methods}
    document = compare(setting, methods, sizes, options.removed, options.steps, options.processes)
    write_results(options, f"removals-{setting.tier.name}", document, tables(document))
    plot(document, options.pages / f"removals-{setting.tier.name}.png")
    write_into(options, tables(document, short=True), "removals")
    return 0


def compare(
    setting: Setting,
    methods: Mapping[str, Callable[[Setting, int], Tensor]],
    sizes: tuple[int, int],
    numbers: Sequence[int],
    steps: Sequence[int],
    processes: int,
) -> dict[str, Any]:
    """Train what is not there yet and measure everything.

    Args:
        setting: The tier.
        methods: Those that name images of the whole generation.
        sizes: How many of its generated queries are asked about, as a whole and at steps.
        numbers: How many images are removed; at steps the first of these.
        steps: Which single steps are asked about.
        processes: Trainings at once.

    Returns:
        The change of every query in every training, ``[effect][name][training][query]``: ``whole`` for every number of
        removed images, ``step`` for every step.
    """
    training = setting.tier.training(setting.train, RemovalTraining)

    def measured(
        scores: dict[str, Tensor], num_queries: int, num_removed: int, effects: dict[str, Effect]
    ) -> dict[str, Any]:
        some = {name: values[:num_queries] for name, values in scores.items()}
        folder = setting.work / "removals"
        models = remove(training, some, num_removed, folder, num_controls=NUM_CONTROLS, processes=processes)
        return {what: _rounded(measure_effect(models, effect).runs) for what, effect in effects.items()}

    whole = {name: scores(setting, max(numbers)) for name, scores in methods.items()}
    document: dict[str, Any] = {
        "what": "change of every query under models without its proponents: [effect][name][training][query]",
        "tier": setting.tier.name,
        "num_train": setting.tier.num_train,
        "removed_at_step": numbers[0],
        "width": WIDTH,
        "training": training.fingerprint(),
        "whole": {str(k): measured(whole, sizes[0], k, _whole_effects(setting)) for k in numbers},
        "step": {},
    }
    for step in steps:
        at_step = {f"{name}{AT_STEP}": scores(setting, step) for name, scores in STEPWISE.items()}
        document["step"][str(step)] = measured({**whole, **at_step}, sizes[1], numbers[0], _step_effects(setting, step))
    return document


def _rounded(runs: dict[str, Tensor]) -> dict[str, list[list[float]]]:
    return {name: [[float(f"{x:.5g}") for x in row] for row in rows.tolist()] for name, rows in runs.items()}


def _whole_effects(setting: Setting) -> dict[str, Effect]:
    model, steps = setting.model, len(setting.trajectory.timesteps)
    embedding = embedding_distance(_bottleneck(model))
    return {
        "pixels": generation_change(model, num_inference_steps=steps),
        "embedding": generation_change(model, num_inference_steps=steps, distance=embedding),
        "loss": loss_change(model, setting.trajectory.images, draws=StratifiedDraws(64, seed=1)),
    }


def _step_effects(setting: Setting, step: int) -> dict[str, Effect]:
    model, steps = setting.model, len(setting.trajectory.timesteps)
    interval = (step, step - WIDTH)
    return {
        "prediction": prediction_change(model, setting.trajectory, step),
        "generation": generation_change(model, num_inference_steps=steps, interval=interval),
        "loss": step_loss_change(model, setting.trajectory, step),
    }


def _bottleneck(model: Denoiser) -> Callable[[Tensor], Tensor]:
    """The attributed network's own middle as an embedding: what it computes of a nearly noiseless image."""

    @torch.no_grad()
    def embed(images: Tensor) -> Tensor:
        found: list[Tensor] = []
        middle: Any = model.network.mid_block
        handle = middle.register_forward_hook(lambda module, inputs, output: found.append(output))
        times = torch.full((len(images),), model.num_train_timesteps // 20)
        model.predict(model.add_noise(images, torch.zeros_like(images), times), times)
        handle.remove()
        return found[0]

    return embed


def _method(setting: Setting, name: str) -> Tensor:
    """Scores of generated queries by a contender of the comparison by LDS, with its own damping."""
    contender = next(contender for contender in contenders() if contender.name == name)
    measured, _ = measure(setting, contender)
    return scores_at(setting, contender, measured, None)[0][-setting.tier.num_queries :]


def _whole_scores(setting: Setting) -> Scores:
    return journey.score(_features(setting), images=setting.trajectory, progress=False)


def _sets(setting: Setting, most: int) -> Tensor:
    """The removal set of every query, its first image the highest. [num_queries, num_train]"""
    scores = _whole_scores(setting)
    places = torch.zeros_like(scores.values[:, 0])
    for query, row in enumerate(places):
        chosen = scores.removal_set(most, setting.dataset, query=query, progress=False)
        row[[scores.train_ids.index(i) for i in chosen.ids]] = torch.arange(most, 0, -1.0)
    return places


def _features(setting: Setting) -> Features:
    return features_of(setting)[0]


def _predicted(setting: Setting, step: int) -> Tensor:
    trajectory = setting.trajectory
    return trajectory.x0_hat[:, trajectory.timesteps.tolist().index(step)]


if __name__ == "__main__":
    sys.exit(main())
