"""How many draws go through the network at once: as the caller says, as a store has it, or as memory allows."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from math import ceil
from typing import Literal

from journey.data.items import Dataset
from journey.files.paths import GivenPath
from journey.gradients.memory import default_budget, largest_batch
from journey.measure.batch import draw_batch
from journey.measure.draws import Draws
from journey.measure.featurizer import Featurizer
from journey.measure.left_out import LeftOutLoss
from journey.measure.measurements import TrainingLoss
from journey.models.condition import Encoded
from journey.projectors.scaled import Scaled
from journey.store.manifest import stored_manifest

# Rows (samples x draws) of a batch where the caller names no batch size. While the host of a GPU prepares a pass of
# many layers, the GPU computes a hundred small rows.
_ROWS_PER_BATCH = {"cpu": 64, "cuda": 256}
_MOST_IMAGES = 256


@dataclass(frozen=True)
class RowPlan:
    """How many rows go through the network at once, where a row is one draw of one image.

    Attributes:
        rows: Rows at once; images' draws stay together where one image's fit.
        draws_per_image: Draws of one image, over all bins.
    """

    rows: int
    draws_per_image: int

    @property
    def images_per_batch(self) -> int:
        """Images that are measured at once, at least one."""
        return max(1, self.rows // self.draws_per_image)

    @property
    def batch_size(self) -> float:
        """Images whose draws these rows are, as the manifest has it: a whole number, or a part of one."""
        whole = self.rows >= self.draws_per_image
        return self.rows // self.draws_per_image if whole else self.rows / self.draws_per_image

    @staticmethod
    def choose(
        featurizer: Featurizer,
        dataset: Dataset,
        draws: Draws,
        num_images: int,
        *,
        batch_size: int | Literal["auto"] | None,
        memory: int | None,
        out: GivenPath | None,
    ) -> RowPlan:
        """Settle the rows, and tell the featurizer where they are not left to the network's needs.

        Args:
            featurizer: Measures.
            dataset: Images to try, with ``"auto"``.
            draws: Timesteps and noise.
            num_images: How many there are, as far as it is known.
            batch_size: As for ``journey.featurize``.
            memory: As for ``journey.featurize``.
            out: Folder of the store: the size that it was begun with goes, since rows of another differ by rounding;
                None if there is none.

        Returns:
            The plan.
        """
        each = draws.bins * draws.num_draws
        if batch_size is not None and batch_size != "auto":
            featurizer.rows_per_pass = int(batch_size) * each
            return RowPlan(int(batch_size) * each, each)
        stored = RowPlan.stored(out, each)
        if batch_size is None:
            return stored or RowPlan.of(draws, featurizer.denoiser.device.type, num_images or _MOST_IMAGES)
        rows = stored.rows if stored else _measured_rows(featurizer, dataset, draws, memory)
        featurizer.rows_per_pass = rows
        return RowPlan(rows, each)

    @staticmethod
    def of(draws: Draws, device: str = "cpu", most: int = _MOST_IMAGES) -> RowPlan:
        """Return the plan where nothing is said: images of 64 rows, on CUDA 256, at least one and at most ``most``."""
        each = draws.bins * draws.num_draws
        rows = _ROWS_PER_BATCH.get(device, _ROWS_PER_BATCH["cpu"])
        return RowPlan(max(1, min(rows // each, most)) * each, each)

    @staticmethod
    def stored(out: GivenPath | None, draws_per_image: int) -> RowPlan | None:
        """Return the plan of what is stored already; None if nothing is."""
        manifest = None if out is None else stored_manifest(out)
        stored = None if manifest is None else manifest.fingerprints.get("batch_size")
        if not isinstance(stored, int | float):
            return None
        return RowPlan(round(stored * draws_per_image), draws_per_image)


def _measured_rows(featurizer: Featurizer, dataset: Dataset, draws: Draws, memory: int | None) -> int:
    """Measure batches of the first sample, again and again."""
    # What may still have to be fitted is left away.
    if isinstance(featurizer.measurement, LeftOutLoss):
        featurizer = featurizer.change(measurement=TrainingLoss())
    if isinstance(featurizer.projector, Scaled):
        featurizer = featurizer.change(projector=featurizer.projector.inner)
    denoiser, each = featurizer.denoiser, draws.bins * draws.num_draws
    sample = denoiser.encode([dataset[0]], [0])

    def run(rows: int) -> None:
        featurizer.rows_per_pass = rows
        count = ceil(rows / each)
        drawn = draw_batch(denoiser, draws, Encoded.cat([sample] * count), [0] * count)
        if rows < each:
            count, drawn = rows, drawn.apart(rows)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            featurizer.features(sample.x0.expand(count, -1, -1, -1), **drawn._asdict())
        if featurizer.rows_per_pass != rows:  # halved, as memory ran out
            raise MemoryError

    # Parts of one sample's draws, then samples.
    sizes = [*(2**i for i in range((each - 1).bit_length())), each, 2 * each, 4 * each]
    budget = default_budget(denoiser.device) if memory is None else memory
    rows = largest_batch(run, denoiser.device, sizes=sizes, budget=budget, most=min(_MOST_IMAGES, len(dataset)) * each)
    return rows if rows < each else rows // each * each
