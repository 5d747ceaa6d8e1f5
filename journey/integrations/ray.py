"""Featurizing with Ray Data, and scoring with Ray: the work of many machines.

Ray schedules, restarts and scales; rows are made by ``journey.features.worker`` and written to the store by the actors
themselves, one file per block. An actor or a machine that dies costs its blocks, which Ray hands out again. A run that
was stopped continues with the images that the store does not have. The strongest scores are found in slices of the
store, and merged.

Needs ``pip install "journey-attribution[ray]"``.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib import import_module
from typing import Any

from torch import Tensor
from tqdm.auto import tqdm

from journey.data.ids import ids_of
from journey.data.picture import Form
from journey.data.stream import Stream
from journey.errors import IncompleteStoreError, check_count
from journey.features.begin import begin_store, images_per_pass
from journey.features.choices import Choices
from journey.features.features import Features, Slice
from journey.features.fit import IMAGES, as_dataset
from journey.features.prepare import prepare
from journey.features.row_plan import RowPlan
from journey.features.worker import StoreWorker, Worker, as_item
from journey.files.paths import GivenPath
from journey.generation.trajectory import Trajectory
from journey.measure.draws import DEFAULT_DRAWS, Draws
from journey.models.load import as_denoiser
from journey.scores.columns import Gains, strongest
from journey.scores.score import score as scores_of
from journey.scores.scores import Scores
from journey.scores.top import TopCollector, TopScores

_NOT_HERE = ("batch_size", "memory", "workers", "on_error")


def featurize(
    model: str | os.PathLike[str] | Callable[[], Any],
    dataset: Any,
    out: GivenPath,
    *,
    shard_size: int = 256,
    actors: int | tuple[int, int] = 1,
    num_gpus: float = 0,
    num_cpus: float = 1,
    progress: bool = True,
    **choices: Any,
) -> Features:
    """Measure the images of a dataset on a Ray cluster, see ``journey.featurize``.

    Joins the cluster that ``ray.init`` or ``RAY_ADDRESS`` names, or starts one on this machine.

    Args:
        model: The path or repo id of a saved pipeline, which every machine can read, or a function without arguments
            that returns a model.
        dataset: A ``ray.data.Dataset`` with a column ``id`` and one of images (see ``Worker``); or a dataset as for
            ``journey.featurize``, map-style, which every machine can read.
        out: Folder of the store, which every machine can write to.
        shard_size: Images per block and file.
        actors: Processes that measure, or the fewest and the most, between which Ray scales.
        num_gpus: GPUs of each; a fraction shares one.
        num_cpus: Cores of each.
        progress: Show a progress bar.
        **choices: Those of ``journey.featurize``: ``fit``, where every machine can read it, by default made by this
            process in ``out/fit``; ``measurement``, ``draws``, ``projector``, ``checkpoints``, ``select``,
            ``uncovered``, ``row``; and ``id_of``, instead of which the column of a ``ray.data.Dataset`` is renamed.

    Returns:
        The stored features, ready for ``journey.score``.

    Raises:
        ImportError: If Ray is not installed.
        TypeError: If the dataset is a stream, or the model cannot be sent to another process.
        ValueError: As ``journey.featurize``, or if a cluster that is started here has too few GPUs.
        StoreMismatchError: Likewise.
        IncompleteStoreError: If the store has shards that ``journey.featurize`` planned and did not finish.
    """
    chosen, pool = _choices(choices, shard_size), _check_actors(actors)
    ray = _start(num_gpus)
    denoiser = as_denoiser(model() if callable(model) else model)
    tabular = isinstance(dataset, ray.data.Dataset)
    if tabular and chosen.id_of is not None:
        raise ValueError("id_of must be None for a ray.data.Dataset; rename its column to id")
    source = dataset if tabular else as_dataset(dataset, denoiser, chosen.id_of)
    if isinstance(source, Stream):
        raise TypeError("dataset must be map-style or a ray.data.Dataset, which reads streams, got a stream")
    if tabular:
        form = Form(denoiser.sample_size, denoiser.in_channels or 3)
        some = dataset.take(IMAGES if chosen.fit is None else 1)
        source = [as_item(row, form, f"image {row.get('id')!r}") for row in some]
    if tabular or num_gpus:
        chosen = replace(chosen, batch_size=_images_per_pass(out, chosen.draws, "cuda" if num_gpus else "cpu"))
    given = prepare(denoiser, source, replace(chosen, id_of=None), out=out)
    features = begin_store(given, out, look=not tabular, progress=progress)
    worker = Worker(model, features.fit.path, **chosen.of_worker(), images_per_pass=images_per_pass(features))
    blocks = dataset
    if missing := features.store.missing(features.store.manifest.checkpoints[0]):
        raise IncompleteStoreError(
            f"{features.store.path} misses {len(missing)} shards that journey.featurize planned, such as {missing[0]}: "
            "run it again with the same arguments, it measures those alone"
        )
    if not tabular:
        known = features.store.planned_ids()
        absent = [{"id": i, "position": at} for at, i in enumerate(ids_of(source)) if i not in known]
        if not absent:
            return features
        blocks = ray.data.from_items(absent)
    of_store = StoreWorker(worker, features.store.path, None if tabular else source)
    _send(ray, of_store, num_gpus=num_gpus, num_cpus=num_cpus)
    done = blocks.map_batches(
        _Actor,
        fn_constructor_args=(of_store,),
        batch_size=shard_size,
        compute=ray.data.ActorPoolStrategy(min_size=pool[0], max_size=pool[1]),
        num_gpus=num_gpus,
        num_cpus=num_cpus,
    )
    with tqdm(unit="sample", desc="featurize", disable=not progress, dynamic_ncols=True) as bar:
        for batch in done.iter_batches(batch_size=None):
            bar.update(len(batch["id"]))
    return features


def score(
    features: Features,
    trajectory: Trajectory | None = None,
    *,
    top: int,
    tasks: int = 8,
    candidates: Iterable[int | str] | None = None,
    num_cpus: float = 1,
    **options: Any,
) -> TopScores:
    """Find the strongest scores on a Ray cluster, see ``journey.score``.

    The queries are measured and solved here; each task reads its slice of the rows, and what they find is merged.

    Args:
        features: The training images, in a store that every machine can read.
        trajectory: As for ``journey.score``.
        top: Likewise.
        tasks: How many slices, at most; Ray runs them where cores are free.
        candidates: Likewise.
        num_cpus: Cores of each task.
        **options: Further ones of ``journey.score``.

    Returns:
        What ``journey.score`` of the same arguments returns.

    Raises:
        ImportError: If Ray is not installed.
        ValueError: As ``journey.score``, or if ``tasks`` is no positive integer.
    """
    ray = _import_ray()
    check_count("tasks", tasks)
    TopCollector(top)  # refuses a number that is none
    if candidates is not None:
        features = features.select(candidates)
    few = scores_of(features.select(features.ids[:1]), trajectory, **options)
    num_train_timesteps = features.featurizer.denoiser.num_train_timesteps
    shared = ray.put((few, features.draws.weights(num_train_timesteps, few.train_interval), top))
    find = ray.remote(num_cpus=num_cpus)(_strongest)
    return TopScores.merge(ray.get([find.remote(part, shared) for part in features.slices(tasks)]))


def _strongest(part: Slice, shared: tuple[Scores, Tensor, int]) -> TopScores:
    """The strongest scores of a slice for the queries that were solved for some scores."""
    few, weights, top = shared
    assert few.solutions is not None
    gains = None if few.errors is None else Gains(few.errors.row_gain, few.errors.query_gain)
    settings = {name: getattr(few, name) for name in ("timesteps", "damping", "interval", "train_interval", "region")}
    return strongest(part, list(few.solutions), weights, gains, TopCollector(top), settings)


def _send(ray: Any, worker: StoreWorker, **needed: float) -> None:
    """Send the worker once before the work begins: an actor that cannot take it would be started again without end."""
    arrive = ray.remote(max_retries=0, **needed)(lambda _: None)
    try:
        ray.get(arrive.remote(worker))
    except (ray.exceptions.RayError, TypeError, ImportError, AttributeError) as error:
        raise TypeError(
            "model and dataset must be made of what every machine of the cluster can import and unpickle, such as the "
            f"path of a model, or a function of an installed module: {error}"
        ) from error


def _choices(given: dict[str, Any], shard_size: int) -> Choices:
    """Those of the caller, without any that mean nothing here."""
    chosen = Choices(**given, shard_size=shard_size)
    wrong = [name for name in chosen.changed() if name in _NOT_HERE]
    if wrong:
        raise ValueError(f"{', '.join(wrong)} cannot be chosen on Ray, where actors read what they measure")
    return chosen


def _images_per_pass(out: GivenPath, draws: Draws | None, device: str) -> int:
    """Images that are measured at once where this process cannot tell: as the store has it, if there is one."""
    draws = DEFAULT_DRAWS if draws is None else draws
    stored = RowPlan.stored(out, draws.bins * draws.num_draws)
    return (stored or RowPlan.of(draws, device)).images_per_batch


class _Actor:
    """One process of the pool."""

    def __init__(self, worker: StoreWorker) -> None:
        self._worker = worker

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return self._worker(batch)


def _check_actors(actors: Any) -> tuple[int, int]:
    """The fewest and the most."""
    pair = (actors, actors) if isinstance(actors, int) else actors
    whole = isinstance(pair, tuple | list) and len(pair) == 2 and all(type(number) is int for number in pair)
    if not whole or not 1 <= pair[0] <= pair[1]:
        raise ValueError(f"actors must be a positive integer, or the fewest and the most, got {actors!r}")
    return pair[0], pair[1]


def _start(num_gpus: float) -> Any:
    """Ray, with a cluster; one that is started here has what this machine has, for which nobody need wait."""
    ray = _import_ray()
    joined = ray.is_initialized() or "RAY_ADDRESS" in os.environ
    if not ray.is_initialized():
        ray.init()
    there = ray.cluster_resources().get("GPU", 0)
    if num_gpus > there:
        text = f"num_gpus must be at most the {there:g} that the cluster has, got {num_gpus:g}"
        if not joined:
            raise ValueError(text)
        warnings.warn(f"{text}: nothing begins before more have joined", stacklevel=3)
    return ray


def _import_ray() -> Any:
    try:
        ray = import_module("ray")
        import_module("ray.data")
    except ImportError as error:
        raise ImportError(
            f'featurizing with Ray needs the extra ray, pip install "journey-attribution[ray]": {error}'
        ) from error
    return ray
