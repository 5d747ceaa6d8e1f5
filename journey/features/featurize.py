"""Features of a whole dataset, written to a store that survives any interruption."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from journey.data.ids import IdOf
from journey.data.items import raise_named
from journey.data.stream import Stream
from journey.errors import check_count
from journey.features.begin import begin_store, images_per_pass
from journey.features.choices import Choices
from journey.features.contents import failures, name_of
from journey.features.features import Features
from journey.features.fill import Reading, fill_store
from journey.features.fill_stream import fill_stream
from journey.features.filled import Told
from journey.features.fitted import Fit
from journey.features.measurer import Measurer
from journey.features.prepare import Prepared, default_shard_size, prepare
from journey.files.paths import GivenPath, Location, as_path
from journey.gradients.selection import Selection
from journey.measure.draws import Draws
from journey.measure.measurements import Measurement
from journey.models.checkpoints import Checkpoint
from journey.projectors.base import Projector
from journey.store.rows import RowFormat
from journey.store.store import FeatureStore


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
            of these at once than keep 4 GiB for the backward pass, be it a part of one image's; on CUDA 256 draws, and
            half of the free memory. ``"auto"`` measures
            small batches and takes the largest that fits ``memory``. Should memory run out all the same, batches are
            halved from there on, with a warning, and no finished row is lost. Changes features only by rounding; a
            store keeps the one that it was begun with.
        memory: Bytes that a batch may take besides the model, with ``batch_size="auto"``; half of what is free by
            default.
        row: How a feature is kept: ``"int8"`` and ``"int4"`` with a scale per image, ``"float16"`` or ``"float32"``.
        shard_size: Images per file, which is what a process has in hand; by default a 128th of those that are new, at
            least 16 and at most 4,096, of a stream 256; rounded up to whole batches.
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
        The stored features, ready for ``journey.score``: of all images of the store, which may have had some before.

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
    choices = Choices(
        fit=fit,
        measurement=measurement,
        draws=draws,
        projector=projector,
        checkpoints=checkpoints,
        select=select,
        uncovered=uncovered,
        batch_size=batch_size,
        memory=memory,
        row=row,
        shard_size=shard_size,
        id_of=id_of,
        workers=workers,
        on_error=on_error,
    )
    folder = _folder(out, fit)
    check_count("world_size", world_size)
    check_count("rank", rank, least=0)
    if rank >= world_size:
        raise ValueError(f"rank must be in [0, world_size), got rank {rank} with world_size {world_size}")
    given = prepare(model, dataset, choices, out=folder)
    features = begin_store(given, folder, progress=progress)
    source, ids, store = given.source, given.ids, features.store
    measurer = Measurer(features.featurizer, features.draws, features.checkpoints, images_per_pass(features), check)
    if isinstance(source, Stream):
        size = shard_size or default_shard_size(None, measurer.images_per_batch)
        part = source.split(rank, world_size)
        fill_stream(store, measurer, part, shard_size=size, workers=workers, on_error=on_error, progress=progress)
        if world_size == 1 and not store.shards():
            raise ValueError("dataset must hold at least one image, got a stream without any")
    else:
        lost = _still_lost(store, given)
        size = shard_size or default_shard_size(len(ids), measurer.images_per_batch)
        store.plan([i for i in ids if i not in lost], size)
        reading = Reading(source, {i: position for position, i in enumerate(ids)}, workers, on_error)
        fill_store(store, measurer, reading, rank=rank, world_size=world_size, progress=progress)
    return features


def _still_lost(store: FeatureStore, given: Prepared) -> set[int | str]:
    """The images that an earlier call left out, and that cannot be read now either: they are not planned again."""
    assert not isinstance(given.source, Stream)
    skipped = store.skipped_ids()
    positions = {at: i for at, i in enumerate(given.ids) if i in skipped}
    failed = failures(given.source, positions, given.featurizer.denoiser)
    if failed and given.choices.on_error == "error":
        at, error = next(iter(failed.items()))
        raise_named(error, name_of(positions[at], at))
    told = Told(skipped={positions[at]: f"{type(error).__name__}: {error}" for at, error in failed.items()})
    told.warn(stacklevel=3)  # the caller of journey.featurize
    return set(told.skipped)


def _folder(out: GivenPath, fit: Fit | GivenPath | None) -> Location:
    """Where the store lies; on an object store nobody can wait for the one who makes the fit."""
    folder = as_path(out)
    if fit is None and not isinstance(folder, Path):
        raise ValueError(
            f"fit must be given where out is on an object store, got fit=None with out {folder}; run journey.fit first "
            "and give what it returns, or its folder, to every process"
        )
    return folder
