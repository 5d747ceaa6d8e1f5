"""Captions as conditions, for every family of models that reads text."""

from __future__ import annotations

from typing import Any

from journey.data.items import captions_of
from journey.models.condition import Condition
from journey.models.denoiser import Denoiser


class TextDenoiser(Denoiser):
    """A denoiser that is told a caption; an item of the dataset has one or several."""

    def null_condition(self) -> Condition:
        """Return the condition of the empty prompt, as the pipelines' guidance uses it. One row."""
        return self.encode_negative([""])

    def encode_conditions(self, items: list[Any], names: list[str]) -> tuple[Condition, list[int]]:
        """Return one row per caption, and how many captions each item has."""
        captions = [captions_of(item, name) for item, name in zip(items, names, strict=True)]
        flat = [caption for several in captions for caption in several]
        return self.encode_prompt(flat), [len(several) for several in captions]

    def describe(self, item: Any, name: str) -> Any:
        """Return the captions of an item, for the dataset's fingerprint."""
        return captions_of(item, name)
