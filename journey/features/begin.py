"""The store of a run, begun or found again: choices first, so that another run is refused before any work."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from journey import ops
from journey.data.ids import Ids
from journey.data.items import Dataset
from journey.errors import StoreMismatchError
from journey.features.contents import OnError, Readable, check_images
from journey.features.features import Features
from journey.features.fit import as_featurizer, fit_featurizer, sampled_ids
from journey.features.fitted import Fit, use_fit
from journey.features.identity import check_choices, fingerprint_model
from journey.features.row_plan import RowPlan
from journey.gradients.selection import Selection
from journey.measure.draws import DEFAULT_DRAWS, Draws
from journey.measure.measurements import Measurement
from journey.models.checkpoints import Checkpoint, as_checkpoints
from journey.models.denoiser import Denoiser
from journey.projectors.base import Projector
from journey.store.manifest import Manifest, check_free, stored_manifest
from journey.store.rows import RowFormat, check_row_format
from journey.store.store import FeatureStore

# Where a store keeps the fit that it makes itself.
FIT_FOLDER = "fit"


def begin_store(
    denoiser: Denoiser,
    sample: Dataset,
    out: str | os.PathLike[str],
    ids: Ids | None,
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
    on_error: OnError = "error",
    progress: bool = True,
) -> Features:
    """Begin a store, or open the one that the same run left behind, with its fit; nothing is planned or measured.

    Args:
        denoiser: The model.
        sample: The images, or those that a fit is made of.
        out: As for ``journey.featurize``.
        ids: Of the sample, which is looked at and compared with what is stored; None does neither.
        fit: As for ``journey.featurize``.
        measurement: Likewise.
        draws: Likewise.
        projector: Likewise.
        checkpoints: Likewise.
        select: Likewise.
        uncovered: Likewise.
        batch_size: Likewise.
        memory: Likewise.
        row: Likewise.
        on_error: Likewise.
        progress: Likewise.

    Returns:
        The features, as far as there are any.

    Raises:
        StoreMismatchError: If ``out`` holds the features of a different run, or other images under the same ids, or
            ``fit`` is of another model; names what differs.
        OSError: If ``out`` cannot be written to.
    """
    check_row_format(row)
    draws = DEFAULT_DRAWS if draws is None else draws
    check_choices(draws=draws)
    # Before there is a store: refuses a schedule with fewer timesteps than bins, and ids that are no positions.
    draws.timesteps(ids[:1] if ids else [0], denoiser.num_train_timesteps)
    weights = as_checkpoints(checkpoints)
    featurizer = as_featurizer(denoiser, measurement, projector, select, uncovered)
    plan = RowPlan.choose(featurizer, sample, draws, batch_size=batch_size, memory=memory, out=out)
    told = fingerprint_model(featurizer, weights)
    manifest = Manifest(
        bins=draws.bins,
        proj_dim=featurizer.features_dim,
        row=row,
        checkpoints=[str(i) for i in range(len(weights))],
        library_version=ops.build_info()["version"],
        fingerprints={**told, "draws": draws.fingerprint(), "batch_size": plan.batch_size},
    )
    check_free(Path(out), [FIT_FOLDER])
    begun = None
    if (stored := stored_manifest(out)) is not None:
        # Another run is refused before anything is fitted.
        begun, _ = _open(out, _with(manifest, fit=stored.fingerprints.get("fit")), plan, batch_size)
    if ids is not None:
        check_images(begun, sample, ids, denoiser, on_error)
    if fit is None:
        if on_error == "skip":
            positions = sampled_ids(len(sample))
            readable = Readable(sample, positions, denoiser)
            sample = sample if len(readable) == len(positions) else readable
        fitted = fit_featurizer(featurizer, sample, Path(out) / FIT_FOLDER, weights, told, progress=progress)
    else:
        fitted = use_fit(fit, featurizer, told)
    store, plan = _open(out, _with(manifest, fit=fitted.fingerprint), plan, batch_size)
    if batch_size == "auto":
        featurizer.rows_per_pass = plan.rows
    return Features(store, featurizer, draws, weights, fitted)


def images_per_pass(features: Features) -> int:
    """Return how many images are measured at once, as the store was begun."""
    draws = features.draws
    plan = RowPlan.stored(features.store.path, draws.bins * draws.num_draws)
    assert plan is not None
    return plan.images_per_batch


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
