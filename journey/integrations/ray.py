"""Featurizing with Ray Data: an actor pool that measures blocks of images, on any number of machines.

Ray schedules, restarts and scales; rows are made by ``journey.features.worker`` and written to the store by the actors
themselves, one file per block. An actor or a machine that dies costs its blocks, which Ray hands out again. A run that
was stopped continues with the images that the store does not have.

Needs ``pip install "journey-attribution[ray]"``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, Literal

from tqdm.auto import tqdm

from journey.data.ids import IdOf, ids_of
from journey.data.picture import Form
from journey.data.stream import Stream
from journey.features.begin import begin_store, images_per_pass
from journey.features.features import Features
from journey.features.fit import IMAGES, as_dataset
from journey.features.fitted import Fit
from journey.features.prepare import prepare
from journey.features.row_plan import RowPlan
from journey.features.worker import StoreWorker, Worker, as_item
from journey.files.paths import GivenPath
from journey.gradients.selection import Selection
from journey.measure.draws import DEFAULT_DRAWS, Draws
from journey.measure.measurements import Measurement
from journey.models.checkpoints import Checkpoint
from journey.models.load import as_denoiser
from journey.projectors.base import Projector
from journey.store.rows import RowFormat


def featurize(
    model: str | os.PathLike[str] | Callable[[], Any],
    dataset: Any,
    out: GivenPath,
    *,
    fit: Fit | GivenPath | None = None,
    measurement: Measurement | None = None,
    draws: Draws | None = None,
    projector: Projector | None = None,
    checkpoints: Sequence[Checkpoint] | None = None,
    select: Selection | None = None,
    uncovered: Literal["error", "autograd"] = "error",
    row: RowFormat = "int8",
    id_of: IdOf | None = None,
    shard_size: int = 256,
    actors: int | tuple[int, int] = 1,
    num_gpus: float = 0,
    num_cpus: float = 1,
    progress: bool = True,
) -> Features:
    """Measure the images of a dataset on a Ray cluster, see ``journey.featurize``.

    Joins the cluster that ``ray.init`` or ``RAY_ADDRESS`` names, or starts one on this machine.

    Args:
        model: The path or repo id of a saved pipeline, which every machine can read, or a function without arguments
            that returns a model.
        dataset: A ``ray.data.Dataset`` with a column ``id`` and one of images (see ``Worker``); or a dataset as for
            ``journey.featurize``, map-style, which every machine can read.
        out: Folder of the store, which every machine can write to.
        fit: As for ``journey.featurize``, where every machine can read it; by default made by this process in
            ``out/fit``.
        measurement: As for ``journey.featurize``.
        draws: Likewise.
        projector: Likewise.
        checkpoints: Likewise.
        select: Likewise.
        uncovered: Likewise.
        row: Likewise.
        id_of: Likewise; of a ``ray.data.Dataset`` rename the column instead.
        shard_size: Images per block and file.
        actors: Processes that measure, or the fewest and the most, between which Ray scales.
        num_gpus: GPUs of each; a fraction shares one.
        num_cpus: Cores of each.
        progress: Show a progress bar.

    Returns:
        The stored features, ready for ``journey.score``.

    Raises:
        ImportError: If Ray is not installed.
        TypeError: If the dataset is a stream, or the model cannot be sent to another process.
        ValueError: As ``journey.featurize``.
        StoreMismatchError: Likewise.
    """
    ray = _import_ray()
    denoiser = as_denoiser(model() if callable(model) else model)
    tabular = isinstance(dataset, ray.data.Dataset)
    if tabular and id_of is not None:
        raise ValueError("id_of must be None for a ray.data.Dataset; rename its column to id")
    source = dataset if tabular else as_dataset(dataset, denoiser, id_of)
    if isinstance(source, Stream):
        raise TypeError("dataset must be map-style or a ray.data.Dataset, which reads streams, got a stream")
    if tabular:
        form = Form(denoiser.sample_size, denoiser.in_channels or 3)
        some = dataset.take(IMAGES if fit is None else 1)
        source = [as_item(row, form, f"image {row.get('id')!r}") for row in some]
    given = prepare(
        denoiser,
        source,
        out=out,
        fit=fit,
        measurement=measurement,
        draws=draws,
        projector=projector,
        checkpoints=checkpoints,
        select=select,
        uncovered=uncovered,
        batch_size=_images_per_pass(out, draws) if tabular else None,
        memory=None,
        row=row,
        shard_size=shard_size,
        id_of=None,
        on_error="error",
    )
    features = begin_store(given, out, fit=fit, look=not tabular, progress=progress)
    worker = Worker(
        model,
        features.fit.path,
        measurement,
        draws,
        projector,
        checkpoints,
        select,
        uncovered,
        row,
        images_per_pass(features),
    )
    blocks = dataset
    if not tabular:
        known = features.store.planned_ids()
        absent = [{"id": i, "position": at} for at, i in enumerate(ids_of(source)) if i not in known]
        if not absent:
            return features
        blocks = ray.data.from_items(absent)
    done = blocks.map_batches(
        _Actor,
        fn_constructor_args=(StoreWorker(worker, features.store.path, None if tabular else source),),
        batch_size=shard_size,
        compute=_pool(ray, actors),
        num_gpus=num_gpus,
        num_cpus=num_cpus,
    )
    with tqdm(unit="sample", desc="featurize", disable=not progress, dynamic_ncols=True) as bar:
        for batch in done.iter_batches(batch_size=None):
            bar.update(len(batch["id"]))
    return features


def _images_per_pass(out: GivenPath, draws: Draws | None) -> int:
    """Images that are measured at once of a table, whose length is not known: as the store has it, if there is one."""
    draws = DEFAULT_DRAWS if draws is None else draws
    stored = RowPlan.stored(out, draws.bins * draws.num_draws)
    return (stored or RowPlan.of(draws)).images_per_batch


class _Actor:
    """One process of the pool."""

    def __init__(self, worker: StoreWorker) -> None:
        self._worker = worker

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return self._worker(batch)


def _pool(ray: Any, actors: int | tuple[int, int]) -> Any:
    smallest, largest = (actors, actors) if isinstance(actors, int) else actors
    if not 1 <= smallest <= largest:
        raise ValueError(f"actors must be a positive number, or the fewest and the most, got {actors}")
    return ray.data.ActorPoolStrategy(min_size=smallest, max_size=largest)


def _import_ray() -> Any:
    try:
        ray = import_module("ray")
        import_module("ray.data")
    except ImportError as error:
        raise ImportError(
            f'featurizing with Ray needs the extra ray, pip install "journey-attribution[ray]": {error}'
        ) from error
    return ray
