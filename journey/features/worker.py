"""The unit of work that other engines run: batches of images in, rows out, and nothing kept between them.

Ray's ``Dataset.map_batches``, ``datasets.Dataset.map(batched=True)``, Spark's ``mapInPandas`` and a plain loop take the
same object. It travels by its choices alone and loads the model where it runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from journey.data.ids import check_ids
from journey.data.items import IMAGE_KEYS, Dataset
from journey.data.picture import Form
from journey.errors import StoreMismatchError
from journey.features.contents import content_of
from journey.features.features import check_run
from journey.features.fit import as_featurizer
from journey.features.fitted import Fit, use_fit
from journey.features.identity import fingerprint_model
from journey.features.measurer import Batch, Found, Measurer
from journey.features.row_plan import RowPlan
from journey.files.paths import GivenPath
from journey.gradients.selection import Selection
from journey.measure.batch import Measured
from journey.measure.draws import DEFAULT_DRAWS, Draws
from journey.measure.measurements import Measurement
from journey.models.checkpoints import Checkpoint, as_checkpoints
from journey.models.load import as_denoiser
from journey.projectors.base import Projector
from journey.store.part import loose_shard
from journey.store.rows import RowFormat, check_row_format, pack
from journey.store.store import FeatureStore


@dataclass
class Worker:
    """Measures batches of images.

    Args:
        model: The path or repo id of a saved pipeline, a function without arguments that returns a model, or a model
            that can be pickled.
        fit: Folder of the fit, which every machine can read, or what ``journey.fit`` returned.
        measurement: As for ``journey.featurize``.
        draws: Likewise.
        projector: Likewise.
        checkpoints: Likewise.
        select: Likewise.
        uncovered: Likewise.
        row: Likewise.
        images_per_pass: Images that are measured at once, by default as many as make 64 draws, on CUDA 256. Another
            number changes rows by rounding, so all workers of a run have the same.
        device: Where the model goes; by default the GPU that this process sees, if there is one.

    Example:
        >>> worker = Worker("./stable-diffusion", "fit/")
        >>> rows = worker({"id": ["a", "b"], "image": images, "text": captions})
    """

    model: Any
    fit: Fit | GivenPath
    measurement: Measurement | None = None
    draws: Draws | None = None
    projector: Projector | None = None
    checkpoints: Sequence[Checkpoint] | None = None
    select: Selection | None = None
    uncovered: Literal["error", "autograd"] = "error"
    row: RowFormat = "int8"
    images_per_pass: int | None = None
    device: str | None = None
    _measurer: Measurer | None = field(default=None, init=False, repr=False)
    _fitted: Fit | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        """Check what can be checked before there is a model."""
        check_row_format(self.row)
        if self.images_per_pass is not None and self.images_per_pass < 1:
            raise ValueError(f"images_per_pass must be positive, got {self.images_per_pass}")

    def __getstate__(self) -> dict[str, Any]:
        """Leave away what is loaded where it runs."""
        return {**self.__dict__, "_measurer": None, "_fitted": None}

    def fingerprints(self) -> dict[str, Any]:
        """Return what rows depend on besides the image, as the manifest of a store has it."""
        measurer = self.measurer
        assert self._fitted is not None
        return {
            **fingerprint_model(measurer.featurizer, measurer.checkpoints),
            "draws": measurer.draws.fingerprint(),
            "batch_size": measurer.images_per_pass,
            "fit": self._fitted.fingerprint,
        }

    @property
    def measurer(self) -> Measurer:
        """What measures; made with the model when it is first needed."""
        if self._measurer is None:
            model = self.model() if callable(self.model) else self.model
            denoiser = as_denoiser(model)
            device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
            for part in (denoiser.network, *denoiser.frozen.values()):
                part.to(device)
            featurizer = as_featurizer(denoiser, self.measurement, self.projector, self.select, self.uncovered)
            weights = as_checkpoints(self.checkpoints)
            self._fitted = use_fit(self.fit, featurizer, fingerprint_model(featurizer, weights))
            draws = DEFAULT_DRAWS if self.draws is None else self.draws
            size = self.images_per_pass or RowPlan.of(draws, denoiser.device.type).images_per_batch
            self._measurer = Measurer(featurizer, draws, weights, size, check=True)
        return self._measurer

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Measure a batch of images.

        Args:
            batch: Columns of equal length: ``id`` and an image (``image``, ...: files as bytes, uint8 arrays [H, W, C],
                pictures of PIL, or all that ``journey.data.items.get_image`` takes), with captions or labels where the
                model reads them.

        Returns:
            Columns: ``id``; ``content`` int64 [num]; ``norm`` and ``noise`` float32 [num, num_checkpoints], ``values``
            float32 [num, num_checkpoints, bins], ``rows`` and, of packed ones, ``scales`` as the store has them, with
            checkpoints as second axis.

        Raises:
            ValueError: If an image cannot be read or does not fit the model, an id comes twice, or a column is missing.
            NonFiniteGradientError: If a gradient is NaN or infinite.
        """
        ids, contents, found = self.measured(batch)
        tensors: dict[str, list[Tensor]] = {}
        for measured in found:
            named = {"norm": measured.norm, "noise": measured.noise, "values": measured.values}
            for name, tensor in {**named, **pack(self.row, measured.features)}.items():
                tensors.setdefault(name, []).append(tensor)
        columns = {name: torch.stack(parts, 1).numpy() for name, parts in tensors.items()}
        return {"id": np.array(ids), "content": np.array(contents, dtype=np.int64), **columns}

    def measured(self, batch: Mapping[str, Any]) -> tuple[list[int | str], list[int], list[Measured]]:
        """Return ids, contents and, under each checkpoint, the rows of a batch; see ``__call__``."""
        ids, items = self.items(batch)
        return ids, *self.measure(ids, items)

    def items(self, batch: Mapping[str, Any]) -> tuple[list[int | str], list[Any]]:
        """Return the ids of a batch, and its images as a dataset gives them; see ``__call__``."""
        if "id" not in batch:
            raise ValueError(f"batch must have a column id, got {', '.join(batch)}")
        if not len(batch["id"]):
            raise ValueError("batch must hold at least one image, got none")
        ids, denoiser = check_ids(batch["id"]), self.measurer.featurizer.denoiser
        form = Form(denoiser.sample_size, denoiser.in_channels or 3)
        columns = {name: column for name, column in batch.items() if name != "id"}
        for name, column in columns.items():
            if len(column) != len(ids):
                raise ValueError(
                    f"batch must have columns of one length, got {len(ids)} ids and {len(column)} of {name}"
                )
        items = [
            as_item({name: column[at] for name, column in columns.items()}, form, f"image {i!r}")
            for at, i in enumerate(ids)
        ]
        return ids, items

    def contents(self, ids: list[int | str], items: list[Any]) -> list[int]:
        """Return 64 bits that tell each item from others, see ``journey.features.contents.content_of``."""
        denoiser = self.measurer.featurizer.denoiser
        return [content_of(denoiser, item, f"image {i!r}") for i, item in zip(ids, items, strict=True)]

    def measure(self, ids: list[int | str], items: list[Any]) -> tuple[list[int], list[Measured]]:
        """Return the contents and, under each checkpoint, the rows of items as a dataset gives them."""
        measurer, names = self.measurer, [f"image {i!r}" for i in ids]
        contents = self.contents(ids, items)
        size = measurer.images_per_batch

        def batches() -> Iterator[Batch]:
            for first in range(0, len(ids), size):
                end = first + size
                yield Batch(ids[first:end], items[first:end], names[first:end])

        numbers = list(range(len(measurer.checkpoints)))
        found: list[list[Found]] = [[] for _ in numbers]
        with measurer:
            for _, of_checkpoints in measurer.measure(batches(), numbers):
                for parts, part in zip(found, of_checkpoints, strict=True):
                    parts.append(part)
        return contents, [Measured(*map(torch.cat, zip(*(p.measured for p in x), strict=True))) for x in found]


@dataclass
class StoreWorker:
    """Measures batches of images into a store, each as a shard of its own, and tells only what is done.

    Images that are there already are passed over. A batch that is measured twice, by a worker that died after it wrote
    or by two at once, gives the same file.

    Args:
        worker: Measures.
        store: Folder of the store, which every machine can write to, begun before.
        dataset: Where the images are: then a batch has their ``position`` beside the ``id``, and no image.
    """

    worker: Worker
    store: GivenPath
    dataset: Dataset | None = None
    _known: set[int | str] | None = field(default=None, init=False, repr=False)
    _measured: dict[int | str, int] = field(default_factory=dict, init=False, repr=False)  # contents

    def __getstate__(self) -> dict[str, Any]:
        """Leave away what is read where it runs."""
        return {**self.__dict__, "_known": None, "_measured": {}}

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Measure a batch; see ``Worker``.

        Args:
            batch: As for ``Worker``.

        Returns:
            One column, ``id``: the images that are in the store now.

        Raises:
            StoreMismatchError: If the store is of another run.
            ValueError: As ``Worker``.
            OSError: If the store cannot be written to.
        """
        store = FeatureStore.open(self.store)
        if self._known is None:
            self._known = store.planned_ids()
        if store.manifest.row != self.worker.row:
            raise StoreMismatchError(
                f"row must be {store.manifest.row!r}, as {self.store} has it, got {self.worker.row!r}"
            )
        check_run(store, self.worker.fingerprints())
        if "id" not in batch:
            raise ValueError(f"batch must have a column id, got {', '.join(batch)}")
        all_ids = np.array(batch["id"])
        new = [at for at, i in enumerate(check_ids(batch["id"])) if i not in self._known]
        store.check_kind(self._known, check_ids(batch["id"]))
        self._check_again(batch)
        if not new:
            return {"id": all_ids}
        batch = {name: [column[at] for at in new] for name, column in batch.items()}
        if self.dataset is None:
            ids, contents, found = self.worker.measured(batch)
        else:
            ids, items = check_ids(batch["id"]), [self.dataset[int(at)] for at in batch["position"]]
            contents, found = self.worker.measure(ids, items)
        for name, measured in zip(store.manifest.checkpoints, found, strict=True):
            content = torch.tensor(contents, dtype=torch.int64, device="cpu")
            store.write_shard(name, loose_shard(ids, contents), ids, content=content, **measured._asdict())
        self._known.update(ids)
        self._measured.update(zip(ids, contents, strict=True))
        return {"id": all_ids}

    def _check_again(self, batch: Mapping[str, Any]) -> None:
        """Refuse other images under ids that this worker has measured; a batch that comes again is no fault."""
        again = [at for at, i in enumerate(batch["id"].tolist()) if i in self._measured]
        if self.dataset is not None or not again:
            return
        ids, items = self.worker.items({name: [column[at] for at in again] for name, column in batch.items()})
        for i, content in zip(ids, self.worker.contents(ids, items), strict=True):
            if content != self._measured[i]:
                raise ValueError(f"ids must name every image once, got {i!r} for two or more")


def as_item(columns: dict[str, Any], form: Form, name: str) -> dict[str, Any]:
    """Return a row of a table as an item of a dataset, its picture in the size that the model takes."""
    key = next((key for key in IMAGE_KEYS if key in columns), None)
    if key is not None:
        image = columns[key]
        if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim in (2, 3):
            from PIL import Image

            columns[key] = Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image)
    item: dict[str, Any] = form.bring(columns, name)
    return item
