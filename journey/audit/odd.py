"""Training images that do not belong: neither what the others teach nor training itself helps much with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from tqdm.auto import tqdm

from journey.audit.adapter import has_adapter, without_adapter
from journey.audit.captions import CaptionFits
from journey.data.ids import Ids, ids_of, positions_of
from journey.data.items import Dataset
from journey.features.features import Features
from journey.measure.batch import measure_values
from journey.measure.draws import Draws, ExplicitDraws
from journey.measure.measurements import TrainingLoss
from journey.models.denoiser import Denoiser
from journey.models.encoding import encode_some
from journey.ops.noise import query_noise
from journey.scores.queries import check_features

_OUTLIER = 3.0  # robust standard deviations
_LOW = 0.5  # share of the timesteps, those of least noise
_DRAWS = 20  # antithetic pairs at as many timesteps as there are pairs, the same for all images
_AT_ONCE = 8  # images that are encoded together


@dataclass(frozen=True, eq=False)
class Oddness:
    """How far each training image is from the others, the oddest first.

    Attributes:
        ids: The images.
        values: Robust standard deviations from the median, float64. [num_train]
    """

    ids: Ids
    values: Tensor

    MEASURES: ClassVar[str] = "how badly it goes with the others, in robust standard deviations"

    @property
    def outliers(self) -> list[int | str]:
        """The images that stand apart."""
        return [self.ids[i] for i in (self.values > _OUTLIER).nonzero().flatten().tolist()]


def odd_images(
    features: Features,
    dataset: Dataset,
    *,
    fits: CaptionFits | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Oddness:
    """Rank the training images by how little training, and the others, prepared the model for them.

    The mean of some numbers, each in robust standard deviations from the median, and again in its own:

    - the logarithm of the loss at the less noisy half of the timesteps, where it is about how a picture is drawn more
      than about what it shows;
    - with an adapter, the logarithm of the share of the base's loss that is left;
    - where captions were judged, how badly the image goes with its own, unless that was exchanged with another's;
    - reversed, the mean cosine of the row with the others' rows, without the Gram matrix, which knows an outlier's own
      gradients and hides it in part.

    Args:
        features: The training images.
        dataset: The same images.
        fits: What ``misfit_captions`` found.
        seed: Names the noise.
        progress: Show a progress bar.

    Returns:
        The ranking. It takes twenty passes of the network for each image, with an adapter twice as many.

    Raises:
        TypeError: If ``features`` is a path.
        ValueError: If ``dataset`` lacks an image of the features, or a loss is NaN or infinite.
    """
    check_features(features)
    denoiser, ids = features.featurizer.denoiser, features.ids
    places = positions_of(ids_of(dataset))
    missing = [i for i in ids if i not in places]
    if missing:
        raise ValueError(f"dataset must hold all images of the features, got none of id {missing[0]!r}")
    losses = _losses(denoiser, dataset, [places[i] for i in ids], seed, progress)
    for i, finite in zip(ids, losses.isfinite().all(0).tolist(), strict=True):
        if not finite:
            raise ValueError(f"the loss of image {i!r} is NaN or infinite; it cannot be compared with others")
    after, *base = losses.clamp(min=torch.finfo(torch.float32).tiny).log()
    parts = [_robust(part) for part in (after, *(after - before for before in base), -_likeness(features))]
    if fits is not None and fits.reads:
        parts.append(_of_captions(fits, ids))
    values = _robust(torch.stack(parts).mean(0))
    order = torch.sort(values, descending=True, stable=True).indices
    return Oddness([ids[i] for i in order.tolist()], values[order])


def _losses(denoiser: Denoiser, dataset: Dataset, positions: list[int], seed: int, progress: bool) -> Tensor:
    """Losses at little noise, after training and, where there is an adapter, of the base. [1 or 2, num_train]"""
    found: list[list[Tensor]] = [[], []] if has_adapter(denoiser.network) else [[]]
    with torch.no_grad(), tqdm(total=len(positions), unit="image", desc="odd images", disable=not progress) as bar:
        for start in range(0, len(positions), _AT_ONCE):
            some = encode_some(denoiser, dataset, positions[start : start + _AT_ONCE])
            draws = _low(denoiser, tuple(some.x0.shape[1:]), seed)
            found[0].append(measure_values(denoiser, some, draws=draws, measurement=TrainingLoss())[:, 0])
            for base in found[1:]:
                with without_adapter(denoiser.network):
                    base.append(measure_values(denoiser, some, draws=draws, measurement=TrainingLoss())[:, 0])
            bar.update(len(some))
    return torch.stack([torch.cat(each) for each in found]).double()


def _low(denoiser: Denoiser, shape: tuple[int, ...], seed: int) -> Draws:
    """The same timesteps of little noise, and the same noises, for all images."""
    pairs = _DRAWS // 2
    middles = (torch.arange(pairs, dtype=torch.float64, device="cpu") + 0.5) / pairs
    times = (middles * _LOW * denoiser.num_train_timesteps).long().repeat_interleave(2)
    noise = query_noise(seed, [0], 0, _DRAWS, shape, torch.device("cpu"))
    return ExplicitDraws(times, noise[0])


def _likeness(features: Features) -> Tensor:
    """Mean cosine of each row with the others', without the Gram matrix. [num_train]"""
    means = []
    for number in range(len(features.checkpoints)):
        rows = features.matrix(number).double()
        units = rows / rows.norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
        means.append((units @ units.sum(0) - 1) / (len(rows) - 1))
    return torch.stack(means).mean(0)


def _of_captions(fits: CaptionFits, ids: Ids) -> Tensor:
    """How badly each image goes with its caption, in robust standard deviations. [num_train]"""
    rows = positions_of(fits.ids)
    lacks = _robust(fits.lacks)[torch.tensor([rows[i] for i in ids], dtype=torch.int64, device="cpu")]
    exchanged = {i for pair in fits.exchanged for i in pair.ids}  # a fault of the caption, not of the image
    lacks[torch.tensor([i in exchanged for i in ids], dtype=torch.bool, device="cpu")] = 0
    return lacks


def _robust(values: Tensor) -> Tensor:
    """Deviations from the median, in robust standard deviations. [num_train]"""
    away = values - values.median()
    deviation = 1.4826 * away.abs().median()
    return away / deviation if deviation > 0 else torch.zeros_like(away)
