"""Captions that do not fit their images: the loss of an image under its own caption, beside that under others'."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from journey.data.ids import Ids, ids_of, positions_of
from journey.data.items import Dataset
from journey.features.features import Features
from journey.locks import exclusively
from journey.measure.batch import measure_values
from journey.measure.draws import StratifiedDraws
from journey.measure.measurements import TrainingLoss
from journey.measure.shared_draws import SharedDraws
from journey.models.condition import Condition, Encoded
from journey.models.denoiser import Denoiser
from journey.models.encoding import encode_some
from journey.ops.keys import derive_key
from journey.scores.queries import check_features

MISFIT = 0.0
_DRAWS = 10  # of each of two halves
_READS = -0.5  # where the model reads captions, half of the images are better with their own by so much


@dataclass(frozen=True, eq=False)
class CaptionFits:
    """How well each image goes with its own caption, the worst first.

    Attributes:
        ids: The images.
        fits: ``(loss under the own caption - mean under others) / standard deviation over others``, float64: about -2
            for a caption that fits, 0 for one that is as good as any other. [num_train]
        errors: Standard errors by the draws, float64. [num_train]
        better: For each image the image whose caption fits best among those that were tried; None where that is its
            own.
        reads: Whether the model tells the captions of most images from others; if not, nothing can be said.
    """

    ids: Ids
    fits: Tensor
    errors: Tensor
    better: list[int | str | None]
    reads: bool

    @property
    def misfits(self) -> list[int | str]:
        """The images whose own caption is no better than others, by more than the noise of the draws."""
        if not self.reads:
            return []
        return [self.ids[i] for i in (self.fits - self.errors > MISFIT).nonzero().flatten().tolist()]


def misfit_captions(
    features: Features, dataset: Dataset, *, num_captions: int = 24, seed: int = 0, progress: bool = True
) -> CaptionFits:
    """Rank the images by how badly their captions fit.

    Every image is measured under its own caption and under those of other images, with the same noise. A model that was
    trained on a wrong caption has learned it; so the loss is that of the network without its adapter, where it has one.
    Without an adapter it is the trained network, which hides what it has learned by heart.

    Args:
        features: The training images, whose model reads captions or classes.
        dataset: The same images, with their captions.
        num_captions: Captions of others that each image is tried with, at most; taken at random, the same for all.
        seed: Names captions and noise.
        progress: Show a progress bar.

    Returns:
        The ranking.

    Raises:
        TypeError: If ``features`` is a path.
        ValueError: If the model is told nothing, ``num_captions`` is below 3, there are fewer than four images, or
            ``dataset`` lacks an image of the features.
    """
    check_features(features)
    denoiser, ids = features.featurizer.denoiser, features.ids
    places = positions_of(ids_of(dataset))
    missing = [i for i in ids if i not in places]
    if missing:
        raise ValueError(f"dataset must hold all images of the features, got none of id {missing[0]!r}")
    if num_captions < 3 or len(ids) < 4:
        raise ValueError(
            f"num_captions must be at least 3, of at least four images, got {num_captions} and {len(ids)} images"
        )
    order = torch.Generator("cpu").manual_seed(derive_key(seed, "captions") >> 1)
    chosen = torch.randperm(len(ids), generator=order, dtype=torch.int64, device="cpu")[: num_captions + 1].tolist()
    pool = _first_captions(encode_some(denoiser, dataset, [places[ids[i]] for i in chosen]))
    losses = []
    with without_adapter(denoiser.network):
        for position, i in enumerate(tqdm(ids, unit="image", desc="captions", disable=not progress)):
            sample = encode_some(denoiser, dataset, [places[i]])
            losses.append(_losses(denoiser, sample, pool, position, seed))
    return _rank(ids, torch.stack(losses), chosen)


@contextmanager
def without_adapter(network: nn.Module) -> Iterator[None]:
    """Let a network compute without its adapters for a while; one that has none stays as it is."""
    untyped: Any = network
    if not getattr(network, "peft_config", None) or not hasattr(network, "disable_adapters"):
        yield
        return
    with exclusively(network):
        untyped.disable_adapters()
        try:
            yield
        finally:
            untyped.enable_adapters()


def _first_captions(samples: Encoded) -> Condition:
    """The first caption of each sample, one row each."""
    if samples.condition is None:
        raise ValueError("features must be of a model that is told something, captions or classes; this one is not")
    firsts = torch.zeros(len(samples), 1, dtype=torch.int64, device="cpu")
    told = samples.conditions(firsts)
    assert told is not None
    return told


def _losses(denoiser: Denoiser, sample: Encoded, pool: Condition, position: int, seed: int) -> Tensor:
    """Losses under the own caption, then under those of the pool, by halves of the draws. [2, 1 + len(pool)]"""
    told = Condition.cat([_first_captions(sample), pool])
    together = Encoded.single(sample.x0.expand(len(told), -1, -1, -1), told)
    return torch.stack(
        [
            measure_values(
                denoiser,
                together,
                draws=SharedDraws(StratifiedDraws(_DRAWS, seed=derive_key(seed, "caption draws", position, half))),
                measurement=TrainingLoss(),
            )[:, 0].double()
            for half in range(2)
        ]
    )


def _rank(ids: Ids, losses: Tensor, chosen: Sequence[int]) -> CaptionFits:
    """Rank images by losses [num_train, 2, 1 + num_pool] under their own caption and those of the pool."""
    own, others = losses[:, :, :1], losses[:, :, 1:].clone()
    for column, row in enumerate(chosen):
        others[row, :, column] = torch.nan  # its own caption is none of the others'
    count = (~others.isnan()).sum(2)
    centre = others.nanmean(2)
    spread = ((others - centre[..., None]).square().nansum(2) / (count - 1)).mean(1, keepdim=True).sqrt()
    halves = (own[..., 0] - centre) / spread.clamp(min=torch.finfo(torch.float64).tiny)
    fits, errors = halves.mean(1), (halves[:, 0] - halves[:, 1]).abs() / 2
    # One difference of halves is a poor estimate of one image's noise: no less than what is usual.
    errors = errors.clamp(min=errors.square().mean().sqrt().item())
    best = others.mean(1).nan_to_num(torch.inf).min(1)
    better = [
        ids[chosen[at]] if value < mine else None
        for at, value, mine in zip(best.indices.tolist(), best.values.tolist(), own.mean((1, 2)).tolist(), strict=True)
    ]
    order = torch.sort(fits, descending=True, stable=True).indices
    places = order.tolist()
    return CaptionFits(
        [ids[i] for i in places],
        fits[order],
        errors[order],
        [better[i] for i in places],
        bool(fits.median() < _READS),
    )
