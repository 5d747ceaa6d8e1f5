"""What a retrained model does to a query: other images, other predictions, a higher loss.

An effect is a function of the weights and of the queries in question. It returns one number for each of these, larger
where more has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from journey.data.items import Dataset
from journey.generation.trajectory import Trajectory
from journey.measure.batch import measure_values
from journey.measure.draws import Draws
from journey.measure.measurements import TrainingLoss
from journey.models.checkpoints import loaded
from journey.models.condition import Encoded
from journey.models.denoiser import Denoiser
from journey.models.encoding import encode_all
from journey.models.load import as_denoiser
from journey.ops.keys import derive_key, to_signed
from journey.ops.noise import keyed_noise, query_noise

Distance = Callable[[Tensor, Tensor], Tensor]
Effect = Callable[[Path, Sequence[int]], Tensor]


def pixel_distance(first: Tensor, second: Tensor) -> Tensor:
    """Euclidean distance of each pair of images. [num_queries]"""
    distance: Tensor = (first - second).flatten(1).norm(dim=1)
    return distance


def embedding_distance(embed: Callable[[Tensor], Tensor]) -> Distance:
    """Return the distance 1 - cosine of embeddings, such as those of CLIP or DINO.

    Args:
        embed: Maps images to embeddings. [num, C, H, W] to [num, ...]

    Returns:
        A distance as ``counterfactual`` takes.
    """

    def distance(first: Tensor, second: Tensor) -> Tensor:
        a, b = embed(first).flatten(1), embed(second).flatten(1)
        return 1 - torch.nn.functional.cosine_similarity(a, b, dim=1)

    return distance


def generation_change(
    model: Any,
    *,
    noise_seed: int = 0,
    num_inference_steps: int = 50,
    interval: tuple[int, int] | None = None,
    distance: Distance = pixel_distance,
) -> Effect:
    """Return how far the generation moves that starts from the same noise.

    Query q is the q-th image that ``journey.record(model, seed=noise_seed, ...)`` makes.

    Args:
        model: The attributed model with a deterministic sampler (DDIM), in any form that ``journey.featurize`` takes.
        noise_seed: Names the noise that generations start from.
        num_inference_steps: Steps of the sampler.
        interval: ``(high, low)``: use the retrained model only at steps with ``low <= t <= high`` and the attributed
            model at the others; everywhere by default.
        distance: Distance of each pair of images.

    Returns:
        The effect.

    Raises:
        TypeError: If the sampler is not deterministic, or the model denoises latents.
    """
    denoiser = as_denoiser(model)
    _check_sampler(denoiser)
    before: dict[int, Tensor] = {}

    def effect(weights: Path, queries: Sequence[int]) -> Tensor:
        new = [q for q in queries if q not in before]
        if new:
            images = generate(denoiser, new, seed=noise_seed, num_inference_steps=num_inference_steps)
            before.update(zip(new, images, strict=True))
        after = generate(
            denoiser,
            queries,
            seed=noise_seed,
            num_inference_steps=num_inference_steps,
            swapped=weights,
            interval=interval,
        )
        return distance(torch.stack([before[q] for q in queries]), after)

    return effect


def prediction_change(model: Any, trajectory: Trajectory, step: int, *, distance: Distance = pixel_distance) -> Effect:
    """Return how far the image moves that is predicted from the recorded latent of one step.

    Args:
        model: The network that the weights fit.
        trajectory: The queries.
        step: One of the recorded timesteps.
        distance: Distance of each pair of images.

    Returns:
        The effect.

    Raises:
        ValueError: If the step was not recorded.
    """
    denoiser, column = as_denoiser(model), _column(trajectory, step)

    def predict(query: int) -> Tensor:
        # As it was recorded: by the scheduler, which may clip, under the query's own condition.
        sampler = trajectory.sampler(denoiser, query)
        x_t = trajectory.x_t[[query], column]
        return next(sampler.steps(x_t, first=sampler.timesteps.index(step))).x0_hat.cpu()

    def effect(weights: Path, queries: Sequence[int]) -> Tensor:
        with loaded(denoiser.network, weights):
            after = torch.cat([predict(q) for q in queries])
        return distance(trajectory.x0_hat[list(queries), column], after)

    return effect


def loss_change(model: Any, queries: Dataset | Tensor | Trajectory, *, draws: Draws) -> Effect:
    """Return by how much the training loss of images rises: what the scores of a loss are about.

    Far less noisy than a generation, which a retraining also moves in directions that have nothing to do with the loss.

    Args:
        model: The attributed model, in any form that ``journey.featurize`` takes.
        queries: As for ``measure_responses``.
        draws: Timesteps and noise, the same for all weights.

    Returns:
        The effect.
    """
    denoiser = as_denoiser(model)
    samples = queries.finished if isinstance(queries, Trajectory) else encode_all(denoiser, queries, name="queries")

    def losses(weights: Path | None, ids: list[int]) -> Tensor:
        chosen = Encoded.cat([samples.select(q, q + 1) for q in ids])
        with loaded(denoiser.network, weights):
            found = measure_values(denoiser, chosen, draws=draws, measurement=TrainingLoss(), ids=ids)
        return found.double() @ draws.weights(denoiser.num_train_timesteps)

    def effect(weights: Path, ids: Sequence[int]) -> Tensor:
        return losses(weights, list(ids)) - losses(None, list(ids))

    return effect


def step_loss_change(
    model: Any, trajectory: Trajectory, step: int, *, num_draws: int = 64, noise_seed: int = 0
) -> Effect:
    """Return by how much the loss rises of the image predicted at a step, noised again to that step.

    It is the query that ``journey.score`` measures there.

    Args:
        model: The attributed model, in any form that ``journey.featurize`` takes.
        trajectory: The queries.
        step: One of the recorded timesteps.
        num_draws: Noises, in antithetic pairs, the same for all weights.
        noise_seed: Names them.

    Returns:
        The effect.

    Raises:
        ValueError: If the step was not recorded.
    """
    denoiser, column = as_denoiser(model), _column(trajectory, step)
    shape = tuple(trajectory.x0_hat.shape[2:])

    @torch.no_grad()
    def losses(weights: Path | None, queries: list[int]) -> Tensor:
        noise = query_noise(noise_seed, queries, step, num_draws, shape, denoiser.device).flatten(0, 1)
        x0 = trajectory.x0_hat[queries, column].to(denoiser.device).repeat_interleave(num_draws, 0)
        times = torch.full((len(x0),), step, device=x0.device, dtype=torch.int64)
        condition = trajectory.condition
        told = None if condition is None else condition.select(queries).repeat(num_draws)
        with loaded(denoiser.network, weights):
            prediction = denoiser.predict(denoiser.add_noise(x0, noise, times), times, told)
        errors = (denoiser.target(x0, noise, times) - prediction).square().flatten(1).mean(1)
        return errors.view(len(queries), num_draws).mean(1).cpu()

    def effect(weights: Path, queries: Sequence[int]) -> Tensor:
        return losses(weights, list(queries)) - losses(None, list(queries))

    return effect


@torch.no_grad()
def generate(
    denoiser: Denoiser,
    queries: Sequence[int],
    *,
    seed: int,
    num_inference_steps: int,
    swapped: Path | None = None,
    interval: tuple[int, int] | None = None,
) -> Tensor:
    """Sample the images that ``journey.record`` makes, with other weights for a part of the way.

    Args:
        denoiser: The model.
        queries: Which images of the seed.
        seed: Names the images.
        num_inference_steps: Steps of the sampler.
        swapped: Weights to use instead of the model's own.
        interval: ``(high, low)``: use them only at these steps; at all by default.

    Returns:
        Images in [-1, 1], on the CPU. [num_queries, C, H, W]

    Raises:
        TypeError: If the sampler draws noise of its own: generations could not be compared. Or if the model denoises
            latents.
    """
    _check_sampler(denoiser)
    scheduler = type(denoiser.scheduler).from_config(denoiser.scheduler.config)
    scheduler.set_timesteps(num_inference_steps)
    high, low = (denoiser.num_train_timesteps, 0) if interval is None else interval
    keys = torch.tensor(
        [to_signed(derive_key(seed, "trajectory", int(q))) for q in queries], dtype=torch.int64, device="cpu"
    )
    assert denoiser.in_channels is not None
    assert denoiser.sample_size is not None
    shape = (denoiser.in_channels, *denoiser.sample_size)
    x: Tensor = keyed_noise(keys, 1, shape, denoiser.device, antithetic=False, per=1)[:, 0, 0]
    x = x * scheduler.init_noise_sigma
    for t in scheduler.timesteps.tolist():
        with loaded(denoiser.network, swapped if low <= t <= high else None):
            times = torch.full((len(x),), t, device=x.device, dtype=torch.int64)
            prediction = denoiser.predict(scheduler.scale_model_input(x, t), times)
        x = scheduler.step(prediction, t, x).prev_sample
    return x.cpu().clamp(-1, 1)


def _check_sampler(denoiser: Denoiser) -> None:
    if denoiser.is_latent:
        raise TypeError(
            f"model must denoise images, got {type(denoiser).__name__}, which denoises latents; measure_effect with "
            "prediction_change, loss_change or step_loss_change is for it"
        )
    if "DDIM" not in type(denoiser.scheduler).__name__:
        raise TypeError(f"the sampler must be deterministic (DDIMScheduler), got {type(denoiser.scheduler).__name__}")


def _column(trajectory: Trajectory, step: int) -> int:
    recorded: list[int] = trajectory.timesteps.tolist()
    if step not in recorded:
        raise ValueError(f"step must be among the recorded timesteps {recorded}, got {step}")
    return recorded.index(step)
