"""A whole featurizing step of a UNet, from noised images to features, beside a plain training step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from bench.case import PROJ_DIM, Case, Context
from bench.featurize import published
from bench.featurize.memory import peak_bytes
from bench.featurize.per_sample import DattriCapture, NaiveHooks, vmap_gradients
from bench.featurize.workload import Sizes, Workload, projected, sketched
from bench.harness import Call, Effort, Goal, Ratio, Row, Timings, checked, interleave, relative_error
from bench.peers import AbsentPeerError
from journey import ops
from journey.projectors.random import CountSketch, Gaussian, Rademacher
from journey.projectors.scaled import Scaled

# Float32 forward and backward through dozens of layers; a parameter that is left out or wrong is off by far more.
# Bfloat16 keeps eight bits, of which the layers' rounding leaves fewer.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}

GOAL_NETWORK = "35.7M"  # whose cost in training steps has a goal, with four draws or more
GOAL_COST = {"cpu": 1.15, "cuda": 1.4}
GOAL_MEMORY = 0.2

_Run = Callable[[Row, Sizes, Context], list[Row] | None]

STEP = "a training step"
SCALED = "featurize, scaled (default)"
VMAP, HOOKS, DATTRI = "vmap(grad), unprojected", "naive hooks, unprojected", "dattri-llm capture, unprojected"


def cases(context: Context) -> Iterator[Case]:
    """Yield the cases: one draw beside whole per-sample gradients, several draws, and the dense projections."""
    if context.device.type == "cuda":
        yield _case(Sizes("35.7M", 32, 4), context, _several_draws)
        yield _case(Sizes("35.7M", 32, 4, torch.bfloat16), context, _several_draws)
        return
    if context.quick:
        yield _case(Sizes("35.7M", 1, 4), context, _several_draws)
        return
    yield _case(Sizes("4.4M", 8, 1), context, _one_draw)
    yield _case(Sizes("4.4M", 4, 4), context, _several_draws)
    yield _case(Sizes("35.7M", 2, 4), context, _several_draws)
    yield _case(Sizes("4.4M", 4, 4, torch.bfloat16), context, _several_draws)
    yield _case(Sizes("35.7M", 2, 4, torch.bfloat16), context, _several_draws)
    yield _case(Sizes("4.4M", 4, 4), context, partial(_dense, projector=Rademacher(PROJ_DIM)), " Rademacher")
    yield _case(Sizes("4.4M", 1, 4), context, partial(_dense, projector=Gaussian(PROJ_DIM)), " Gaussian")
    yield _case(Sizes("35.7M", 1, 4), context, partial(_dense, projector=Rademacher(PROJ_DIM)), " Rademacher")


def _case(sizes: Sizes, context: Context, run: _Run, kind: str = " count sketch") -> Case:
    return Case("featurize" + kind, str(sizes), lambda row: run(row, sizes, context))


def _one_draw(row: Row, sizes: Sizes, context: Context) -> list[Row]:
    work = Workload(sizes, context.device)
    projector = CountSketch(PROJ_DIM)
    featurizer = work.featurizer(projector)
    grads = work.expected_gradients(0)
    row.error = checked(
        relative_error(work.features(featurizer)[:1], sketched(grads, projector)), TOLERANCE[sizes.dtype]
    )

    vmapped = vmap_gradients(work.network, 1)
    engines = {HOOKS: NaiveHooks(work.network).gradients}
    try:
        engines[DATTRI] = DattriCapture(work.network).gradients
    except AbsentPeerError as error:
        row.note = str(error)
    calls: dict[str, Call] = {
        STEP: work.training_step,
        "featurize": lambda: work.features(featurizer),
        "forward": work.forward,
        "forward and input gradients": work.input_gradients,
        VMAP: lambda: vmapped(work.x_t, work.times, work.target),
    }
    errors = {VMAP: _peer_error(vmapped(work.x_t[:1], work.times[:1], work.target[:1]), grads)}
    for name, engine in engines.items():
        calls[name] = partial(engine, lambda: work.loss(work.x_t), len(work.x_t))
        errors[name] = _peer_error(engine(lambda: work.loss(work.x_t), len(work.x_t)), grads)
    timings = _interleave(calls, context, _effort(context))
    _fill(row, sizes, timings)
    row.ratios += [Ratio(name, timings.ratio(name, "featurize"), error=errors[name]) for name in errors]
    peers = [_beside(row, timings, name, error) for name, error in errors.items()]
    return [*peers, _breakdown(row, timings)]


def _several_draws(row: Row, sizes: Sizes, context: Context) -> list[Row]:
    work = Workload(sizes, context.device)
    projector = CountSketch(PROJ_DIM)
    featurizer = work.featurizer(projector)
    expected = sketched(work.expected_gradients(0), projector)
    row.error = checked(relative_error(work.features(featurizer)[:1], expected), TOLERANCE[sizes.dtype])
    calls: dict[str, Call] = {STEP: work.training_step, "featurize": lambda: work.features(featurizer)}
    if not context.quick:
        scaled = work.featurizer(Scaled(projector, dict.fromkeys(featurizer.engine.slots, 2.0)))
        calls[SCALED] = lambda: work.features(scaled)
    timings = _interleave(calls, context, _effort(context))
    _fill(row, sizes, timings)
    if sizes.network == GOAL_NETWORK:
        goal = GOAL_COST[context.device.type]
        row.goal = Goal("cost in training steps", "<=", goal, row.ratios[0].value.median)
    if context.quick:
        return []
    rows = [_beside(row, timings, SCALED), _memory_row(row, sizes, context)]
    if sizes.dtype != torch.float32:  # the published pipeline projects float32
        return rows
    work.network.zero_grad(set_to_none=True)
    try:
        peers = published.rows(sizes, context, work, featurizer)
    except AbsentPeerError as error:
        peers = [Row("  published pipeline", row.sizes, row.device, note=str(error))]
    return [*rows, *peers]


def _dense(row: Row, sizes: Sizes, context: Context, projector: Rademacher | Gaussian) -> None:
    work = Workload(sizes, context.device)
    featurizer = work.featurizer(projector)
    kind: ops.ProjectionKind = "rademacher" if isinstance(projector, Rademacher) else "normal"
    expected = projected(work.expected_gradients(0), kind, projector.seed)
    row.error = checked(relative_error(work.features(featurizer)[:1], expected), TOLERANCE[sizes.dtype])
    row.note = "error against the kernel's projection of float64 gradients"
    calls: dict[str, Call] = {STEP: work.training_step, "featurize": lambda: work.features(featurizer)}
    timings = interleave(calls, context.device, budget=10, rounds=(2, 5))
    _fill(row, sizes, timings)


def _effort(context: Context) -> Effort:
    # A round takes seconds: the fewest rounds decide.
    if context.quick:
        return Effort(0.0, (2, 2))
    return Effort(20.0, (8, 12))


def _interleave(calls: dict[str, Call], context: Context, effort: Effort) -> Timings:
    # Featurizing follows featurizing, and a training step a training step.
    return interleave(calls, context.device, budget=effort.budget, rounds=effort.rounds, in_series=True)


def _fill(row: Row, sizes: Sizes, timings: Timings) -> None:
    """Enter time, rate, and the cost in training steps of the same rows."""
    row.seconds, row.repetitions = timings.of("featurize"), timings.repetitions
    row.rate, row.rate_unit = sizes.num_samples / row.seconds.median, "samples/s"
    row.ratios.append(Ratio(STEP, timings.ratio("featurize", STEP), "cost"))


def _memory_row(row: Row, sizes: Sizes, context: Context) -> Row:
    """Compare the peak memory of featurizing with that of a training step, each in a process of its own."""
    training, ours = (
        peak_bytes(sizes, step, context.device, torch.get_num_threads()) for step in ("training", "featurize")
    )
    beyond = ours / training - 1
    note = f"{ours >> 20} MiB beyond network and batch, a training step {training >> 20} MiB"
    goal = Goal("share of a training step's that comes on top", "<=", GOAL_MEMORY, beyond)
    return Row("  peak memory", row.sizes, row.device, note=note, goal=goal)


def _beside(row: Row, timings: Timings, name: str, error: float | None = None) -> Row:
    ratio = Ratio(STEP, timings.ratio(name, STEP), "cost")
    seconds = timings.of(name)
    return Row(f"  {name}", row.sizes, row.device, seconds, timings.repetitions, ratios=[ratio], error=error)


def _breakdown(row: Row, timings: Timings) -> Row:
    """Say where the time goes, in shares of the training step's time."""
    forward, both, ours = (
        timings.ratio(name, STEP).median for name in ("forward", "forward and input gradients", "featurize")
    )
    note = (
        f"of a training step's time: forward {forward:.2f}, input gradients {both - forward:.2f}, "
        f"weight gradients and projection {ours - both:.2f} (weight gradients of the training step: {1 - both:.2f})"
    )
    seconds = timings.of(STEP)
    return Row("  training step, breakdown", row.sizes, row.device, seconds, timings.repetitions, note=note)


def _peer_error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Relative error of a peer's gradient of the first sample, over the parameters that it has."""
    ours = torch.cat([grad[0].flatten() for grad in found.values()])
    return relative_error(ours, torch.cat([expected[name].flatten() for name in found]))
