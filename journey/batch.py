"""The measurement of a batch of encoded images at the draws of a store."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from journey.condition import Encoded
from journey.draws import Draws
from journey.encoding import choose_captions
from journey.featurizer import Featurizer


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
    drawn = draw_batch(featurizer, draws, samples, ids)
    return featurizer.features(samples.x0, **drawn, ids=ids, check=check)


def draw_batch(featurizer: Featurizer, draws: Draws, samples: Encoded, ids: list[int]) -> dict[str, Any]:
    """Return timesteps, noise, conditions and weights of every draw of some images, as the featurizer takes them.

    Args:
        featurizer: Has the model.
        draws: Timesteps and noise.
        samples: The images as the network takes them.
        ids: Their ids.

    Returns:
        Keyword arguments of ``Featurizer.features``.
    """
    denoiser = featurizer.denoiser
    timesteps = draws.timesteps(ids, denoiser.num_train_timesteps)
    noise = draws.noise(ids, tuple(samples.x0.shape[1:]), denoiser.device)
    # Draws without a seed of their own (the caller's timesteps and noise) take captions by seed 0.
    choice = choose_captions(getattr(draws, "seed", 0), ids, samples.counts, draws.bins * draws.num_draws)
    weights = draws.row_weights(timesteps, denoiser.num_train_timesteps)
    return {"timesteps": timesteps, "noise": noise, "condition": samples.conditions(choice), "weights": weights}
