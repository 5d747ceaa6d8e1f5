"""What was found about a training set: findings, each with its images, a sentence, a number and a prediction."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from journey.exports.csv import write_csv
from journey.files.publish import publish

# Kinds of findings in the order of the page, with their headings and a line that explains them.
KINDS = {
    "duplicates": (
        "Near-duplicates",
        "Images that do the same to the model. It trains on them several times over, and learns them by heart first.",
    ),
    "caption": (
        "Captions that do not fit",
        "What the model expects from the caption is no more like the image than what it expects from others.",
    ),
    "odd": (
        "Images that do not belong",
        "The others did not prepare the model for this image: damaged files, or pictures of something else.",
    ),
    "opponent": (
        "Images that work against the rest",
        "Training on the image is predicted to make the model worse at the others.",
    ),
    "memorised": (
        "Most dependent on having been trained on",
        "A ranking, of which there always is a first: images learned by heart stand here, if there are any.",
    ),
    "idle": (
        "Images that do nothing",
        "Whether the model was trained on the image or not is predicted to make no difference, even to the image.",
    ),
    "undecided": (
        "Nothing can be said",
        "The noise of the draws is as large as the numbers. Measure again with more draws (--num-draws).",
    ),
}

FAULTS = ("duplicates", "caption", "odd", "opponent")


@dataclass(frozen=True)
class Shown:
    """A picture beside a finding.

    Attributes:
        image: In [-1, 1], grey or RGB; None is the training image ``train_id``. [C, H, W]
        train_id: Whose training image it is, or is about.
        words: What it is, such as "made from its caption".
    """

    train_id: int | str
    words: str = ""
    image: Tensor | None = None


@dataclass(frozen=True)
class Finding:
    """Something about one training image or several.

    Attributes:
        kind: One of ``KINDS``.
        ids: The training images that it is about.
        sentence: What was found, in one sentence.
        value: The number behind it.
        error: Its standard error by the draws, at most; None where it has none.
        measures: What the number is.
        prediction: What retraining without the images is predicted to change.
        shown: Pictures beside the finding.
    """

    kind: str
    ids: tuple[int | str, ...]
    sentence: str
    value: float
    error: float | None
    measures: str
    prediction: str = ""
    shown: tuple[Shown, ...] = field(default=(), repr=False)

    def as_json(self) -> dict[str, Any]:
        """Return all but the pictures, as JSON values."""
        names = ("kind", "ids", "sentence", "value", "error", "measures", "prediction")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Check:
    """What ``journey.check`` found.

    Attributes:
        findings: In the order of ``KINDS``, the clearest of each kind first.
        ids: All training images, in the order of rows.
        numbers: Of every image by name, such as ``self_influence``. Each [num_train]
        notes: How it was measured, in sentences.
    """

    findings: tuple[Finding, ...]
    ids: Sequence[int | str]
    numbers: Mapping[str, Sequence[float]]
    notes: tuple[str, ...]

    def of_kind(self, kind: str) -> list[Finding]:
        """Return the findings of one kind.

        Raises:
            ValueError: If there is no such kind.
        """
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
        return [finding for finding in self.findings if finding.kind == kind]

    def summary(self) -> list[str]:
        """Return a line for each kind of finding, and one for each finding of duplicates, captions and odd images."""
        lines = []
        for kind, (heading, _) in KINDS.items():
            several = self.of_kind(kind)
            lines.append(f"{heading}: {len(several)}")
            if kind in FAULTS:
                lines += [f"  {', '.join(map(str, finding.ids[:6]))}: {finding.sentence}" for finding in several]
        return lines

    def save(self, out: Path) -> list[Path]:
        """Write ``findings.json`` with the numbers of every image, and ``findings.csv`` with a line per finding.

        Args:
            out: A folder that is there.

        Returns:
            The files.
        """
        told = {
            "findings": [finding.as_json() for finding in self.findings],
            "images": {"id": list(self.ids), **{name: list(values) for name, values in self.numbers.items()}},
            "notes": list(self.notes),
        }
        text = json.dumps(told, indent=1, allow_nan=False)
        publish(out / "findings.json", [text.encode() + b"\n"])
        rows: list[tuple[object, ...]] = [
            ("kind", "ids", "value", "standard_error", "measures", "sentence", "prediction")
        ]
        for finding in self.findings:
            error = "" if finding.error is None else float(f"{finding.error:.6g}")
            number = (float(f"{finding.value:.6g}"), error, finding.measures)
            about = (finding.sentence, finding.prediction)
            rows.append((finding.kind, " | ".join(map(str, finding.ids)), *number, *about))
        return [out / "findings.json", write_csv(out / "findings.csv", rows)]
