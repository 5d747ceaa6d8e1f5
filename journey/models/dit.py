"""DiT: a class-conditional transformer on VAE latents."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from journey.data.items import label_of
from journey.models.condition import Condition
from journey.models.latent import LatentDenoiser


class DiT(LatentDenoiser):
    """The transformer of a ``DiTPipeline``, told ``class_labels``.

    Where it also predicts a variance, the first half of its output channels is the prediction.

    Args:
        pipeline: The pipeline, in eval mode.
        latents: See ``LatentDenoiser``.
        seed: See ``LatentDenoiser``.

    Raises:
        ValueError: If a part is in train mode.

    Reference:
        Peebles and Xie, "Scalable Diffusion Models with Transformers", ICCV 2023.
    """

    default_guidance = 4.0

    def __init__(self, pipeline: Any, *, latents: str = "mean", seed: int = 0) -> None:
        super().__init__(pipeline, pipeline.transformer, latents=latents, seed=seed)

    @property
    def num_classes(self) -> int:
        """Number of classes; the label after the last means none."""
        return int(self.config.num_embeds_ada_norm)

    def encode_labels(self, labels: list[int]) -> Condition:
        """Return the condition of some class labels, one row each.

        Raises:
            ValueError: If a label is not a class.
        """
        wrong = [label for label in labels if not 0 <= label < self.num_classes]
        if wrong:
            raise ValueError(f"class_labels must be in [0, {self.num_classes}), got {wrong[:3]}")
        return Condition({"class_labels": torch.tensor(labels, dtype=torch.int64, device="cpu")})

    def null_condition(self) -> Condition:
        """Return the label that stood for none in training, one row."""
        return Condition({"class_labels": torch.tensor([self.num_classes], dtype=torch.int64, device="cpu")})

    def encode_conditions(self, items: list[Any], names: list[str]) -> tuple[Condition, list[int]]:
        """Return the label of each item."""
        labels = [label_of(item, name) for item, name in zip(items, names, strict=True)]
        return self.encode_labels(labels), [1] * len(items)

    def describe(self, item: Any, name: str) -> Any:
        """Return the label of an item, by which items are told apart."""
        return label_of(item, name)

    def _call(self, x_t: Tensor, times: Tensor, condition: Condition | None) -> Tensor:
        labels = self._told(condition)["class_labels"]
        wrong = [label for label in labels.tolist() if not 0 <= label <= self.num_classes]
        if wrong:
            raise ValueError(f"condition must have class labels in 0..{self.num_classes}, got {wrong[:3]}")
        output: Tensor = self.network(x_t, timestep=times, class_labels=labels).sample
        return output[:, : x_t.shape[1]]
