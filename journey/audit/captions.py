"""Captions that do not fit their images: what the model expects from a caption alone, beside the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from journey.audit.adapter import without_adapter
from journey.audit.kernel import check_pictures
from journey.audit.similarity import grey
from journey.data.ids import Ids, ids_of, positions_of
from journey.data.items import Dataset, get_image
from journey.features.features import Features
from journey.files.fingerprint import canonical_json
from journey.models.condition import Condition
from journey.models.denoiser import Denoiser
from journey.models.encoding import encode_some
from journey.ops.noise import query_noise
from journey.scores.queries import check_features

FEWEST_CAPTIONS = 4  # different ones: of fewer the median is of two
_DRAWS = 4  # of each of two halves
_READS = 1.0  # standard deviations by which the own caption fits better than others' where the model reads
_EXCHANGE = 0.25  # share of the usual fit that two images gain on the mean by changing captions
_EACH = 0.1  # and each of them
_AT_ONCE = 8  # captions that are encoded and predicted together
_BLOCK = 256  # images whose pairs with all are in memory


@dataclass(frozen=True)
class Exchange:
    """Two images each of which the caption of the other fits better.

    Attributes:
        ids: The images.
        gain: Mean fit that they gain by changing captions, as a share of the usual fit: 2 where both captions are as
            good on the other image as captions usually are, and on their own as bad as good ones are good.
        error: Its standard error by the draws.
    """

    ids: tuple[int | str, int | str]
    gain: float
    error: float


@dataclass(frozen=True, eq=False)
class CaptionFits:
    """How well each image goes with its own caption, the worst first.

    Attributes:
        ids: The images.
        lacks: Share of the usual fit of the own caption that is lacking: 0 for a caption that fits as usual, 1 for one
            that fits no better than the mean of all captions, float64. [num_train]
        errors: Standard errors by the draws, float64. [num_train]
        better: For each image the image whose caption fits best; None where none fits better than its own.
        exchanged: Pairs that seem to have each other's captions, the clearest first; an image is in one at most.
        usual: Median fit of the own captions, in standard deviations of the fits of others'.
    """

    ids: Ids
    lacks: Tensor
    errors: Tensor
    better: list[int | str | None]
    exchanged: list[Exchange]
    usual: float

    @property
    def reads(self) -> bool:
        """Whether the model expects from most captions what their images show; if not, nothing can be said."""
        return self.usual >= _READS

    @property
    def misfits(self) -> list[int | str]:
        """The images whose own caption fits no better than the mean of all."""
        return [self.ids[i] for i in (self.lacks >= 1).nonzero().flatten().tolist()] if self.reads else []


def misfit_captions(features: Features, dataset: Dataset, *, seed: int = 0, progress: bool = True) -> CaptionFits:
    """Rank the images by how badly their captions fit.

    At the largest timestep there is nothing but noise, and the clean image that the model predicts is what it expects
    from the caption. Fit is the correlation of that picture with the image, both grey and less the means of their kind:
    an image that is near to all, or a caption that is, says nothing. A LoRA was trained on the captions, wrong ones
    too, and has learned them; so the model predicts without its adapter. Of its style correlations of grey pictures
    see little. Without an adapter it is the trained model, which hides what it has learned by heart.

    Args:
        features: The training images, whose model reads captions or classes.
        dataset: The same images, with their captions; of several of an image the first counts.
        seed: Names the noise.
        progress: Show a progress bar.

    Returns:
        The ranking. It takes eight passes of the network for each different caption; memory holds a picture of at
        most 64 pixels a side for each image and each caption.

    Raises:
        TypeError: If ``features`` is a path.
        ValueError: If the model is told nothing or makes no images, there are fewer than four images or different
            captions, ``dataset`` lacks an image of the features, or a prediction is NaN or infinite.
    """
    check_features(features)
    denoiser, ids = features.featurizer.denoiser, features.ids
    check_pictures(denoiser)
    places = positions_of(ids_of(dataset))
    missing = [i for i in ids if i not in places]
    if missing:
        raise ValueError(f"dataset must hold all images of the features, got none of id {missing[0]!r}")
    positions = [places[i] for i in ids]
    first: dict[str, int] = {}  # position of each different caption
    words = told_words(denoiser, dataset, positions)
    for position, word in zip(positions, words, strict=True):
        first.setdefault(word, position)
    if len(first) < FEWEST_CAPTIONS:
        raise ValueError(
            f"dataset must have at least {FEWEST_CAPTIONS} different captions to compare them, got {len(first)}"
        )
    with without_adapter(denoiser.network):
        expected = _expected(denoiser, dataset, list(first.values()), seed, progress)
    own = dict(zip(first, range(len(first)), strict=True))
    told = torch.tensor([own[word] for word in words], dtype=torch.int64, device="cpu")
    size = tuple(expected.shape[-2:])
    pictures = (grey(get_image(dataset, at)[None]) for at in positions)
    images = _directions(torch.cat([F.interpolate(picture, size, mode="area") for picture in pictures]))
    halves = [_directions(half)[told] for half in expected]
    return _rank(ids, images, halves, _directions(expected.mean(0))[told], told)


def told_words(denoiser: Denoiser, dataset: Dataset, positions: Sequence[int]) -> list[str]:
    """Return what the model is told of each image, as text by which equal captions are known."""
    return [canonical_json(denoiser.describe(dataset[at], f"dataset[{at}]")) for at in positions]


def _expected(denoiser: Denoiser, dataset: Dataset, positions: Sequence[int], seed: int, progress: bool) -> Tensor:
    """Grey pictures that the model expects from captions, by halves of the draws. [2, num_captions, 1, h, w]"""
    pictures = []
    with torch.no_grad(), tqdm(total=len(positions), unit="caption", desc="captions", disable=not progress) as bar:
        for start in range(0, len(positions), _AT_ONCE):
            some = encode_some(denoiser, dataset, positions[start : start + _AT_ONCE])
            if some.condition is None:
                raise ValueError("features must be of a model that is told captions or classes; this one is not")
            told = some.conditions(torch.zeros(len(some), 1, dtype=torch.int64, device="cpu"))
            assert told is not None
            predicted = _from_noise(denoiser, told, tuple(some.x0.shape[1:]), seed)
            if not predicted.isfinite().all():
                raise ValueError(
                    "the model predicts NaN or infinity of noise under a caption; captions cannot be judged"
                )
            pictures.append(torch.stack([grey(denoiser.decode(half).cpu()) for half in predicted]))
            bar.update(len(some))
    return torch.cat(pictures, 1)


def _from_noise(denoiser: Denoiser, told: Condition, shape: tuple[int, ...], seed: int) -> Tensor:
    """Mean clean images predicted of the same noises under each caption, by halves. [2, num_captions, C, H, W]"""
    device, count = denoiser.device, len(told)
    last = denoiser.num_train_timesteps - 1
    noises = query_noise(seed, [0], last, 2 * _DRAWS, shape, device)[0]
    times = torch.full((count,), last, dtype=torch.int64, device=device)
    sums = torch.zeros(2, count, *shape, dtype=torch.float32, device=device)
    condition = told.to(device)
    for draw, noise in enumerate(noises):
        x_t = denoiser.add_noise(torch.zeros_like(sums[0]), noise.expand(count, *shape), times)
        sums[draw // _DRAWS] += denoiser.schedule.x0_from(denoiser.predict(x_t, times, condition), x_t, times)
    return sums / _DRAWS


def _directions(pictures: Tensor) -> Tensor:
    """Grey pictures as vectors of length 1 of which the mean is taken off, float32. [num, h * w]"""
    # Means are taken off before, so that what all pictures have in common does not count, and after, so that products
    # of these vectors are correlations less the effects of their rows and columns.
    flat = pictures.flatten(1)
    flat = flat - flat.mean(1, keepdim=True)
    flat = F.normalize(flat - flat.mean(0), dim=1)
    return (flat - flat.mean(0)).float()


def _rank(ids: Ids, images: Tensor, halves: Sequence[Tensor], expected: Tensor, told: Tensor) -> CaptionFits:
    # images, halves, expected: directions of each image and of its own caption. [num_train, h * w]
    # told: number of its caption, equal for equal ones. [num_train]
    own = (images * expected).sum(1).double()
    best, spread = [], []
    for rows in torch.arange(len(ids), dtype=torch.int64, device="cpu").split(_BLOCK):
        fits = (images[rows] @ expected.T).double()
        others = told[rows, None] != told
        spread.append((fits.square() * others).sum() / others.sum())
        best.append(fits.argmax(1))
    deviation = torch.stack(spread).mean().sqrt().item()
    usual = own.median().item()
    scale = max(usual, torch.finfo(torch.float32).tiny)
    lacks = 1 - own / scale
    apart = (images * (halves[0] - halves[1])).sum(1).double().abs() / 2 / scale
    # One difference of halves is a poor estimate of one image's noise: no less than what is usual.
    errors = apart.clamp(min=apart.median().item())
    better = [None if told[at] == told[i] else ids[int(at)] for i, at in enumerate(torch.cat(best))]
    order = torch.sort(lacks, descending=True, stable=True).indices
    places = order.tolist()
    reads = deviation > 0 and usual >= _READS * deviation
    return CaptionFits(
        [ids[i] for i in places],
        lacks[order],
        errors[order],
        [better[i] for i in places],
        _exchanged(ids, images, expected, own, scale, errors) if reads else [],
        usual / deviation if deviation > 0 else 0.0,
    )


def _exchanged(ids: Ids, images: Tensor, expected: Tensor, own: Tensor, usual: float, errors: Tensor) -> list[Exchange]:
    """Pairs of which both gain by changing captions, the most first, no image twice."""
    found = []
    for rows in torch.arange(len(ids), dtype=torch.int64, device="cpu").split(_BLOCK):
        gains = ((images[rows] @ expected.T).double() - own[rows, None]) / usual  # of the row's image
        theirs = ((images @ expected[rows].T).T.double() - own) / usual  # of the column's
        means = (gains + theirs) / 2
        clear = (means >= _EXCHANGE) & (torch.minimum(gains, theirs) >= _EACH)
        found += [
            (means[row, j].item(), int(rows[row]), j) for row, j in clear.nonzero().tolist() if j > int(rows[row])
        ]
    pairs, taken = [], set[int]()
    for gain, i, j in sorted(found, key=lambda pair: (-pair[0], pair[1:])):
        if not taken & {i, j}:
            taken |= {i, j}
            pairs.append(Exchange((ids[i], ids[j]), gain, torch.hypot(errors[i], errors[j]).item() / 2))
    return pairs
