"""A batch of encoded images at its draws: its gradients as features, or its values without gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from journey.data.ids import Ids
from journey.measure.draws import Draws
from journey.measure.featurizer import Featurizer
from journey.measure.measurements import Measurement, Prediction
from journey.models.condition import Condition, Encoded
from journey.models.denoiser import Denoiser
from journey.models.encoding import choose_captions

# Rows that go through the network at once, fewer of large images: so many that they have 2**20 entries, 64 of 4x64x64.
_ROWS_PER_BATCH = 512
_ENTRIES_PER_BATCH = 2**20


class Drawn(NamedTuple):
    """What some images are measured with, named as the arguments of ``Featurizer.features``.

    Attributes:
        timesteps: int64. [num_samples, bins, num_draws]
        noise: float32. [num_samples, bins, num_draws, C, H, W]
        condition: What the network is told, one row per image and draw in this order, or one per image; None for an
            unconditional model.
        weights: See ``Draws.row_weights``. [num_samples, bins, num_draws]
    """

    timesteps: Tensor
    noise: Tensor
    condition: Condition | None
    weights: Tensor | None

    def in_groups(self, count: int, together: int) -> Drawn:
        """Return the draws of one bin as several bins, dealt out by turns.

        Args:
            count: How many bins; divides the draws.
            together: Neighbouring draws that stay together.
        """
        timesteps, noise, told, weights = self
        draws = timesteps.shape[2]
        order = torch.arange(draws, dtype=torch.int64, device="cpu").view(-1, count, together)
        order = order.transpose(0, 1).reshape(count, -1)
        if told is not None and len(told) == timesteps.numel():
            rows = torch.arange(len(told), dtype=torch.int64, device="cpu").view(-1, draws)[:, order.flatten()]
            told = told.select(rows.flatten())
        grouped = None if weights is None else weights[:, 0, order]
        return Drawn(timesteps[:, 0, order], noise[:, 0, order.to(noise.device)], told, grouped)

    def apart(self, count: int) -> Drawn:
        """Return the first draws of one image, each as that of an image of its own."""
        timesteps, noise, told, weights = self
        return Drawn(
            timesteps.view(-1, 1, 1)[:count],
            noise.flatten(0, 2)[:count, None, None],
            None if told is None else told.select(slice(0, count)),
            None if weights is None else weights.view(-1, 1, 1)[:count],
        )


class Measured(NamedTuple):
    """Some images, measured.

    Attributes:
        features: Projected gradients, float32. [num_samples, bins, proj_dim]
        norm: Norm of the whole-range feature. float32 [num_samples]
        noise: Norm of half the difference of the whole-range features of two disjoint halves of the draws: the standard
            error of the row, at most, since the halves are of other timesteps too; NaN of fewer than two independent
            draws. float32 [num_samples]
        values: Mean measurements, float32. [num_samples, bins]
    """

    features: Tensor
    norm: Tensor
    noise: Tensor
    values: Tensor


def measure_batch(featurizer: Featurizer, draws: Draws, samples: Encoded, ids: Ids, *, check: bool = False) -> Measured:
    """Measure some images.

    Args:
        featurizer: Measures.
        draws: Timesteps and noise.
        samples: The images as the network takes them.
        ids: Their ids.
        check: As for ``Featurizer.features``.

    Returns:
        Their features, on the model's device.

    Raises:
        NonFiniteGradientError: As ``Featurizer.features``.
    """
    drawn = draw_batch(featurizer.denoiser, draws, samples, ids)
    halved = draws.bins == 1 and draws.num_draws % (2 * _together(draws)) == 0
    if halved:
        drawn = drawn.in_groups(2, _together(draws))
    features, values = featurizer.features(samples.x0, **drawn._asdict(), ids=ids, check=check)
    if halved:
        mean, noise = features.mean(1), (features[:, 0] - features[:, 1]).norm(dim=1) / 2
        return Measured(mean[:, None], mean.norm(dim=1), noise, values.mean(1, keepdim=True))
    shares = draws.weights(featurizer.denoiser.num_train_timesteps).to(features)
    norm = torch.einsum("nbk,b->nk", features, shares).norm(dim=1)
    if draws.bins == 1:
        return Measured(features, norm, torch.full_like(norm, torch.nan), values)
    shares[1::2] *= -1
    return Measured(features, norm, torch.einsum("nbk,b->nk", features, shares).norm(dim=1), values)


def _together(draws: Draws) -> int:
    """Neighbouring draws that are not independent."""
    return 2 if getattr(draws, "antithetic", False) else 1


def num_groups(num_draws: int, together: int, most: int = 8) -> int:
    """Return in how many groups of equal size draws can be dealt out, at most ``most``."""
    units = num_draws // together if num_draws % together == 0 else 1
    return max(count for count in range(1, most + 1) if units % count == 0)


def draw_batch(denoiser: Denoiser, draws: Draws, samples: Encoded, ids: Sequence[int | str]) -> Drawn:
    """Return timesteps, noise, conditions and weights of every draw of some images.

    Args:
        denoiser: The model.
        draws: Timesteps and noise. Of several captions each draw takes one.
        samples: The images as the network takes them.
        ids: Their ids.

    Returns:
        What they are measured with.
    """
    timesteps = draws.timesteps(ids, denoiser.num_train_timesteps)
    noise = draws.noise(ids, tuple(samples.x0.shape[1:]), denoiser.device)
    told = None
    if samples.condition is not None:
        # Draws without a seed of their own (the caller's timesteps and noise) take captions by seed 0.
        seed, each = getattr(draws, "seed", 0), draws.bins * draws.num_draws
        told = samples.conditions(choose_captions(seed, ids, samples.counts, each))
    return Drawn(timesteps, noise, told, draws.row_weights(timesteps, denoiser.num_train_timesteps))


@torch.no_grad()
def measure_values(
    denoiser: Denoiser,
    images: Tensor | Encoded,
    *,
    draws: Draws,
    measurement: Measurement,
    ids: Sequence[int | str] | None = None,
) -> Tensor:
    """Measure images under the denoiser's current weights.

    Args:
        denoiser: The model.
        images: Samples as the network takes them; of an unconditional model in pixels also images [num_samples, C, H,
            W] in its range.
        draws: Timesteps and noise; of several captions each draw takes one.
        measurement: What is measured.
        ids: Whose draws each image has; by default image i has those of sample i.

    Returns:
        The mean over the draws of each bin, float32, on the CPU. [num_samples, bins]
    """
    samples = images if isinstance(images, Encoded) else Encoded.single(images)
    device, names = denoiser.device, range(len(samples)) if ids is None else ids
    rows = max(1, min(_ROWS_PER_BATCH, _ENTRIES_PER_BATCH // samples.x0[0].numel()))
    size = max(1, rows // (draws.bins * draws.num_draws))

    def measure(x0: Tensor, noise: Tensor, times: Tensor, told: Condition | None) -> Tensor:
        x_t, target = denoiser.add_noise(x0, noise, times), denoiser.target(x0, noise, times)
        prediction = denoiser.predict(x_t, times, told)
        return measurement(Prediction(prediction, target, x0, x_t, noise, times, denoiser.schedule))

    values = []
    for first in range(0, len(names), size):
        some = names[first : first + size]
        batch = samples.select(first, first + len(some))
        timesteps, noise, told, counts = draw_batch(denoiser, draws, batch, some)
        x0 = batch.x0.to(device).repeat_interleave(timesteps[0].numel(), 0)
        noise, times = noise.flatten(0, 2), timesteps.flatten().to(device)
        parts = [slice(begin, begin + rows) for begin in range(0, len(times), rows)]
        measured = torch.cat(
            [measure(x0[p], noise[p], times[p], None if told is None else told.select(p)) for p in parts]
        )
        measured = measured.view(timesteps.shape)
        values.append((measured if counts is None else measured * counts.to(device)).mean(-1).cpu())
    return torch.cat(values)
