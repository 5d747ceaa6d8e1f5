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
from journey.files.fingerprint import canonical_json
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

FEWEST_CAPTIONS = 4  # different ones: of fewer the median is of two
_MISFIT = 0.95  # share of the usual gain that is lacking
_DRAWS = 4  # of each of two halves
_READS = 0.05  # where the model reads captions, they take so much off the loss of half of the images
_STRENGTHS = (0.0, 0.5)  # of an adapter


@dataclass(frozen=True, eq=False)
class CaptionFits:
    """How well each image goes with its own caption, the worst first.

    Attributes:
        ids: The images.
        lacks: Share of the usual gain from the own caption that is lacking: 0 for a caption that is as much better than
            others' as usual, 1 for one that is no better than others', float64. [num_train]
        errors: Standard errors by the draws, float64. [num_train]
        better: For each image the image whose caption fits best among those that were tried; None where that is its
            own.
        gain: By how much a caption usually lowers the loss, as a share of it: the median over images.
    """

    ids: Ids
    lacks: Tensor
    errors: Tensor
    better: list[int | str | None]
    gain: float

    @property
    def reads(self) -> bool:
        """Whether the model tells the captions of most images from others; if not, nothing can be said."""
        return self.gain >= _READS

    @property
    def misfits(self) -> list[int | str]:
        """The images whose own caption is no better than those of others."""
        if not self.reads:
            return []
        return [self.ids[i] for i in (self.lacks >= _MISFIT).nonzero().flatten().tolist()]


def misfit_captions(
    features: Features, dataset: Dataset, *, num_captions: int = 8, seed: int = 0, progress: bool = True
) -> CaptionFits:
    """Rank the images by how badly their captions fit.

    Every image is measured under its own caption and under those of other images, with the same noise. A model that was
    trained on a wrong caption has learned it. So the loss is that of the network without its adapter, and with half of
    it: the first knows things, the second also the style, and a caption must lack its gain under both. Without an
    adapter it is the trained network alone, which hides what it has learned by heart.

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
        ValueError: If the model is told nothing, ``num_captions`` is below 3, there are fewer than four images or
            different captions, or ``dataset`` lacks an image of the features.
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
    words = told_words(denoiser, dataset, [places[i] for i in ids])
    order = torch.Generator("cpu").manual_seed(derive_key(seed, "captions") >> 1)
    first: dict[str, int] = {}  # of each caption, in an order of chance
    for at in torch.randperm(len(ids), generator=order, dtype=torch.int64, device="cpu").tolist():
        first.setdefault(words[at], at)
    chosen = list(first.values())[: num_captions + 1]
    if len(chosen) < FEWEST_CAPTIONS:
        raise ValueError(
            f"dataset must have at least {FEWEST_CAPTIONS} different captions to compare them, got {len(chosen)}"
        )
    own = torch.tensor([[words[at] == word for at in chosen] for word in words], dtype=torch.bool, device="cpu")
    pool = _first_captions(encode_some(denoiser, dataset, [places[ids[i]] for i in chosen]))
    strengths = _STRENGTHS if _adapted(denoiser.network) else (1.0,)
    losses: list[list[Tensor]] = []
    with tqdm(total=len(strengths) * len(ids), unit="image", desc="captions", disable=not progress) as bar:
        for strength in strengths:
            losses.append([])
            with adapter_at(denoiser.network, strength):
                for position, i in enumerate(ids):
                    sample = encode_some(denoiser, dataset, [places[i]])
                    losses[-1].append(_losses(denoiser, sample, pool, position, seed))
                    bar.update()
    return _rank(ids, torch.stack([torch.stack(each) for each in losses]), chosen, own)


def told_words(denoiser: Denoiser, dataset: Dataset, positions: Sequence[int]) -> list[str]:
    """Return what the model is told of each image, as text by which equal captions are known."""
    return [canonical_json(denoiser.describe(dataset[at], f"dataset[{at}]")) for at in positions]


@contextmanager
def adapter_at(network: nn.Module, strength: float) -> Iterator[None]:
    """Let a network compute with its adapter at another strength for a while.

    Args:
        network: The network; one that has no adapter stays as it is.
        strength: Of the adapter: 0 is the base, 1 the network as it is; powers of two leave no rounding behind.

    Yields:
        Nothing.
    """
    untyped: Any = network
    if not _adapted(network) or strength == 1:
        yield
        return
    layers: list[Any] = [layer for layer in network.modules() if hasattr(layer, "scale_layer")]
    with exclusively(network):
        if strength == 0:
            untyped.disable_adapters()
        for layer in layers if strength else ():
            layer.scale_layer(strength)
        try:
            yield
        finally:
            if strength == 0:
                untyped.enable_adapters()
            for layer in layers if strength else ():
                layer.unscale_layer(strength)


def _adapted(network: nn.Module) -> bool:
    return bool(getattr(network, "peft_config", None)) and hasattr(network, "disable_adapters")


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


def _rank(ids: Ids, losses: Tensor, chosen: Sequence[int], equal: Tensor) -> CaptionFits:
    # losses: under the own caption, then under the pool's [num_strengths, num_train, 2, 1 + num_pool].
    # equal: which of the pool's captions are an image's own [num_train, num_pool].
    own = losses[..., 0]
    others = losses[..., 1:].masked_fill(equal[None, :, None], torch.nan)
    usual = others.nanmedian(3).values
    gains = 1 - own / usual  # [num_strengths, num_train, 2]
    median = gains.mean(2).median(1).values
    # The lesser lack of all strengths: what one of them does not miss is no fault.
    each = 1 - gains / median.clamp(min=_READS / 2)[:, None, None]
    lacks, which = each.mean(2).min(0)
    halves = each.gather(0, which[None, :, None].expand(1, -1, 2))[0]
    errors = (halves[:, 0] - halves[:, 1]).abs() / 2
    # One difference of halves is a poor estimate of one image's noise: no less than what is usual.
    errors = errors.clamp(min=errors.median().item())
    best = others.mean((0, 2)).nan_to_num(torch.inf).min(1)
    better = [
        ids[chosen[at]] if value < mine else None
        for at, value, mine in zip(best.indices.tolist(), best.values.tolist(), own.mean((0, 2)).tolist(), strict=True)
    ]
    order = torch.sort(lacks, descending=True, stable=True).indices
    places = order.tolist()
    return CaptionFits(
        [ids[i] for i in places], lacks[order], errors[order], [better[i] for i in places], median.min().item()
    )
