"""The measurement of a batch of encoded images at their draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from journey.draws import Draws
from journey.featurizer import Featurizer
from journey.models.condition import Condition, Encoded
from journey.models.denoiser import Denoiser
from journey.models.encoding import choose_captions


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

    def apart(self, count: int) -> Drawn:
        """Return the first draws of one image, each as that of an image of its own."""
        timesteps, noise, told, weights = self
        return Drawn(
            timesteps.view(-1, 1, 1)[:count],
            noise.flatten(0, 2)[:count, None, None],
            None if told is None else told.select(slice(0, count)),
            None if weights is None else weights.view(-1, 1, 1)[:count],
        )


def measure_batch(
    featurizer: Featurizer, draws: Draws, samples: Encoded, ids: list[int], *, check: bool = False
) -> tuple[Tensor, Tensor]:
    """Measure some images.

    Args:
        featurizer: Measures.
        draws: Timesteps and noise.
        samples: The images as the network takes them.
        ids: Their ids.
        check: As for ``Featurizer.features``.

    Returns:
        What ``Featurizer.features`` returns.
    """
    drawn = draw_batch(featurizer.denoiser, draws, samples, ids)
    return featurizer.features(samples.x0, **drawn._asdict(), ids=ids, check=check)


def draw_batch(denoiser: Denoiser, draws: Draws, samples: Encoded, ids: Sequence[int]) -> Drawn:
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
