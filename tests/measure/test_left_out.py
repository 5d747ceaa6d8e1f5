"""The default measurement extends the residual of the training loss by what a model without the image would miss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cases import assert_same_but_for_rounding, randn
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

import journey
from journey.generation.noised import noised_trajectory
from journey.measure.left_out import LeftOutLoss, Prior
from journey.measure.measurements import Prediction, TrainingLoss
from journey.models.denoiser import Denoiser
from journey.models.schedulers import as_schedule
from journey.models.schedules import Schedule
from journey.projectors.random import CountSketch

SHAPE = (2, 3, 5)
IMAGES = randn(6, *SHAPE, seed=9)
SCHEDULES = [
    *(DDPMScheduler(prediction_type=kind) for kind in ("epsilon", "sample", "v_prediction")),
    FlowMatchEulerDiscreteScheduler(),
]


def make_prediction(schedule: Schedule, timesteps: Tensor) -> Prediction:
    prediction, x0, noise = (randn(len(timesteps), *SHAPE, seed=seed) for seed in range(3))
    target, x_t = schedule.target(x0, noise, timesteps), schedule.add_noise(x0, noise, timesteps)
    return Prediction(prediction, target, x0, x_t, noise, timesteps, schedule)


@pytest.mark.parametrize("scheduler", SCHEDULES, ids=lambda s: f"{type(s).__name__}-{s.config.get('prediction_type')}")
def test_the_gradient_is_that_of_a_loss_with_what_is_missed_added_to_the_residual(scheduler: Any) -> None:
    schedule, prior = as_schedule(scheduler), Prior.of(IMAGES)
    p = make_prediction(schedule, torch.tensor([20, 300, 700, 990]))
    values = LeftOutLoss(0.7, prior)(Prediction(**{**vars(p), "prediction": p.prediction.requires_grad_()}))
    (grad,) = torch.autograd.grad(values.sum(), p.prediction)

    signal, sigma = (factor.double() for factor in schedule.factors(p.timesteps, p.x0))
    x0, mean = p.x0.double(), IMAGES.double().mean(0)
    variance = (IMAGES.double() - mean).square().mean()
    guess = mean + signal**2 * variance / (signal**2 * variance + sigma**2) * (x0 - mean)
    # The noise that would have led from the guess to the same noised image.
    noise = (p.x_t.double() - signal * guess) / sigma
    missed = schedule.target(guess, noise, p.timesteps).double() - p.target.double()
    expected = 2 * (p.prediction.detach().double() - p.target.double() + 0.7 * missed) / x0[0].numel()
    torch.testing.assert_close(grad.double(), expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


def test_the_value_is_the_loss_and_by_how_much_it_is_below_that_of_the_guess() -> None:
    schedule, prior = as_schedule(DDPMScheduler(prediction_type="sample")), Prior.of(IMAGES)
    p = make_prediction(schedule, torch.tensor([50, 900]))
    signal, sigma = schedule.factors(p.timesteps, p.x0)
    known = signal**2 * prior.variance
    guess = prior.mean + known / (known + sigma**2) * (p.x0 - prior.mean)
    loss, guessed = ((p.prediction - target).square().mean((1, 2, 3)) for target in (p.x0, guess))
    torch.testing.assert_close(LeftOutLoss(0.5, prior)(p), loss + 0.5 * (loss - guessed), rtol=1e-5, atol=1e-6)


def test_without_weight_it_is_the_training_loss() -> None:
    p = make_prediction(as_schedule(DDPMScheduler()), torch.tensor([1, 500, 999]))
    torch.testing.assert_close(LeftOutLoss(0.0, Prior.of(IMAGES))(p), TrainingLoss()(p), rtol=1e-6, atol=0)


def test_a_prior_is_the_mean_image_and_the_mean_square_about_it(tmp_path: Path) -> None:
    prior = Prior.of(IMAGES)
    torch.testing.assert_close(prior.mean, IMAGES.mean(0))
    torch.testing.assert_close(prior.variance, IMAGES.sub(IMAGES.mean(0)).square().mean().view(1))
    prior.save(tmp_path / "prior")
    found = Prior.load(tmp_path / "prior")
    assert torch.equal(found.mean, prior.mean)
    assert torch.equal(found.variance, prior.variance)
    assert found.fingerprint() == prior.fingerprint() != Prior.of(IMAGES[1:]).fingerprint()


def test_images_that_are_all_alike_miss_nothing_and_divide_by_nothing() -> None:
    schedule = as_schedule(FlowMatchEulerDiscreteScheduler())
    p = make_prediction(schedule, torch.tensor([0, 999]))
    prior = Prior.of(p.x0[:1])
    values = LeftOutLoss(1.0, prior)(Prediction(**{**vars(p), "x0": prior.mean.expand_as(p.x0)}))
    torch.testing.assert_close(values, TrainingLoss()(p), rtol=1e-5, atol=0)


def test_a_missing_prior_one_of_other_images_and_a_negative_weight_are_refused() -> None:
    p = make_prediction(as_schedule(DDPMScheduler()), torch.tensor([1]))
    with pytest.raises(ValueError, match=r"prior must be given, got None.*Prior\.of"):
        LeftOutLoss()(p)
    with pytest.raises(ValueError, match=r"prior must be of images of shape \[2, 3, 5\], got a mean of \[2, 3, 4\]"):
        LeftOutLoss(1.0, Prior.of(IMAGES[..., :4]))(p)
    with pytest.raises(ValueError, match=r"images must be finite, images\[2\] is not"):
        Prior.of(torch.cat([IMAGES[:2], IMAGES[:1] * torch.nan]))
    with pytest.raises(ValueError, match=r"weight must not be negative, got -1"):
        LeftOutLoss(-1.0)


class Network(nn.Module):
    """Learns six images by heart."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(32, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 30))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        time = torch.stack([(t / 1000).cos(), (t / 1000).sin()], 1).to(x)
        return self.layers(torch.cat([x.flatten(1), time], 1)).view_as(x)


SCHEDULER = DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")


def learned_by_heart(steps: int = 1500) -> Denoiser:
    network, generator = Network(), torch.Generator().manual_seed(0)
    model = Denoiser(network.eval(), SCHEDULER)
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    for _ in range(steps):
        rows = torch.randint(len(IMAGES), (48,), generator=generator)
        times, noise = torch.randint(1000, (48,), generator=generator), torch.randn(48, *SHAPE, generator=generator)
        x_t, target = model.add_noise(IMAGES[rows], noise, times), model.target(IMAGES[rows], noise, times)
        optimizer.zero_grad()
        (network(x_t, times) - target).square().mean().backward()
        optimizer.step()
    return model


OPTIONS: dict[str, Any] = {"draws": journey.StratifiedDraws(4, bins=5), "progress": False, "check": False}


def test_what_a_model_has_learned_by_heart_is_the_strongest_proponent_of_itself(tmp_path: Path) -> None:
    model = learned_by_heart()
    # Nearer to the noise the few draws decide, and not every image comes first.
    queries = noised_trajectory(model, IMAGES, (500, 300, 100))
    features = journey.featurize(model, list(IMAGES), tmp_path / "f", **OPTIONS)
    scores = journey.score(features, queries, progress=False).values
    own = torch.arange(len(IMAGES))
    assert (scores.argmax(-1) == own[:, None]).all()
    # The residual that is left has the sign of chance.
    published = journey.featurize(model, list(IMAGES), tmp_path / "p", measurement=TrainingLoss(), **OPTIONS)
    plain = journey.score(published, queries, progress=False).values
    assert (plain.argmax(-1) != own[:, None]).any()


def small_model() -> Denoiser:
    return Denoiser(Network().eval(), SCHEDULER)


def small_run(folder: Path, **options: Any) -> journey.Features:
    chosen = {**OPTIONS, "projector": CountSketch(64), "measurement": LeftOutLoss(), **options}
    return journey.featurize(small_model(), list(IMAGES), folder, **chosen)


def test_featurize_takes_the_prior_of_its_images_and_keeps_it(tmp_path: Path) -> None:
    kept = small_run(tmp_path / "kept")
    assert torch.equal(kept.fit.prior.mean, Prior.of(IMAGES).mean)
    given = small_run(tmp_path / "given", measurement=LeftOutLoss(1.0, Prior.of(IMAGES)), shard_size=2, batch_size=1)
    assert given.fit.prior is None
    torch.testing.assert_close(kept.matrix(), given.matrix(), rtol=1e-2, atol=0.01 * kept.matrix().abs().max().item())
    sharded = small_run(tmp_path / "sharded", shard_size=2)
    assert sharded.fit.fingerprint == kept.fit.fingerprint


def test_a_store_is_opened_with_the_prior_that_it_keeps(tmp_path: Path) -> None:
    features = small_run(tmp_path / "f", measurement=LeftOutLoss(0.5))
    opened = journey.open_features(tmp_path / "f", small_model())
    queries = noised_trajectory(small_model(), IMAGES[:2], [600])
    expected = journey.score(features, queries, progress=False).values
    # The inverse of the Gram matrix multiplies the rounding of gradients.
    assert_same_but_for_rounding(journey.score(opened, queries, progress=False).values, expected, 1e-4)
