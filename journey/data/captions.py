"""Captions in files beside the images, ``a.txt`` or ``a.caption`` for ``a.png``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from journey.data.items import CAPTION_KEYS, captions_of
from journey.data.listing import first_names, read_text

_SUFFIXES = (".txt", ".caption")


def caption_files(images: Sequence[Path], others: Sequence[Path]) -> dict[Path, list[Path]]:
    """Return the files that hold the caption of an image, for each image that has some."""
    beside: dict[Path, list[Path]] = {}
    for path in others:
        if path.suffix.lower() in _SUFFIXES:
            beside.setdefault(path.with_suffix(""), []).append(path)
    if not beside:
        return {}
    return {image: beside[stem] for image in images if (stem := image.with_suffix("")) in beside}


def add_captions(
    root: Path,
    told: Mapping[Path, dict[str, Any]],
    files: Mapping[Path, Sequence[Path]],
    images: Sequence[Path],
) -> dict[Path, dict[str, Any]]:
    """Add what caption files tell to what metadata told, under ``text``. A caption is a whole file, stripped.

    Args:
        root: The folder of the dataset.
        told: What its metadata tells.
        files: The caption files of each image that has some, at least one.
        images: All images.

    Returns:
        What is told of each image; all have a caption.

    Raises:
        ValueError: If an image has no caption, or two that differ; or a file is not UTF-8.
    """
    added = dict(told)
    for image, several in files.items():
        captions = {str(file): [read_text(file).strip()] for file in several}
        record = told.get(image, {})
        if in_metadata := any(key in record for key in CAPTION_KEYS):
            captions["the metadata"] = [caption.strip() for caption in captions_of(record, str(image))]
        (first, caption), *others = captions.items()
        for other, words in others:
            if words != caption:
                raise ValueError(f"{first} and {other} tell different captions of {image}; keep one of them")
        if not in_metadata:
            added[image] = {**record, "text": caption[0]}
    bare = [image for image in images if not any(key in added.get(image, {}) for key in CAPTION_KEYS)]
    if bare:
        raise ValueError(
            f"{len(bare)} of {len(images)} images in {root} have no caption file beside them, where others have: "
            f"{first_names(root, bare)}; write the files, empty for an empty caption"
        )
    return added
