"""Captions as conditions, for every family of models that reads text."""

from __future__ import annotations

from typing import Any

import torch

from journey.data.items import captions_of
from journey.data.numbers import as_tensor
from journey.files.fingerprint import fingerprint_tensors
from journey.models.condition import Condition
from journey.models.denoiser import Denoiser


class TextDenoiser(Denoiser):
    """A denoiser that is told a caption; an item of the dataset has one or several.

    Where the pipeline's text encoders were dropped, an item carries what they made of its caption, under the names of
    ``embeddings`` and without a batch dimension.
    """

    # What is made of a caption, and what in the pipeline makes it.
    embeddings: tuple[str, ...] = ("encoder_hidden_states", "pooled_projections")
    encoders: tuple[str, ...] = ("text_encoder", "text_encoder_2")
    pipeline: Any

    @property
    def text_device(self) -> torch.device:
        """Where the text encoders are.

        Raises:
            ValueError: If one was dropped.
        """
        absent = self._dropped
        if absent:
            raise ValueError(
                f"{', '.join(absent)} of the pipeline must be there to read a prompt, got None: give it back, or ready "
                f"embeddings instead, {' and '.join(self.embeddings)} in a Condition or in each item of the dataset, "
                "and a guidance_scale of 1"
            )
        device: torch.device = getattr(self.pipeline, self.encoders[0]).device
        return device

    @property
    def _dropped(self) -> list[str]:
        """The encoders that are not there."""
        return [name for name in self.encoders if getattr(self.pipeline, name, None) is None]

    def null_condition(self) -> Condition:
        """Return the condition of the empty prompt, as the pipelines' guidance uses it. One row."""
        return self.encode_negative([""])

    def encode_conditions(self, items: list[Any], names: list[str]) -> tuple[Condition, list[int]]:
        """Return one row per caption, and how many captions each item has."""
        if self._dropped:
            rows = [self._ready(item, name) for item, name in zip(items, names, strict=True)]
            return self.with_guidance(Condition.cat(rows), self.default_guidance)[0], [1] * len(items)
        captions = [captions_of(item, name) for item, name in zip(items, names, strict=True)]
        flat = [caption for several in captions for caption in several]
        return self.encode_prompt(flat), [len(several) for several in captions]

    def describe(self, item: Any, name: str) -> Any:
        """Return the captions of an item, or what stands for its ready embeddings, by which items are told apart."""
        if self._dropped:
            return fingerprint_tensors(dict(self._ready(item, name).tensors))
        return captions_of(item, name)

    def _ready(self, item: Any, name: str) -> Condition:
        """The embeddings that an item carries, as one row."""
        absent = [part for part in self.embeddings if not isinstance(item, dict) or part not in item]
        if absent:
            raise ValueError(
                f"{name} must carry {' and '.join(absent)}, for {', '.join(self._dropped)} of the pipeline is None and "
                "cannot read its caption"
            )
        return Condition({part: as_tensor(item[part]).unsqueeze(0) for part in self.embeddings})
