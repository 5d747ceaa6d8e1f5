"""Features of a whole dataset, written to a store that survives any interruption."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from journey import ops
from journey.data.items import Dataset
from journey.errors import StoreMismatchError
from journey.features.features import Features
from journey.features.fill import fill_store
from journey.features.fit import as_dataset, as_featurizer, fit_featurizer
from journey.features.fitted import Fit, use_fit
from journey.features.identity import check_choices, fingerprint_dataset, fingerprint_model
from journey.features.row_plan import RowPlan
from journey.gradients.selection import Selection
from journey.measure.draws import DEFAULT_DRAWS, Draws
from journey.measure.measurements import Measurement
from journey.models.checkpoints import Checkpoint, as_checkpoints
from journey.models.encoding import EncodedDataset
from journey.models.load import as_denoiser
from journey.projectors.base import Projector
from journey.store.manifest import Manifest, check_free
from journey.store.rows import RowFormat, check_row_format
from journey.store.store import FeatureStore, stored_manifest

# Where a store keeps the fit that it makes itself.
FIT_FOLDER = "fit"


def featurize(
    model: Any,
    dataset: Dataset | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    fit: Fit | str | os.PathLike[str] | None = None,
    measurement: Measurement | None = None,
    draws: Draws | None = None,
    projector: Projector | None = None,
    checkpoints: Sequence[Checkpoint] | None = None,
    select: Selection | None = None,
    uncovered: Literal["error", "autograd"] = "error",
    batch_size: int | Literal["auto"] | None = None,
    memory: int | None = None,
    row: RowFormat = "int8",
    shard_size: int = 256,
    rank: int = 0,
    world_size: int = 1,
    check: bool = True,
    progress: bool = True,
) -> Features:
    """Measure every image of a dataset and store its projected gradient.

    Runs on the device of the model. The frozen parts of a model (VAE, text encoders) run once per image, and once more
    for those that are fitted to; what they give is kept in ``out/encoded`` for all draws and checkpoints. Finished
    shards are kept: the same call after an interruption continues, and gives the same bytes as an uninterrupted one.
    Several processes may share the work: each takes every ``world_size``-th shard, and there is nothing to merge; of a
    fit, one makes it and the others wait.

    Args:
        model: A diffusers pipeline, a pair ``(network, scheduler)``, a ``Denoiser``, or the path or repo id of a saved
            pipeline, see ``journey.models.load.as_denoiser``. In eval mode.
        dataset: A map-style dataset of images (see ``journey.data.items.get_image``) or a folder of images. The id of
            an image is its index. For models that read text or classes, items also have captions or a label (see
            ``journey.data.items.captions_of``, ``label_of``); of several captions each draw takes one.
        out: Folder of the store.
        fit: What ``journey.fit`` learned, or its folder. By default it is made of these images and kept in
            ``out/fit``.
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
            halved from there on, with a warning, and no finished row is lost. Changes features only by rounding.
        memory: Bytes that a batch may take besides the model, with ``batch_size="auto"``; half of what is free by
            default.
        row: How a feature is kept: ``"int8"`` and ``"int4"`` with a scale per image, ``"float16"`` or ``"float32"``.
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
        StoreMismatchError: If ``out`` holds the features of a different run, or ``fit`` is of another model; names
            what differs.
        OSError: If ``out`` cannot be written to.

    Example:
        >>> features = journey.featurize((unet, scheduler), dataset, "features/")
    """
    denoiser = as_denoiser(model)
    dataset = as_dataset(dataset, denoiser)
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be in [0, world_size), got rank {rank} with world_size {world_size}")
    check_row_format(row)
    draws = DEFAULT_DRAWS if draws is None else draws
    check_choices(draws=draws)
    # Before there is a store: refuses a schedule with fewer timesteps than bins.
    draws.timesteps([0], denoiser.num_train_timesteps)
    weights = as_checkpoints(checkpoints)
    featurizer = as_featurizer(denoiser, measurement, projector, select, uncovered)
    plan = RowPlan.choose(
        featurizer, dataset, draws, batch_size=batch_size, memory=memory, out=out, shard_size=shard_size
    )
    told = fingerprint_model(featurizer, weights)
    manifest = Manifest(
        num_samples=len(dataset),
        shard_size=shard_size,
        bins=draws.bins,
        proj_dim=featurizer.features_dim,
        row=row,
        checkpoints=[str(i) for i in range(len(weights))],
        library_version=ops.build_info()["version"],
        fingerprints={
            **told,
            "draws": draws.fingerprint(),
            "dataset": fingerprint_dataset(dataset, denoiser),
            "batch_size": plan.batch_size,
        },
    )
    check_free(Path(out), [FIT_FOLDER])
    if (stored := stored_manifest(out)) is not None:
        # Another run is refused before anything is fitted.
        _open(out, _with(manifest, fit=stored.fingerprints.get("fit")), plan, batch_size)
    if fit is None:
        fitted = fit_featurizer(featurizer, dataset, Path(out) / FIT_FOLDER, weights, told, progress=progress)
    else:
        fitted = use_fit(fit, featurizer, told)
    store, plan = _open(out, _with(manifest, fit=fitted.fingerprint), plan, batch_size)
    if batch_size == "auto":
        featurizer.rows_per_pass = plan.rows
    features = Features(store, featurizer, draws, weights, fitted)
    manifest = store.manifest
    owner = {name: manifest.fingerprints[name] for name in ("dataset", "encoding") if name in manifest.fingerprints}
    encoded = EncodedDataset(dataset, denoiser, features.store.path / "encoded", owner)
    fill_store(
        features, encoded, plan.images_per_batch, rank=rank, world_size=world_size, check=check, progress=progress
    )
    return features


def _open(
    out: str | os.PathLike[str], manifest: Manifest, plan: RowPlan, batch_size: int | Literal["auto"] | None
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
