"""What comes before a dataset is measured or a measurement is planned: arguments checked, defaults settled."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from journey import ops
from journey.data.ids import Ids, ids_of
from journey.data.items import Dataset
from journey.data.stream import Stream
from journey.features.choices import Choices
from journey.features.fill_stream import first_items
from journey.features.fit import IMAGES, as_dataset, as_featurizer, some_of
from journey.features.identity import fingerprint_model
from journey.features.row_plan import RowPlan
from journey.files.paths import GivenPath
from journey.measure.draws import DEFAULT_DRAWS, Draws
from journey.measure.featurizer import Featurizer
from journey.models.checkpoints import Checkpoint, as_checkpoints
from journey.models.denoiser import Denoiser
from journey.models.load import as_denoiser
from journey.store.manifest import Manifest

# Shards that new images are dealt out in, about, and how many images each has.
_SHARDS, _SMALLEST, _LARGEST, _OF_STREAM = 128, 16, 4096, 256


@dataclass(frozen=True, eq=False)
class Prepared:
    """What a dataset is measured with.

    Attributes:
        choices: What the caller chose.
        source: The images.
        ids: Of each; none of a stream.
        sample: What is learned from before any is measured: the dataset, those of its images that can be read if others
            are to be skipped, or the first images of a stream.
        featurizer: Measures; without prior and scales as long as no fit was used.
        draws: Timesteps and noise.
        checkpoints: Weights to measure under; None stands for the network's own.
        rows: How many draws go through the network at once.
        told: What ``fingerprint_model`` returned.
        manifest: Of the store, but for the fit.
    """

    choices: Choices
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


def prepare(model: Any, dataset: Any, choices: Choices, *, out: GivenPath | None) -> Prepared:
    """Check the arguments of ``journey.featurize``, which explains them and its errors, and settle the defaults.

    Nothing is written.

    Args:
        model: As for ``journey.featurize``.
        dataset: Likewise.
        choices: Likewise.
        out: Folder of the store; None where there is none yet.

    Returns:
        What the dataset is measured with.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If one has an unknown form.
    """
    denoiser = as_denoiser(model)
    source = as_dataset(dataset, denoiser, choices.id_of)
    draws = DEFAULT_DRAWS if choices.draws is None else choices.draws
    ids: Ids = [] if isinstance(source, Stream) else ids_of(source)
    # Refuses a schedule with fewer timesteps than bins, and ids that are no positions.
    draws.timesteps(ids[:1] or [0], denoiser.num_train_timesteps)
    sample = _sample(source, denoiser, choices)
    weights = as_checkpoints(choices.checkpoints)
    featurizer = as_featurizer(denoiser, choices.measurement, choices.projector, choices.select, choices.uncovered)
    size, memory = choices.batch_size, choices.memory
    rows = RowPlan.choose(featurizer, sample, draws, len(ids) or len(sample), batch_size=size, memory=memory, out=out)
    told = fingerprint_model(featurizer, weights)
    manifest = Manifest(
        bins=draws.bins,
        proj_dim=featurizer.features_dim,
        row=choices.row,
        checkpoints=[str(i) for i in range(len(weights))],
        library_version=ops.build_info()["version"],
        fingerprints={**told, "draws": draws.fingerprint(), "batch_size": rows.batch_size},
    )
    return Prepared(choices, source, ids, sample, featurizer, draws, weights, rows, told, manifest)


def default_shard_size(num_images: int | None, images_per_batch: int) -> int:
    """Return the images of a shard, in whole batches; ``num_images`` is None of a stream."""
    size = _OF_STREAM if num_images is None else max(_SMALLEST, min(_LARGEST, num_images // _SHARDS))
    return -(-size // images_per_batch) * images_per_batch


def _sample(source: Dataset | Stream, denoiser: Denoiser, choices: Choices) -> Dataset:
    """What is learned from before anything is measured, as far as anything is."""
    if choices.fit is not None and choices.batch_size != "auto":
        return [] if isinstance(source, Stream) else source
    if not isinstance(source, Stream):
        return some_of(source, denoiser, choices.on_error)
    if source.once:
        raise ValueError(
            "dataset is an iterator, which can be read only once, and what is learned first needs its images, too: "
            'give an object whose iter() begins anew, or fit= and no batch_size="auto"'
        )
    return first_items(source, IMAGES, choices.on_error)
