"""Features of a whole dataset, written to a store that survives any interruption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from journey import ops
from journey.data.ids import IdOf, ids_of
from journey.data.items import Dataset
from journey.data.stream import Stream
from journey.errors import StoreMismatchError
from journey.features.contents import check_images
from journey.features.features import Features
from journey.features.fill import Reading, fill_store
from journey.features.fill_stream import fill_stream, first_items
from journey.features.fit import IMAGES, as_dataset, as_featurizer, fit_featurizer
from journey.features.fitted import Fit, use_fit
from journey.features.identity import check_choices, fingerprint_model
from journey.features.measurer import Measurer
from journey.features.row_plan import RowPlan
from journey.files.paths import GivenPath, Location, as_path
from journey.gradients.selection import Selection
from journey.measure.draws import DEFAULT_DRAWS, Draws
from journey.measure.measurements import Measurement
from journey.models.checkpoints import Checkpoint, as_checkpoints
from journey.models.load import as_denoiser
from journey.projectors.base import Projector
from journey.store.manifest import Manifest, check_free, stored_manifest
from journey.store.rows import RowFormat, check_row_format
from journey.store.store import FeatureStore

# Where a store keeps the fit that it makes itself.
FIT_FOLDER = "fit"
# Shards that new images are dealt out in, about, and how many images each has.
_SHARDS, _SMALLEST, _LARGEST, _OF_STREAM = 128, 16, 1024, 256


def featurize(
    model: Any,
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
    batch_size: int | Literal["auto"] | None = None,
    memory: int | None = None,
    row: RowFormat = "int8",
    shard_size: int | None = None,
    id_of: IdOf | None = None,
    workers: int = 0,
    on_error: Literal["error", "skip"] = "error",
    rank: int = 0,
    world_size: int = 1,
    check: bool = True,
    progress: bool = True,
) -> Features:
    """Measure every image of a dataset and store its projected gradient.

    Runs on the device of the model. The frozen parts of a model (VAE, text encoders) run once per image, and once more
    for those that are fitted to. Finished shards are kept: the same call after an interruption continues, and gives the
    same bytes as an uninterrupted one. Images that the store does not have yet are added to it; no row that is there
    changes. Any number of processes may share the work, and may come and go: each takes shards that no other has in
    hand, and there is nothing to merge; of a fit, one makes it and the others wait.

    Args:
        model: A diffusers pipeline, a pair ``(network, scheduler)``, a ``Denoiser``, or the path or repo id of a saved
            pipeline, see ``journey.models.load.as_denoiser``. In eval mode.
        dataset: A map-style dataset of images (see ``journey.data.items.get_image``), a folder of images, or another of
            the forms that ``journey.data.sources.open_dataset`` takes; streams are measured as they come. The id of an
            image is the one that it has (see ``journey.data.ids.ids_of``), of a folder its path there, else its
            index; draws are keyed by it. For models that read text or classes, items also have captions or a label (see
            ``journey.data.items.captions_of``, ``label_of``); of several captions each draw takes one.
        out: Folder of the store, or its address on an object store, such as ``s3://bucket/features``.
        fit: What ``journey.fit`` learned, or its folder. By default it is made of these images and kept in
            ``out/fit``; on an object store it must be given.
        measurement: What is differentiated. ``LeftOutLoss()`` by default: the training loss with the residual that an
            image leaves when it is left out, which needs the mean and variance of the images. ``TrainingLoss()`` is
            the published one.
        draws: Timesteps and noise; ``StratifiedDraws(20)`` by default, an antithetic pair in each tenth of the range.
            ``StratifiedDraws(2, bins=10)`` keeps a feature for each tenth, which ``train_interval`` and
            ``influence_matrix`` need.
        projector: Maps gradients to features. By default ``Scaled(CountSketch(4096))``: one scale per parameter, then
            a count sketch.
        checkpoints: Weights to measure under, see ``journey.models.checkpoints.loaded``; the model's own by default.
        select: Which trainable parameters to measure, see ``journey.Featurizer``; all by default.
        uncovered: What to do about parameters without a gradient rule: ``"error"`` or ``"autograd"`` (slow).
        batch_size: Images whose draws go through the network at once. By default as many as make 64 draws, and no more
            of these at once than keep 4 GiB for the backward pass, be it a part of one image's. ``"auto"`` measures
            small batches and takes the largest that fits ``memory``. Should memory run out all the same, batches are
            halved from there on, with a warning, and no finished row is lost. Changes features only by rounding; a
            store keeps the one that it was begun with.
        memory: Bytes that a batch may take besides the model, with ``batch_size="auto"``; half of what is free by
            default.
        row: How a feature is kept: ``"int8"`` and ``"int4"`` with a scale per image, ``"float16"`` or ``"float32"``.
        shard_size: Images per file, which is what a process has in hand; by default a 128th of those that are new, at
            least 16 and at most 1,024, of a stream 256; rounded up to whole batches.
        id_of: The key of an item's id, or a function of an item, instead of those that are looked for.
        workers: Processes that read and decode images ahead of the network; 0 reads them in this one.
        on_error: What becomes of an image that cannot be read or does not fit the model: ``"error"`` raises, naming
            it; ``"skip"`` leaves it out, with a warning at the end, and the next call tries it again.
        rank: Which of the processes this one is: it begins with its share of the shards. On a file system without
            locks, or an object store, it measures that share alone. Of a stream it reads its part (``Stream.split``).
        world_size: How many processes share the work.
        check: Compare the first batch with autograd, which costs two training steps.
        progress: Show a progress bar with samples per second and the time left.

    Returns:
        The stored features, ready for ``journey.score``.

    Raises:
        ValueError: If the dataset is empty, an image does not fit the model or is not finite, the model is in train
            mode, or an argument is out of range.
        TypeError: If the model or an image has an unknown form.
        CoverageError: If a parameter has no gradient rule; names it.
        NonFiniteGradientError: If a gradient is NaN or infinite; names the images, a timestep and a layer.
        StoreMismatchError: If ``out`` holds the features of a different run, or other images under the same ids, or
            ``fit`` is of another model; names what differs.
        OSError: If ``out`` cannot be written to.

    Example:
        >>> features = journey.featurize((unet, scheduler), dataset, "features/")
    """
    folder = _folder(out, fit)
    denoiser = as_denoiser(model)
    source = as_dataset(dataset, denoiser, id_of)
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be in [0, world_size), got rank {rank} with world_size {world_size}")
    if shard_size is not None and shard_size < 1:
        raise ValueError(f"shard_size must be positive, got {shard_size}")
    if on_error not in ("error", "skip"):
        raise ValueError(f'on_error must be "error" or "skip", got {on_error!r}')
    check_row_format(row)
    draws = DEFAULT_DRAWS if draws is None else draws
    check_choices(draws=draws)
    stream, ids = isinstance(source, Stream), [] if isinstance(source, Stream) else ids_of(source)
    # Before there is a store: refuses a schedule with fewer timesteps than bins, and ids that are no positions.
    draws.timesteps(ids[:1] or [0], denoiser.num_train_timesteps)
    sample = _sample(source, fit is None or batch_size == "auto")
    weights = as_checkpoints(checkpoints)
    featurizer = as_featurizer(denoiser, measurement, projector, select, uncovered)
    plan = RowPlan.choose(featurizer, sample, draws, batch_size=batch_size, memory=memory, out=folder)
    told = fingerprint_model(featurizer, weights)
    manifest = Manifest(
        bins=draws.bins,
        proj_dim=featurizer.features_dim,
        row=row,
        checkpoints=[str(i) for i in range(len(weights))],
        library_version=ops.build_info()["version"],
        fingerprints={**told, "draws": draws.fingerprint(), "batch_size": plan.batch_size},
    )
    check_free(folder, [FIT_FOLDER])
    begun = None
    if (stored := stored_manifest(folder)) is not None:
        # Another run is refused before anything is fitted.
        begun, _ = _open(folder, _with(manifest, fit=stored.fingerprints.get("fit")), plan, batch_size)
    if not stream:
        check_images(begun, sample, ids, denoiser)
    if fit is None:
        fitted = fit_featurizer(featurizer, sample, folder / FIT_FOLDER, weights, told, progress=progress)
    else:
        fitted = use_fit(fit, featurizer, told)
    store, plan = _open(folder, _with(manifest, fit=fitted.fingerprint), plan, batch_size)
    if batch_size == "auto":
        featurizer.rows_per_pass = plan.rows
    measurer = Measurer(featurizer, draws, weights, plan.images_per_batch, check)
    if shard_size is None:
        shard_size = _OF_STREAM if stream else max(_SMALLEST, min(_LARGEST, len(ids) // _SHARDS))
        shard_size = -(-shard_size // measurer.images_per_batch) * measurer.images_per_batch
    if isinstance(source, Stream):
        part = source.split(rank, world_size)
        fill_stream(store, measurer, part, shard_size=shard_size, workers=workers, on_error=on_error, progress=progress)
    else:
        store.plan(ids, shard_size)
        reading = Reading(source, {i: position for position, i in enumerate(ids)}, workers, on_error)
        fill_store(store, measurer, reading, rank=rank, world_size=world_size, progress=progress)
    return Features(store, featurizer, draws, weights, fitted)


def _folder(out: GivenPath, fit: Fit | GivenPath | None) -> Location:
    """Where the store lies; on an object store nobody can wait for the one who makes the fit."""
    folder = as_path(out)
    if fit is None and not isinstance(folder, Path):
        raise ValueError(
            f"fit must be given where out is on an object store, got fit=None with out {folder}; run journey.fit first "
            "and give what it returns, or its folder, to every process"
        )
    return folder


def _sample(source: Dataset | Stream, needed: bool) -> Dataset:
    """What is looked at before anything is measured: the dataset, or the first images of a stream."""
    if not isinstance(source, Stream):
        return source
    if not needed:
        return []
    if source.once:
        raise ValueError(
            "dataset is an iterator, which can be read only once, and what is learned first needs its images, too: "
            'give an object whose iter() begins anew, or fit= and no batch_size="auto"'
        )
    return first_items(source, IMAGES)


def _open(
    out: Location, manifest: Manifest, plan: RowPlan, batch_size: int | Literal["auto"] | None
) -> tuple[FeatureStore, RowPlan]:
    """Create or resume the store; with ``"auto"`` the rows of whoever was first count."""
    try:
        return FeatureStore.create_or_resume(out, manifest, beside=[FIT_FOLDER]), plan
    except StoreMismatchError:
        stored = RowPlan.stored(out, plan.draws_per_image)
        if batch_size != "auto" or stored in (None, plan):
            raise
    # Another process of this run measured at the same time, and was first.
    return FeatureStore.create_or_resume(out, _with(manifest, batch_size=stored.batch_size)), stored


def _with(manifest: Manifest, **fingerprints: Any) -> Manifest:
    return replace(manifest, fingerprints={**manifest.fingerprints, **fingerprints})
