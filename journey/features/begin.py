"""The store of a run, begun or found again: choices first, so that another run is refused before any work."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from journey.data.stream import Stream
from journey.errors import StoreMismatchError
from journey.features.contents import check_images, check_stream
from journey.features.features import Features
from journey.features.fit import fit_featurizer
from journey.features.fitted import DESCRIPTION, use_fit
from journey.features.prepare import Prepared
from journey.features.row_plan import RowPlan
from journey.files.paths import GivenPath, Location, as_path, exists
from journey.store.manifest import Manifest, check_free, stored_manifest
from journey.store.store import FeatureStore

# Where a store keeps the fit that it makes itself.
FIT_FOLDER = "fit"


def begin_store(given: Prepared, out: GivenPath, *, look: bool = True, progress: bool = True) -> Features:
    """Begin a store, or open the one that the same run left behind, with its fit; nothing is planned or measured.

    Args:
        given: What is measured, and with what.
        out: As for ``journey.featurize``.
        look: Look at some images, and compare them with those that are stored; of a stream none.
        progress: As for ``journey.featurize``.

    Returns:
        The features, as far as there are any.

    Raises:
        StoreMismatchError: If ``out`` holds the features of a different run, or other images under the same ids, or
            ``fit`` is of another model; names what differs.
        OSError: If ``out`` cannot be written to.
    """
    featurizer, denoiser, choices = given.featurizer, given.featurizer.denoiser, given.choices
    folder = as_path(out)
    check_free(folder, [FIT_FOLDER])
    begun = None
    if (stored := stored_manifest(folder)) is not None:
        # Another run is refused before anything is fitted.
        begun, _ = _open(folder, given.manifest_with(fit=stored.fingerprints.get("fit")), given)
    if look and not isinstance(given.source, Stream):
        check_images(begun, given.source, given.ids, denoiser, choices.on_error)
    if look and begun is not None and isinstance(given.source, Stream) and not given.source.once:
        check_stream(begun, given.source, denoiser)
    inside = folder / FIT_FOLDER
    if choices.fit is None and begun is not None and not exists(inside / DESCRIPTION):
        raise StoreMismatchError(f"fit must be given: {folder} was made with one that lies elsewhere")
    if choices.fit is None:
        fitted = fit_featurizer(featurizer, given.sample, inside, given.checkpoints, given.told, progress=progress)
    else:
        fitted = use_fit(choices.fit, featurizer, given.told)
    store, plan = _open(folder, given.manifest_with(fit=fitted.fingerprint), given)
    if choices.batch_size == "auto":
        featurizer.rows_per_pass = plan.rows
    return Features(store, featurizer, given.draws, given.checkpoints, fitted)


def images_per_pass(features: Features) -> int:
    """Return how many images are measured at once, as the store was begun."""
    draws = features.draws
    plan = RowPlan.stored(features.store.path, draws.bins * draws.num_draws)
    assert plan is not None
    return plan.images_per_batch


def _open(out: Location, manifest: Manifest, given: Prepared) -> tuple[FeatureStore, RowPlan]:
    """Create or resume the store; with ``"auto"`` the rows of whoever was first count."""
    plan = given.rows
    try:
        return FeatureStore.create_or_resume(out, manifest, beside=[FIT_FOLDER]), plan
    except StoreMismatchError:
        stored = RowPlan.stored(out, plan.draws_per_image)
        if given.choices.batch_size != "auto" or stored in (None, plan):
            raise
    # Another process of this run measured at the same time, and was first.
    return FeatureStore.create_or_resume(out, _with(manifest, batch_size=stored.batch_size)), stored


def _with(manifest: Manifest, **fingerprints: Any) -> Manifest:
    return replace(manifest, fingerprints={**manifest.fingerprints, **fingerprints})
