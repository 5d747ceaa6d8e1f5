"""Features of a whole dataset, written to a store that survives any interruption."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from journey import ops
from journey.curvature.whitened import Whitened
from journey.data.folder import ImageFolder
from journey.data.items import Dataset, check_dataset
from journey.errors import StoreMismatchError
from journey.features.features import Features
from journey.features.fill import fill_store
from journey.features.fits import fit_to_store, use_store_fits
from journey.features.identity import check_choices, fingerprint_dataset, fingerprints
from journey.features.row_plan import RowPlan
from journey.gradients.selection import Selection
from journey.measure.draws import DEFAULT_DRAWS, Draws
from journey.measure.featurizer import Featurizer
from journey.measure.left_out import LeftOutLoss
from journey.measure.measurements import Measurement, TrainingLoss
from journey.models.checkpoints import Checkpoint, as_checkpoints
from journey.models.encoding import EncodedDataset
from journey.models.load import as_denoiser
from journey.projectors.base import Projector
from journey.store.manifest import Manifest
from journey.store.store import FeatureStore


def featurize(
    model: Any,
    dataset: Dataset | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    measurement: Measurement | None = None,
    draws: Draws | None = None,
    projector: Projector | None = None,
    checkpoints: Sequence[Checkpoint] | None = None,
    select: Selection | None = None,
    uncovered: Literal["error", "autograd"] = "error",
    batch_size: int | Literal["auto"] | None = None,
    memory: int | None = None,
    shard_size: int = 256,
    rank: int = 0,
    world_size: int = 1,
    check: bool = True,
    progress: bool = True,
) -> Features:
    """Measure every image of a dataset and store its projected gradients.

    Runs on the device of the model. The frozen parts of a model (VAE, text encoders) run once per image; what they give
    is kept in ``out/encoded`` for all draws, bins and checkpoints. Finished shards are kept: the same call after an
    interruption continues, and gives the same bytes as an uninterrupted one. Several processes may share the work: each
    takes every ``world_size``-th shard, and there is nothing to merge. (Whitening is fitted by each of them that starts
    before the first is done with it; all use what the first one keeps.)

    Args:
        model: A diffusers pipeline, a pair ``(network, scheduler)``, a ``Denoiser``, or the path or repo id of a saved
            pipeline, see ``journey.models.load.as_denoiser``. In eval mode.
        dataset: A map-style dataset of images (see ``journey.data.items.get_image``) or a folder of images. The id of
            an image is its index. For models that read text or classes, items also have captions or a label (see
            ``journey.data.items.captions_of``, ``label_of``); of several captions each draw takes one.
        out: Folder of the store.
        measurement: What is differentiated. By default, if the projector is ``Whitened``, ``LeftOutLoss()``: the
            training loss with the residual that an image leaves when it is left out. It needs the mean of the images,
            which is taken from up to 512 of them and kept in ``out/prior.safetensors``. With any other projector
            ``TrainingLoss()``, as published.
        draws: Timesteps and noise; ``StratifiedDraws(num_draws=2, bins=10)`` by default. One bin takes a tenth
            of the storage and gives scores that agree less with retraining (docs/results/choices.md).
        projector: Maps gradients to features. By default ``Whitened(CountSketch(4096))``: gradients are divided by the
            root of the curvature of the training loss, which is fitted to up to 512 of the images before anything else
            and kept in ``out/curvature.safetensors``. ``CountSketch(4096)`` alone leaves gradients plain: it costs less
            and gives scores that agree less with retraining (docs/results/choices.md).
        checkpoints: Weights to measure under, see ``journey.models.checkpoints.loaded``; the model's own by default.
        select: Which trainable parameters to measure, see ``journey.Featurizer``; all by default.
        uncovered: What to do about parameters without a gradient rule: ``"error"`` or ``"autograd"`` (slow).
        batch_size: Images whose draws go through the network at once. By default as many as make 64 draws, and no more
            of these at once than keep 4 GiB for the backward pass, be it a part of one image's. ``"auto"`` measures
            small batches and takes the largest that fits ``memory``. Should memory run out all the same, batches are
            halved from there on, with a warning, and no finished row is lost. Changes features only by rounding.
        memory: Bytes that a batch may take besides the model, with ``batch_size="auto"``; half of what is free by
            default.
        shard_size: Images per file.
        rank: Which of the processes this one is.
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
        StoreMismatchError: If ``out`` holds the features of a different run; names what differs.
        OSError: If ``out`` cannot be written to.

    Example:
        >>> features = journey.featurize((unet, scheduler), dataset, "features/")
    """
    denoiser = as_denoiser(model)
    if isinstance(dataset, str | os.PathLike):
        dataset = ImageFolder(dataset, size=denoiser.sample_size, channels=denoiser.in_channels or 3)
    check_dataset(dataset)
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be in [0, world_size), got rank {rank} with world_size {world_size}")
    draws = DEFAULT_DRAWS if draws is None else draws
    projector = Whitened() if projector is None else projector
    if measurement is None:
        measurement = LeftOutLoss() if isinstance(projector, Whitened) else TrainingLoss()
    check_choices(measurement, draws, projector)
    # Before there is a store: refuses a schedule with fewer timesteps than bins.
    draws.timesteps([0], denoiser.num_train_timesteps)
    weights = as_checkpoints(checkpoints)
    featurizer = Featurizer(denoiser, measurement=measurement, projector=projector, select=select, uncovered=uncovered)
    plan = RowPlan.choose(
        featurizer, dataset, draws, batch_size=batch_size, memory=memory, out=out, shard_size=shard_size
    )
    manifest = Manifest(
        num_samples=len(dataset),
        shard_size=shard_size,
        bins=draws.bins,
        proj_dim=featurizer.features_dim,
        checkpoints=[str(i) for i in range(len(weights))],
        library_version=ops.build_info()["version"],
        fingerprints={
            **fingerprints(featurizer, draws, weights),
            "dataset": fingerprint_dataset(dataset, denoiser),
            "batch_size": plan.batch_size,
        },
    )
    try:
        store = FeatureStore.create_or_resume(out, manifest)
    except StoreMismatchError:
        stored = RowPlan.stored(out, plan.draws_per_image)
        if batch_size != "auto" or stored in (None, plan):
            raise
        plan = stored  # another process of this run measured at the same time, and was first
        featurizer.rows_per_pass = plan.rows
        own = {**manifest.fingerprints, "batch_size": plan.batch_size}
        store = FeatureStore.create_or_resume(out, replace(manifest, fingerprints=own))
    features = Features(store, featurizer, draws, weights)
    owner = {name: manifest.fingerprints[name] for name in ("dataset", "encoding") if name in manifest.fingerprints}
    encoded = EncodedDataset(dataset, denoiser, features.store.path / "encoded", owner)
    if not use_store_fits(featurizer, features.store.path):
        fit_to_store(features, encoded, progress=progress)
    fill_store(
        features, encoded, plan.images_per_batch, rank=rank, world_size=world_size, check=check, progress=progress
    )
    return features
