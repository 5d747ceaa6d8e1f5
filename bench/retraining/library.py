"""The library as a user calls it: one store of the training images, and with it scores of steps and of whole images."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

import journey
from bench.retraining.whole.truth import Setting
from journey.curvature.gram import DEFAULT_DAMPING
from journey.features.features import Features
from journey.features.fitted import Fit
from journey.files.fingerprint import fingerprint_json
from journey.generation.trajectory import Trajectory
from journey.measure.draws import DEFAULT_DRAWS, Draws
from journey.measure.left_out import LeftOutLoss
from journey.measure.measurements import Measurement
from journey.projectors.base import Projector
from journey.projectors.random import CountSketch
from journey.projectors.scaled import Scaled
from journey.store.rows import RowFormat

DEFAULT, WHOLE_IMAGE = "library default", "library default, whole image"
_BYTES = {"int8": 1.0, "int4": 0.5, "float16": 2.0, "float32": 4.0}
_SCALE_BYTES = {"int8": 4, "int4": 4, "float16": 0, "float32": 0}


@dataclass(frozen=True)
class Choices:
    """The options of ``journey.fit`` and ``journey.featurize``.

    Args:
        measurement: What is differentiated.
        projector: Maps gradients to features; fitted to the tier where it is a function.
        draws: Timesteps and noise of the training images.
        row: How features are kept.
        own_share: As for ``journey.fit``.
        pseudo_gradients: Likewise.
    """

    measurement: Measurement = LeftOutLoss()  # noqa: RUF009 - frozen
    projector: Projector | Callable[[Setting], Projector] = Scaled(CountSketch())  # noqa: RUF009 - frozen
    draws: Draws = DEFAULT_DRAWS
    row: RowFormat = "int8"
    own_share: float | None = None
    pseudo_gradients: int | None = None

    @property
    def stored(self) -> int:
        """Return the bytes that are kept of each image."""
        return round(self.draws.bins * (CountSketch().proj_dim * _BYTES[self.row] + _SCALE_BYTES[self.row]))


LIBRARY = Choices()


def features_of(setting: Setting, choices: Choices = LIBRARY) -> tuple[Features, float]:
    """Fit and featurize, or open what an earlier run made.

    Args:
        setting: The tier.
        choices: The options. Those of the Gram matrix make another fit, and share the store.

    Returns:
        The features, and the CPU seconds that fit and store took.
    """
    projector = choices.projector if isinstance(choices.projector, Projector) else choices.projector(setting)
    measured = [choices.measurement.fingerprint(), projector.fingerprint()]
    gram = [choices.own_share, choices.pseudo_gradients]
    fit = setting.work / "library" / f"fit-{fingerprint_json([*measured, *gram])[:16]}"
    store = (
        setting.work
        / "library"
        / f"store-{fingerprint_json([*measured, choices.draws.fingerprint(), choices.row])[:16]}"
    )

    def make_fit() -> Fit:
        return journey.fit(
            setting.model,
            setting.dataset,
            fit,
            measurement=choices.measurement,
            projector=projector,
            own_share=choices.own_share,
            pseudo_gradients=choices.pseudo_gradients,
            progress=False,
        )

    def featurize() -> Features:
        return journey.featurize(
            setting.model,
            setting.dataset,
            store,
            fit=fit,
            measurement=choices.measurement,
            draws=choices.draws,
            projector=projector,
            row=choices.row,
            progress=False,
        )

    seconds = _timed(fit, make_fit) + _timed(store, featurize)
    return featurize(), seconds


def step_scores(
    setting: Setting, trajectory: Trajectory, choices: Choices = LIBRARY, *, damping: float = DEFAULT_DAMPING
) -> Tensor:
    """Score every step. [num_queries, num_steps, num_train]"""
    features, _ = features_of(setting, choices)
    return journey.score(features, trajectory, damping=damping, progress=False).values


def _timed(folder: Path, make: Callable[[], object]) -> float:
    """Run what makes a folder, once; return the CPU seconds that it took then."""
    note = folder.with_name(f"{folder.name}.seconds")
    if not note.exists():
        begin = time.process_time()
        make()
        note.write_text(repr(time.process_time() - begin))
    return float(note.read_text())
