"""What comes before a dataset is measured or a measurement is planned: arguments checked, defaults settled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from journey import ops
from journey.data.ids import IdOf, Ids, ids_of
from journey.data.items import Dataset
from journey.data.stream import Stream
from journey.features.fill_stream import first_items
from journey.features.fit import IMAGES, as_dataset, as_featurizer
from journey.features.fitted import Fit
from journey.features.identity import check_choices, fingerprint_model
from journey.features.row_plan import RowPlan
from journey.files.paths import GivenPath
from journey.gradients.selection import Selection
from journey.measure.draws import DEFAULT_DRAWS, Draws
from journey.measure.featurizer import Featurizer
from journey.measure.measurements import Measurement
from journey.models.checkpoints import Checkpoint, as_checkpoints
from journey.models.load import as_denoiser
from journey.projectors.base import Projector
from journey.store.manifest import Manifest
from journey.store.rows import RowFormat, check_row_format

# Shards that new images are dealt out in, about, and how many images each has.
_SHARDS, _SMALLEST, _LARGEST, _OF_STREAM = 128, 16, 1024, 256


@dataclass(frozen=True, eq=False)
class Prepared:
    """What a dataset is measured with.

    Attributes:
        source: The images.
        ids: Of each; none of a stream.
        sample: What is looked at before any is measured: the dataset, or the first images of a stream.
        featurizer: Measures; without prior and scales as long as no fit was used.
        draws: Timesteps and noise.
        checkpoints: Weights to measure under; None stands for the network's own.
        rows: How many draws go through the network at once.
        told: What ``fingerprint_model`` returned.
        manifest: Of the store, but for the fit.
    """

    source: Dataset | Stream
    ids: Ids
    sample: Dataset
    featurizer: Featurizer
    draws: Draws
    checkpoints: tuple[Checkpoint | None, ...]
    rows: RowPlan
    told: dict[str, Any]
    manifest: Manifest

    def manifest_with(self, **fingerprints: Any) -> Manifest:
        """Return the manifest with more fingerprints."""
        return replace(self.manifest, fingerprints={**self.manifest.fingerprints, **fingerprints})


def prepare(
    model: Any,
    dataset: Any,
    *,
    out: GivenPath | None,
    fit: Fit | GivenPath | None,
    measurement: Measurement | None,
    draws: Draws | None,
    projector: Projector | None,
    checkpoints: Sequence[Checkpoint] | None,
    select: Selection | None,
    uncovered: Literal["error", "autograd"],
    batch_size: int | Literal["auto"] | None,
    memory: int | None,
    row: RowFormat,
    shard_size: int | None,
    id_of: IdOf | None,
    on_error: Literal["error", "skip"],
) -> Prepared:
    """Check the arguments of ``journey.featurize``, which explains them and its errors, and settle the defaults.

    Nothing is written.

    Args:
        model: As for ``journey.featurize``, as are all but ``out``.
        dataset: Likewise.
        out: Folder of the store; None where there is none yet.
        fit: Likewise.
        measurement: Likewise.
        draws: Likewise.
        projector: Likewise.
        checkpoints: Likewise.
        select: Likewise.
        uncovered: Likewise.
        batch_size: Likewise.
        memory: Likewise.
        row: Likewise.
        shard_size: Likewise.
        id_of: Likewise.
        on_error: Likewise.

    Returns:
        What the dataset is measured with.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If one has an unknown form.
    """
    denoiser = as_denoiser(model)
    source = as_dataset(dataset, denoiser, id_of)
    if shard_size is not None and shard_size < 1:
        raise ValueError(f"shard_size must be positive, got {shard_size}")
    if on_error not in ("error", "skip"):
        raise ValueError(f'on_error must be "error" or "skip", got {on_error!r}')
    check_row_format(row)
    draws = DEFAULT_DRAWS if draws is None else draws
    check_choices(draws=draws)
    ids: Ids = [] if isinstance(source, Stream) else ids_of(source)
    # Refuses a schedule with fewer timesteps than bins, and ids that are no positions.
    draws.timesteps(ids[:1] or [0], denoiser.num_train_timesteps)
    sample = _sample(source, fit is None or batch_size == "auto", on_error)
    weights = as_checkpoints(checkpoints)
    featurizer = as_featurizer(denoiser, measurement, projector, select, uncovered)
    rows = RowPlan.choose(featurizer, sample, draws, batch_size=batch_size, memory=memory, out=out)
    told = fingerprint_model(featurizer, weights)
    manifest = Manifest(
        bins=draws.bins,
        proj_dim=featurizer.features_dim,
        row=row,
        checkpoints=[str(i) for i in range(len(weights))],
        library_version=ops.build_info()["version"],
        fingerprints={**told, "draws": draws.fingerprint(), "batch_size": rows.batch_size},
    )
    return Prepared(source, ids, sample, featurizer, draws, weights, rows, told, manifest)


def default_shard_size(num_images: int | None, images_per_batch: int) -> int:
    """Return the images of a shard, in whole batches; ``num_images`` is None of a stream."""
    size = _OF_STREAM if num_images is None else max(_SMALLEST, min(_LARGEST, num_images // _SHARDS))
    return -(-size // images_per_batch) * images_per_batch


def _sample(source: Dataset | Stream, needed: bool, on_error: Literal["error", "skip"]) -> Dataset:
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
    return first_items(source, IMAGES, on_error)
