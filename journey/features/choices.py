"""What a caller chooses of a measurement, given once and handed on whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from journey.data.ids import IdOf
from journey.errors import check_count
from journey.features.contents import OnError
from journey.features.fitted import Fit
from journey.features.identity import check_choices
from journey.files.paths import GivenPath
from journey.gradients.selection import Selection
from journey.measure.draws import Draws
from journey.measure.measurements import Measurement
from journey.models.checkpoints import Checkpoint
from journey.projectors.base import Projector
from journey.store.rows import RowFormat, check_row_format

# What of these a worker needs to know, which reads no data and writes no files.
_OF_WORKER = ("measurement", "draws", "projector", "checkpoints", "select", "uncovered", "row")


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Arguments of ``journey.featurize``, which explains them; checked as far as that needs no model.

    Raises:
        ValueError: If one is out of range.
        TypeError: If one has an unknown form.
    """

    fit: Fit | GivenPath | None = None
    measurement: Measurement | None = None
    draws: Draws | None = None
    projector: Projector | None = None
    checkpoints: Sequence[Checkpoint] | None = None
    select: Selection | None = None
    uncovered: Literal["error", "autograd"] = "error"
    batch_size: int | Literal["auto"] | None = None
    memory: int | None = None
    row: RowFormat = "int8"
    shard_size: int | None = None
    id_of: IdOf | None = None
    workers: int = 0
    on_error: OnError = "error"

    def __post_init__(self) -> None:
        """Check them."""
        given = {name: getattr(self, name) for name in ("measurement", "draws", "projector")}
        check_choices(**{name: choice for name, choice in given.items() if choice is not None})
        if self.batch_size not in (None, "auto"):
            check_count("batch_size", self.batch_size, or_else='"auto"')
        if self.memory is not None:
            check_count("memory", self.memory)
            if self.batch_size != "auto":
                raise ValueError(f'memory is the limit of batch_size="auto", got {self.memory} without it')
        if self.shard_size is not None:
            check_count("shard_size", self.shard_size)
        check_count("workers", self.workers, least=0)
        check_row_format(self.row)
        if self.on_error not in ("error", "skip"):
            raise ValueError(f'on_error must be "error" or "skip", got {self.on_error!r}')

    def of_worker(self) -> dict[str, Any]:
        """Return those that ``journey.features.worker.Worker`` takes, by name."""
        return {name: getattr(self, name) for name in _OF_WORKER}

    def changed(self) -> list[str]:
        """Return the names of those that are not the defaults."""
        return [field.name for field in fields(self) if getattr(self, field.name) != field.default]
