"""Networks of scores: gradients and losses of score matching, the pipeline's sampling, a run that goes through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from cases import randn
from models import Images, assert_same_gradients, one_at_a_time
from torch import Tensor

import journey
from journey.generation.sampler import Sampler
from journey.measure.draws import StratifiedDraws
from journey.measure.featurizer import Featurizer
from journey.measure.measurements import TrainingLoss
from journey.models.load import as_denoiser
from journey.ops.keys import derive_key, to_signed
from journey.ops.noise import keyed_noise
from journey.projectors.exact import Identity
from journey.projectors.random import CountSketch


@pytest.fixture
def pipeline() -> Any:
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(8,),
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        time_embedding_type="fourier",
    ).eval()
    scheduler = diffusers.ScoreSdeVeScheduler(num_train_timesteps=100, sigma_max=50.0, correct_steps=2)
    return diffusers.ScoreSdeVePipeline(unet, scheduler)


def make_images(num_samples: int) -> Tensor:
    return torch.tanh(randn(num_samples, 3, 8, 8, seed=7))


def test_gradients_and_losses_are_those_of_score_matching(pipeline: Any) -> None:
    denoiser, images = as_denoiser(pipeline), make_images(3)
    x0 = denoiser.encode([*images], [0, 1, 2]).x0
    torch.testing.assert_close(x0, (images + 1) / 2)
    timesteps, noise = torch.tensor([[[3, 64]], [[25, 99]], [[0, 80]]]), randn(3, 1, 2, 3, 8, 8, seed=5)
    featurizer = Featurizer(denoiser, measurement=TrainingLoss(), projector=Identity())
    features, values = featurizer.features(x0, timesteps, noise)

    def losses(rows: slice) -> Tensor:
        found = []
        for row in range(6)[rows]:
            std = pipeline.scheduler.discrete_sigmas[timesteps.flatten()[row]]
            z = noise.flatten(0, 2)[row][None]
            score = pipeline.unet(x0[row // 2][None] + std * z, std[None]).sample
            found.append((score * std + z).square().mean())
        return torch.stack(found)

    assert_same_gradients(denoiser.network, features[:, 0], one_at_a_time(denoiser.network, losses, 3, 2))
    wanted = losses(slice(0, 6)).view(3, 2).mean(1).detach()
    torch.testing.assert_close(values.flatten(), wanted, rtol=1e-5, atol=1e-6)


def test_recording_is_the_pipelines_own_sampling(pipeline: Any) -> None:
    found = journey.record(pipeline, seed=4, num_images=2, num_inference_steps=5, progress=False)
    assert len(found.timesteps) == 5
    for i in range(2):
        key = torch.tensor([to_signed(derive_key(4, "trajectory", i))])
        start = keyed_noise(key, 1, (3, 8, 8), torch.device("cpu"), antithetic=False, per=1)[:, 0, 0]
        generator = torch.Generator("cpu").manual_seed(derive_key(4, "sampler", i))
        scheduler = pipeline.scheduler
        scheduler.set_timesteps(5)
        scheduler.set_sigmas(5)
        x = start * scheduler.init_noise_sigma
        with torch.no_grad():
            for step, t in enumerate(scheduler.timesteps):
                sigma = scheduler.sigmas[step] * torch.ones(1)
                for _ in range(2):
                    x = scheduler.step_correct(pipeline.unet(x, sigma).sample, x, generator=generator).prev_sample
                torch.testing.assert_close(found.x_t[i, step], x[0], rtol=1e-5, atol=1e-4)
                out = scheduler.step_pred(pipeline.unet(x, sigma).sample, t, x, generator=generator)
                x = out.prev_sample
        torch.testing.assert_close(found.images[i], out.prev_sample_mean[0], rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(
            found.image_pixels[i], (2 * out.prev_sample_mean[0] - 1).clamp(-1, 1), rtol=0, atol=5e-3
        )
    with pytest.raises(ValueError, match="PredictorCorrector cannot begin at step 1"):
        list(Sampler(as_denoiser(pipeline), 5).steps(found.x_t[:, 1], first=1))


def test_a_run_goes_through(pipeline: Any, tmp_path: Path) -> None:
    options = {"draws": StratifiedDraws(num_draws=2), "projector": CountSketch(64), "progress": False}
    features = journey.featurize(pipeline, Images(make_images(3)), tmp_path / "f", **options)
    trajectory = journey.record(pipeline, num_inference_steps=3, progress=False)
    scores = journey.score(features, trajectory, num_draws=2, progress=False)
    assert scores.values.shape == (1, 3, 3)
    assert scores.values.isfinite().all()
    assert scores.values.abs().max() > 0
