"""What all visitors of the app share: the model, the features, the training images. Nothing of it changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from journey.audit.kernel import check_pictures
from journey.data.ids import ids_of
from journey.data.items import Dataset
from journey.features.features import Features
from journey.models.denoiser import Denoiser
from journey.report.view import Captions, caption

# Captions are groups if so many images share each on average, and there are no more of them.
_LEAST_SHARED, _MOST_GROUPS = 3, 64


class Unseen:
    """Training images whose files are not there: each is grey, and known by its id alone.

    Args:
        features: Of the images.
    """

    def __init__(self, features: Features) -> None:
        self.ids = features.ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Tensor:
        return torch.zeros(1, 8, 8, dtype=torch.float32, device="cpu")


@dataclass(frozen=True, eq=False)
class Workbench:
    """What all visitors share.

    Attributes:
        features: The training images, from ``journey.featurize`` or ``journey.open_features``.
        dataset: The same images, to show them; ``Unseen`` where there are only their ids.
        labels: Their captions, looked up by dataset index.
        groups: Ids of training images by the name of a group.
        classifiers: Features whose transitions may be asked for, by name; see ``journey.transitions``.
        num_scored: Steps of a generation that are scored.
        seed: Names the noises of scores.

    Raises:
        ValueError: If the model is one of videos or sounds.
    """

    features: Features
    dataset: Dataset
    labels: Captions | None = None
    groups: Mapping[str, Sequence[int | str]] = field(default_factory=dict)
    classifiers: Mapping[str, Callable[[Tensor], Any]] = field(default_factory=dict)
    num_scored: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse a model of what cannot be painted on."""
        check_pictures(self.denoiser)

    @property
    def denoiser(self) -> Denoiser:
        """The model."""
        return self.features.featurizer.denoiser

    @cached_property
    def told(self) -> Literal["prompt", "label"] | None:
        """In which form the model is told what to show; None for an unconditional one."""
        with suppress(TypeError):
            self.denoiser.encode_prompt([""])
            return "prompt"
        with suppress(TypeError):
            self.denoiser.encode_labels([0])
            return "label"
        return None

    def prepare(self) -> None:
        """Do once what the first question would wait for: the solver of queries, and all rows read and checked."""
        dim = self.features.store.manifest.proj_dim
        for number in range(len(self.features.checkpoints)):
            zero = torch.zeros(1, dim, dtype=torch.float32, device=self.denoiser.device)
            self.features.fit.gram(number).solve(zero, 1.0)
            for _ in self.features.shards(number):
                pass


def groups_of_captions(features: Features, dataset: Dataset, labels: Captions) -> dict[str, list[int | str]]:
    """Return the images of each caption as groups, where captions are few and shared, as names of classes are.

    Args:
        features: Of the images that count.
        dataset: The training images.
        labels: Their captions.

    Returns:
        The ids by caption, the largest group first; empty where nearly every image has a caption of its own.
    """
    known = set(features.ids)
    words = {i: caption(labels, place, "labels") for place, i in enumerate(ids_of(dataset)) if i in known}
    counts = Counter(word for word in words.values() if word.strip())
    if not 2 <= len(counts) <= _MOST_GROUPS or counts.total() < _LEAST_SHARED * len(counts):
        return {}
    groups: dict[str, list[int | str]] = {word: [] for word, _ in counts.most_common()}
    for train_id, word in words.items():
        if word in groups:
            groups[word].append(train_id)
    return groups
