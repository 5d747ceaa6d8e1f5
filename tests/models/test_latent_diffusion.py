"""Unconditional latent diffusion: gradients and losses are those of a trainer, samples the pipeline's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cases import randn
from diffusers import AutoencoderKL, DDIMScheduler, LDMPipeline, VQModel
from families import make_vae
from models import Images, assert_same_gradients, make_unet, one_at_a_time
from torch import Tensor

import journey
from journey.measure.draws import StratifiedDraws
from journey.measure.featurizer import Featurizer
from journey.measure.measurements import TrainingLoss
from journey.models.load import as_denoiser
from journey.ops.keys import derive_key, to_signed
from journey.ops.noise import keyed_noise
from journey.projectors.exact import Identity
from journey.projectors.random import CountSketch
from journey.report.run import Run


def make_quantising(embed: int = 4) -> VQModel:
    """Halves the size; latents of ``embed`` channels."""
    return VQModel(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=6,
        vq_embed_dim=embed,
        num_vq_embeddings=32,
        scaling_factor=0.7,
    ).eval()


def make_pipeline(autoencoder: Any = None, **changes: Any) -> Any:
    torch.manual_seed(0)
    pipeline = LDMPipeline(
        vqvae=make_quantising() if autoencoder is None else autoencoder,
        unet=make_unet(in_channels=4, out_channels=4, **changes),
        scheduler=DDIMScheduler(clip_sample=False),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make_pictures(num_samples: int) -> Tensor:
    return torch.tanh(randn(num_samples, 3, 16, 16, seed=2))


@pytest.mark.parametrize("make", [make_quantising, make_vae])
def test_gradients_and_losses_are_those_of_the_trainer(make: Any) -> None:
    pipeline, images = make_pipeline(make()), make_pictures(3)
    denoiser = as_denoiser(pipeline)
    encoded = denoiser.encode(list(images), [0, 1, 2])
    with torch.no_grad():
        found = pipeline.vqvae.encode(images)
        z = found.latent_dist.mean if isinstance(pipeline.vqvae, AutoencoderKL) else found.latents
    torch.testing.assert_close(encoded.x0, 0.7 * z)
    timesteps, noise = torch.tensor([[[3, 640]], [[250, 999]], [[20, 800]]]), randn(3, 1, 2, 4, 8, 8, seed=5)
    featurizer = Featurizer(denoiser, measurement=TrainingLoss(), projector=Identity())
    features, values = featurizer.features(encoded.x0, timesteps, noise)

    def losses(rows: slice) -> Tensor:
        x0, drawn, t = encoded.x0.repeat_interleave(2, 0)[rows], noise.flatten(0, 2)[rows], timesteps.flatten()[rows]
        prediction = pipeline.unet(pipeline.scheduler.add_noise(x0, drawn, t), t).sample
        return (prediction - drawn).square().flatten(1).mean(1)

    torch.testing.assert_close(values.flatten(), losses(slice(0, 6)).view(3, 2).mean(1).detach(), rtol=1e-5, atol=1e-6)
    assert_same_gradients(pipeline.unet, features[:, 0], one_at_a_time(pipeline.unet, losses, 3, 2))


def test_recording_is_the_pipelines_own_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = make_pipeline()
    key = torch.tensor([to_signed(derive_key(4, "trajectory", 0))])
    start = keyed_noise(key, 1, (4, 8, 8), torch.device("cpu"), antithetic=False, per=1)[:, 0, 0]
    monkeypatch.setattr(f"{LDMPipeline.__module__}.randn_tensor", lambda *_, **__: start)
    expected = torch.as_tensor(pipeline(num_inference_steps=5, output_type="array").images).permute(0, 3, 1, 2)
    found = journey.record(pipeline, seed=4, num_inference_steps=5, progress=False)
    assert (as_denoiser(pipeline).decode(found.images) / 2 + 0.5 - expected).abs().max() <= 1e-5
    assert (found.image_pixels / 2 + 0.5 - expected).abs().max() <= 0.51 / 255 + 1e-5
    assert expected.std() > 0.01


def test_a_run_goes_through_to_its_page(tmp_path: Path) -> None:
    pipeline, dataset = make_pipeline(), Images(make_pictures(3))
    options: dict[str, Any] = {"draws": StratifiedDraws(num_draws=2), "projector": CountSketch(64), "progress": False}
    features = journey.featurize(pipeline, dataset, tmp_path / "f", **options)
    trajectory = journey.record(pipeline, num_inference_steps=3, size=(16, 16), progress=False)
    scores = journey.score(features, trajectory, num_draws=2, progress=False)
    assert scores.values.isfinite().all()
    assert scores.values.abs().max() > 0
    assert Run(trajectory, scores, dataset).write_report(tmp_path / "page.html").exists()


def test_what_it_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="latents must be \"mean\" for VQModel, which has no posterior, got 'sample'"):
        as_denoiser(make_pipeline(), latents="sample")
    assert as_denoiser(make_pipeline(make_vae()), latents="sample").is_latent
    with pytest.raises(ValueError, match="unet of an LDMPipeline must be told nothing, got one with num_class_embeds"):
        as_denoiser(make_pipeline(num_class_embeds=4))
    with pytest.raises(ValueError, match="dataset\\[0\\] must have 3 channels"):
        as_denoiser(make_pipeline()).encode([torch.zeros(4, 8, 8)], [0])
