"""Every family of models: gradients are autograd's, losses are those of the trainers, sampling is the pipeline's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import assert_same_but_for_rounding, randn
from families import FAMILIES, LATENT, SIZE, Captioned, make_conditional_unet, make_family, stable_diffusion_xl
from models import assert_same_gradients, make_scheduler, make_unet, one_at_a_time
from torch import Tensor, nn

import journey
from journey.measure.draws import StratifiedDraws
from journey.measure.featurizer import Featurizer
from journey.measure.measurements import TrainingLoss
from journey.models.condition import Condition, Encoded
from journey.models.load import as_denoiser
from journey.ops.keys import derive_key, to_signed
from journey.ops.noise import keyed_noise, query_noise
from journey.projectors.exact import Identity

EXACT: dict[str, Any] = {
    "projector": Identity(),
    "measurement": TrainingLoss(),
    "row": "float32",
    "progress": False,
}

PROMPT = {"prompt": "a red apple"}
NUM_DRAWS = 2


def ask(name: str) -> dict[str, Any]:
    """What is asked of a family's ``record``: two images."""
    return {"class_labels": [7, 3]} if name == "DiT" else {"prompt": ["a red apple", "two"]}


def network_of(pipeline: Any) -> nn.Module:
    return pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer


def trainers_loss(name: str, pipeline: Any, x0: Tensor, noise: Tensor, timesteps: Tensor, told: Condition) -> Tensor:
    """The loss of each row as diffusers' training scripts have it, with the scheduler's own tables."""
    scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    network = network_of(pipeline)
    if "EDM" in name:
        # At each noise level the script's loss is that of EDM times c_out^2; their tables descend.
        index = 999 - timesteps
        sigmas, noisy_dtype = scheduler.sigmas[index].view(-1, 1, 1, 1).double(), torch.float64
        noisy = x0.to(noisy_dtype) + sigmas * noise
        ids = torch.tensor([[*SIZE, 0, 0, *SIZE]] * len(x0))
        prediction = network(
            scheduler.precondition_inputs(noisy, sigmas).float(),
            scheduler.timesteps[index],
            told["encoder_hidden_states"],
            added_cond_kwargs={"text_embeds": told["text_embeds"], "time_ids": ids},
            return_dict=False,
        )[0]
        denoised = scheduler.precondition_outputs(noisy, prediction.to(noisy_dtype), sigmas)
        weights = (sigmas.square() + 0.25) / (0.5 * sigmas).square()
        return (weights * (denoised - x0).square()).flatten(1).mean(1).float()
    if name.startswith("Stable Diffusion") and "3" not in name:
        alphas = scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        noisy = alphas.sqrt() * x0 + (1 - alphas).sqrt() * noise
        extra = {}
        if "XL" in name:
            ids = torch.tensor([[*SIZE, 0, 0, *SIZE]] * len(x0))
            extra["added_cond_kwargs"] = {"text_embeds": told["text_embeds"], "time_ids": ids}
        prediction = network(noisy, timesteps, told["encoder_hidden_states"], **extra, return_dict=False)[0]
        velocity = scheduler.config.prediction_type == "v_prediction"
        target = scheduler.get_velocity(x0, noise, timesteps) if velocity else noise
    elif name == "DiT":
        noisy = scheduler.add_noise(x0, noise, timesteps)
        prediction, _ = network(noisy, timestep=timesteps, class_labels=told["class_labels"]).sample.chunk(2, dim=1)
        target = noise
    else:
        # Their tables descend.
        index = len(scheduler.timesteps) - 1 - timesteps
        times, sigmas = scheduler.timesteps[index], scheduler.sigmas[index].view(-1, 1, 1, 1)
        noisy = (1.0 - sigmas) * x0 + sigmas * noise
        shared = {
            "encoder_hidden_states": told["encoder_hidden_states"],
            "pooled_projections": told["pooled_projections"],
        }
        if name == "Stable Diffusion 3":
            prediction = network(hidden_states=noisy, timestep=times, **shared, return_dict=False)[0]
        else:
            rows, channels, height, width = noisy.shape
            packed = network(
                hidden_states=pipeline._pack_latents(noisy, rows, channels, height, width),
                timestep=times / 1000,
                guidance=torch.full((rows,), 3.5),
                txt_ids=torch.zeros(shared["encoder_hidden_states"].shape[1], 3),
                img_ids=pipeline._prepare_latent_image_ids(rows, height // 2, width // 2, "cpu", torch.float32),
                **shared,
                return_dict=False,
            )[0]
            prediction = pipeline._unpack_latents(packed, 2 * height, 2 * width, pipeline.vae_scale_factor)
        target = noise - x0
    return (prediction - target).square().flatten(1).mean(1)


@torch.no_grad()
def encode_by_hand(name: str, pipeline: Any, dataset: Captioned) -> tuple[Tensor, Condition]:
    """Latents and conditions by the pipeline's own parts."""
    config = pipeline.vae.config
    z = pipeline.vae.encode(dataset.images).latent_dist.mean
    x0 = (z - (config.shift_factor or 0.0)) * config.scaling_factor
    if "EDM" in name:
        mean, std = (torch.tensor(values).view(1, 4, 1, 1) for values in (config.latents_mean, config.latents_std))
        x0 = (z - mean) * config.scaling_factor / std
    items = [dataset[i] for i in range(len(dataset))]
    if name == "DiT":
        return x0, Condition({"class_labels": torch.tensor([item["label"] for item in items])})
    texts = [item["text"] for item in items]
    if name == "Stable Diffusion 3":
        states, _, pooled, _ = pipeline.encode_prompt(texts, None, None, do_classifier_free_guidance=False)
    elif name == "Flux":
        states, pooled, _ = pipeline.encode_prompt(texts, None)
    elif "XL" in name:
        states, _, pooled, _ = pipeline.encode_prompt(texts, do_classifier_free_guidance=False)
        return x0, Condition({"encoder_hidden_states": states, "text_embeds": pooled})
    else:
        return x0, Condition({"encoder_hidden_states": pipeline.encode_prompt(texts, "cpu", 1, False)[0]})
    return x0, Condition({"encoder_hidden_states": states, "pooled_projections": pooled})


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_and_losses_are_those_of_the_trainer(name: str) -> None:
    pipeline, dataset = make_family(name), Captioned(2)
    denoiser = as_denoiser(pipeline)
    ids = [0, 1]
    encoded = denoiser.encode([dataset[i] for i in ids], ids)
    x0, told = encode_by_hand(name, pipeline, dataset)
    torch.testing.assert_close(encoded.x0, x0, rtol=1e-5, atol=1e-5)

    timesteps = torch.tensor([[[3, 640]], [[250, 999]]])
    noise = randn(2, 1, NUM_DRAWS, 4, LATENT, LATENT, seed=5)
    featurizer = Featurizer(denoiser, measurement=TrainingLoss(), projector=Identity())
    features, values = featurizer.features(encoded.x0, timesteps, noise, condition=encoded.condition)

    rows_x0, rows_told = x0.repeat_interleave(NUM_DRAWS, 0), told.repeat(NUM_DRAWS)

    def losses(rows: slice) -> Tensor:
        chosen = (rows_x0[rows], noise.flatten(0, 2)[rows], timesteps.flatten()[rows], rows_told.select(rows))
        return trainers_loss(name, pipeline, *chosen)

    expected = one_at_a_time(denoiser.network, losses, 2, NUM_DRAWS)
    torch.testing.assert_close(values.flatten(), losses(slice(0, 4)).view(2, 2).mean(1).detach(), rtol=1e-5, atol=1e-6)
    assert_same_gradients(denoiser.network, features[:, 0], expected)


def noise_of(seed: int, num_images: int) -> Tensor:
    keys = torch.tensor([to_signed(derive_key(seed, "trajectory", i)) for i in range(num_images)])
    return keyed_noise(keys, 1, (4, LATENT, LATENT), torch.device("cpu"), antithetic=False, per=1)[:, 0, 0]


SAMPLERS = {
    "PNDM": {"skip_prk_steps": True},
    "EulerDiscrete": {},
    "DPMSolverMultistep": {},
}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_stable_diffusion_is_sampled_as_by_its_pipeline_with_any_scheduler(sampler: str) -> None:
    import diffusers

    pipeline = make_family("Stable Diffusion")
    kind = getattr(diffusers, f"{sampler}Scheduler")
    pipeline.scheduler = kind.from_config(pipeline.scheduler.config, **SAMPLERS[sampler])
    check_against_pipeline("Stable Diffusion", pipeline, guidance_scale=4.0)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "DiT"])
def test_recording_is_the_pipelines_own_sampling(name: str) -> None:
    pipeline = make_family(name)
    check_against_pipeline(name, pipeline)
    if name != "Flux":
        check_against_pipeline(name, pipeline, guidance_scale=3.0, negative_prompt="ugly")
        check_against_pipeline(name, pipeline, guidance_scale=1.0)
    else:
        check_against_pipeline(name, pipeline, guidance_scale=8.0)


def check_against_pipeline(name: str, pipeline: Any, **options: Any) -> None:
    found = journey.record(
        pipeline, seed=4, prompt=["a red apple", "two"], num_inference_steps=5, progress=False, **options
    )
    start = noise_of(4, 1).expand(2, -1, -1, -1)
    latents = start
    if name == "Flux":
        latents = pipeline._pack_latents(start, 2, 4, LATENT, LATENT)
    if "negative_prompt" in options:
        options["negative_prompt"] = [options["negative_prompt"]] * 2
    expected = pipeline(
        prompt=["a red apple", "two"],
        latents=latents,
        num_inference_steps=5,
        output_type="latent",
        height=SIZE[0],
        width=SIZE[1],
        **options,
    ).images
    if name == "Flux":
        expected = pipeline._unpack_latents(expected, *SIZE, pipeline.vae_scale_factor)
    torch.testing.assert_close(found.images, expected, rtol=1e-4, atol=1e-4)
    assert found.prompts == ("a red apple", "two")
    assert (found.images[0] - found.images[1]).abs().max() > 1e-3, "the prompt made no difference"


def test_an_xl_model_without_zeros_is_guided_by_the_empty_prompt_at_any_size() -> None:
    torch.manual_seed(0)
    pipeline = stable_diffusion_xl("v_prediction", zeros=False)
    pipeline.set_progress_bar_config(disable=True)
    check_against_pipeline("Stable Diffusion XL", pipeline, guidance_scale=3.0)
    denoiser = as_denoiser(pipeline)
    told, x_t = denoiser.encode_prompt(["two"]), randn(1, 4, 4, 6, seed=1)
    time_ids = torch.tensor([[8, 12, 0, 0, 8, 12]])
    added = {"text_embeds": told["text_embeds"], "time_ids": time_ids}
    expected = pipeline.unet(x_t, 7, told["encoder_hidden_states"], added_cond_kwargs=added).sample
    torch.testing.assert_close(denoiser.predict_at(x_t, torch.tensor([7]), told), expected)


def test_networks_that_take_more_are_refused() -> None:
    from diffusers import StableDiffusionInpaintPipeline

    pipeline = make_family("Stable Diffusion")
    told = "the UNet must take the VAE's 4 channels and no guidance embedding, got "
    for unet, found in (
        (make_conditional_unet(channels=9), "9 channels and time_cond_proj_dim=None"),
        (make_conditional_unet(time_cond_proj_dim=8), "4 channels and time_cond_proj_dim=8"),
    ):
        pipeline.unet = unet
        with pytest.raises(ValueError, match=told + found):
            as_denoiser(pipeline)
    with pytest.raises(TypeError, match="got UNet2DConditionModel with time_cond_proj_dim"):
        as_denoiser((make_conditional_unet(time_cond_proj_dim=8), pipeline.scheduler))
    inpainting = StableDiffusionInpaintPipeline(**pipeline.components, requires_safety_checker=False)
    with pytest.raises(
        TypeError, match=r"got StableDiffusionInpaintPipeline of .*: it is given an image besides the text"
    ):
        as_denoiser(inpainting)
    pipeline = make_family("Stable Diffusion XL")
    pipeline.unet = make_conditional_unet()
    with pytest.raises(ValueError, match=r"must take text embeddings and time ids, .* got None"):
        as_denoiser(pipeline)


def test_dit_is_sampled_as_by_its_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers.pipelines.dit import pipeline_dit

    pipeline = make_family("DiT")
    found = journey.record(pipeline, seed=4, class_labels=[7, 3], num_inference_steps=5, progress=False)
    start = noise_of(4, 1).expand(2, -1, -1, -1)
    monkeypatch.setattr(pipeline_dit, "randn_tensor", lambda *_, **__: start)
    expected = torch.from_numpy(pipeline([7, 3], num_inference_steps=5, output_type="np").images).movedim(-1, 1)
    torch.testing.assert_close((found.image_pixels + 1) / 2, expected, rtol=0, atol=0.51 / 255 + 1e-4)
    assert found.guidance_scale == 4.0
    assert (expected[0] - expected[1]).abs().max() > 1e-3


def test_the_default_guidance_is_that_of_the_pipeline() -> None:
    from inspect import signature

    for name in FAMILIES:
        pipeline = make_family(name)
        default = signature(type(pipeline).__call__).parameters["guidance_scale"].default
        assert as_denoiser(pipeline).default_guidance == default, name


@pytest.mark.parametrize("name", FAMILIES)
def test_a_stored_run_is_scored_by_the_formula(name: str, tmp_path: Path) -> None:
    pipeline, dataset = make_family(name), Captioned(3)
    draws = StratifiedDraws(num_draws=2, bins=2)
    features = journey.featurize(pipeline, dataset, tmp_path / "f", draws=draws, **EXACT)
    trajectory = journey.record(pipeline, num_inference_steps=4, progress=False, **ask(name))
    trajectory.save(tmp_path / "t.safetensors")
    trajectory = journey.Trajectory.load(tmp_path / "t.safetensors")
    steps = trajectory.timesteps.tolist()[1:3]
    features = journey.open_features(tmp_path / "f", pipeline)
    scores = journey.score(features, trajectory, steps=steps, damping=0.1, num_draws=2, progress=False)

    phi = features.matrix().double()
    # The Gram matrix of the fit, which keeps fewer rows than there are parameters.
    rows, ridge = features.fit.gram().factor.double(), 0.1
    gram = rows @ rows.T
    network = as_denoiser(pipeline).network
    told = trajectory.condition
    assert told is not None
    for s, t in enumerate(steps):
        x0 = trajectory.x0_hat[:, trajectory.timesteps.tolist().index(t)]
        noise = query_noise(0, [0, 1], t, 2, tuple(x0.shape[1:]), torch.device("cpu"))
        tensors = dict(told.tensors)
        if name == "Flux":
            assert tensors.pop("guidance").tolist() == [3.5, 3.5]
        rows_x0, rows_told = x0.repeat_interleave(2, 0), Condition(tensors).repeat(2)

        def losses(
            rows: slice, x0: Tensor = rows_x0, noise: Tensor = noise, c: Condition = rows_told, t: int = t
        ) -> Tensor:
            chosen = x0[rows]
            times = torch.full((len(chosen),), t)
            return trainers_loss(name, pipeline, chosen, noise.flatten(0, 1)[rows], times, c.select(rows))

        query = one_at_a_time(network, losses, 2, 2).double()
        # (rows^T rows + ridge)^-1 = (1 - rows^T (rows rows^T + ridge)^-1 rows) / ridge
        inner = torch.linalg.solve(gram + ridge * torch.eye(len(rows)), rows @ query.T)
        expected = ((query - inner.T @ rows) @ phi.T) / ridge
        torch.testing.assert_close(scores.values[:, s].double(), expected, rtol=1e-3, atol=1e-5 * expected.abs().max())


def test_a_trajectory_keeps_what_scoring_and_pictures_need(tmp_path: Path) -> None:
    pipeline = make_family("Stable Diffusion")
    found = journey.record(
        pipeline,
        prompt=["a red apple", "two"],
        num_images=2,
        negative_prompt="ugly",
        num_inference_steps=4,
        steps=[501, 1],
        progress=False,
    )
    assert found.prompts == ("a red apple", "a red apple", "two", "two")
    assert found.timesteps.tolist() == [501, 1]
    decoded = as_denoiser(pipeline).decode(found.x0_hat[:, 1])
    torch.testing.assert_close(found.x0_pixels[:, 1], decoded, rtol=0, atol=0.51 / 127.5 + 1e-4)
    torch.testing.assert_close(
        found.image_pixels, as_denoiser(pipeline).decode(found.images), rtol=0, atol=0.51 / 127.5 + 1e-4
    )
    assert found.x_t_pixels.shape == (4, 2, 3, LATENT, LATENT)
    for name in ("a", "b"):
        found.save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    again = journey.Trajectory.load(tmp_path / "a")
    assert again.prompts == found.prompts
    assert (again.guidance_scale, again.num_inference_steps) == (7.5, 4)
    for field in ("x_t", "x0_hat", "images", "pixels", "timesteps"):
        assert torch.equal(getattr(again, field), getattr(found, field))
    for field in ("condition", "negative"):
        kept, wanted = getattr(again, field), getattr(found, field)
        assert torch.equal(kept["encoder_hidden_states"], wanted["encoder_hidden_states"])


def test_a_trajectory_can_be_sampled_on_from_any_of_its_steps() -> None:
    pipeline = make_family("Stable Diffusion 3")
    found = journey.record(
        pipeline, prompt=["two", "a red apple"], num_inference_steps=5, negative_prompt="ugly", progress=False
    )
    ends = list(found.sampler(pipeline, 1).steps(found.x_t[1:, 2], first=2))
    torch.testing.assert_close(ends[-1].prev, found.images[1:], rtol=1e-4, atol=1e-4)


def test_several_sizes_are_sampled_and_measured(tmp_path: Path) -> None:
    pipeline, dataset = make_family("Flux"), Captioned(2)
    found = journey.record(pipeline, **PROMPT, num_inference_steps=2, size=(8, 24), progress=False)
    assert found.images.shape == (1, 4, 4, 12)
    assert found.image_pixels.shape == (1, 3, 8, 24)
    dataset.images = dataset.images[..., :8]
    features = journey.featurize(pipeline, dataset, tmp_path / "f", draws=StratifiedDraws(num_draws=2), progress=False)
    assert features.matrix().any(1).all()


def test_a_distilled_flux_is_not_told_a_guidance() -> None:
    from families import flux

    torch.manual_seed(0)
    pipeline = flux(guidance_embeds=False)
    pipeline.set_progress_bar_config(disable=True)
    check_against_pipeline("Flux", pipeline)


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("DiT", {"prompt": "two"}, TypeError, "prompt must be None for DiT, which reads no text"),
        ("DiT", {"class_labels": 1000}, ValueError, r"class_labels must be in \[0, 1000\), got \[1000\]"),
        ("DiT", {}, ValueError, "DiT must be told something: give prompt, class_labels or condition, got None"),
        ("Flux", {"class_labels": 3}, TypeError, "class_labels must be None for Flux, which has no classes"),
        ("Flux", {**PROMPT, "class_labels": 3}, ValueError, "only one of prompt, class_labels and condition"),
        ("Flux", {**PROMPT, "negative_prompt": "ugly"}, ValueError, "negative_prompt needs classifier-free guidance"),
        ("Flux", {**PROMPT, "size": (16, 18)}, ValueError, r"height and width that 4 divides, .* got \(16, 18\)"),
    ],
)
def test_what_a_family_cannot_do_is_refused(
    name: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        journey.record(make_family(name), num_inference_steps=2, progress=False, **options)


def test_a_saved_pipeline_is_loaded_by_its_path(tmp_path: Path) -> None:
    pipeline = make_family("DiT")
    pipeline.save_pretrained(tmp_path)
    options: dict[str, Any] = {"class_labels": 3, "num_inference_steps": 2, "progress": False}
    found, wanted = journey.record(tmp_path, **options), journey.record(pipeline, **options)
    assert_same_but_for_rounding(found.images, wanted.images)


def test_a_text_pipeline_is_loaded_by_its_path_with_its_encoders(tmp_path: Path) -> None:
    pipeline = make_family("Stable Diffusion XL")
    pipeline.save_pretrained(tmp_path)
    options: dict[str, Any] = {**PROMPT, "num_inference_steps": 2, "progress": False}
    found, wanted = journey.record(tmp_path, **options), journey.record(pipeline, **options)
    assert_same_but_for_rounding(found.images, wanted.images)


def test_a_repo_id_is_loaded_from_the_cache_without_a_network(tmp_path: Path) -> None:
    """In a process of its own: where the cache is, and whether there is a network, is read once."""
    pipeline = make_family("DiT")
    commit, cached = "0" * 40, tmp_path / "hub" / "models--somebody--tiny"
    pipeline.save_pretrained(cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    wanted = journey.record(pipeline, class_labels=3, num_inference_steps=1, progress=False)
    wanted.save(tmp_path / "wanted")
    asked = [
        "--model",
        "somebody/tiny",
        "--class-label",
        "3",
        "--num-inference-steps",
        "1",
        "--out",
        "found",
        "--quiet",
    ]
    package = str(Path(journey.__file__).parents[1])
    nowhere = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": package}
    command = [sys.executable, "-m", "journey", "record", *asked]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, **nowhere}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = journey.Trajectory.load(tmp_path / "found" / "trajectory.safetensors")
    assert_same_but_for_rounding(found.images, wanted.images)


def test_a_pipeline_that_is_nowhere_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(where: Any) -> Any:
        raise OSError("no network, and nothing in the cache")

    monkeypatch.setattr("diffusers.DiffusionPipeline.download", unreachable)
    with pytest.raises(OSError, match=r"repo id that is cached or reachable, got nobody/nothing: no network"):
        as_denoiser("nobody/nothing")


def test_a_pipeline_of_an_unknown_family_is_refused() -> None:
    from diffusers import StableDiffusionImg2ImgPipeline

    parts = make_family("Stable Diffusion").components
    pipeline = StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    with pytest.raises(TypeError, match=r"model must be one of StableDiffusionPipeline, .* got StableDiffusionImg2Img"):
        as_denoiser(pipeline)


def test_a_model_without_a_vae_has_no_posterior_to_sample() -> None:
    with pytest.raises(ValueError, match="latents must be \"mean\" but for a pipeline with a VAE, got 'sample'"):
        as_denoiser((make_unet(), make_scheduler()), latents="sample")


def test_an_encoder_in_train_mode_is_refused() -> None:
    pipeline = make_family("Stable Diffusion")
    pipeline.text_encoder.train()
    with pytest.raises(ValueError, match=r"text_encoder of the pipeline must be in eval mode"):
        as_denoiser(pipeline)
    pipeline.text_encoder.eval()
    pipeline.text_encoder.extra = nn.Dropout(0.5).train()  # as an adapter brings it
    with pytest.raises(ValueError, match=r"layers must be in eval mode, extra are .* call text_encoder\.eval\(\)"):
        as_denoiser(pipeline)


def test_a_sampled_posterior_is_a_function_of_the_sample_and_the_seed() -> None:
    from journey.models.stable_diffusion import StableDiffusion

    pipeline, dataset = make_family("Stable Diffusion"), Captioned(3)
    mean = StableDiffusion(pipeline).encode_images(dataset.images, [0, 1, 2])
    sampled = as_denoiser(pipeline, latents="sample").encode_images(dataset.images, [0, 1, 2])
    alone = StableDiffusion(pipeline, latents="sample").encode_images(dataset.images[1:2], [1])
    other = StableDiffusion(pipeline, latents="sample", seed=1).encode_images(dataset.images, [0, 1, 2])
    torch.testing.assert_close(alone, sampled[1:2], rtol=1e-5, atol=1e-5)
    assert (sampled - other).abs().max() > 0.01
    deviation = pipeline.vae.encode(dataset.images).latent_dist.std * pipeline.vae.config.scaling_factor
    scaled = (sampled - mean) / deviation
    # 768 standard normal numbers: five standard errors.
    assert abs(scaled.mean().item()) < 5 / scaled.numel() ** 0.5
    assert abs(scaled.square().mean().item() - 1) < 5 * (2 / scaled.numel()) ** 0.5


class Ready:
    """Images with ready-made embeddings."""

    def __init__(self, key: str) -> None:
        self.images = torch.tanh(randn(3, 1, 8, 8, seed=2))
        self.states = randn(3, 5, 16, seed=3)
        self.key = key

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], self.key: self.states[index] if self.key != "label" else index}


def test_a_bare_conditional_network_takes_embeddings_from_its_dataset(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, scheduler, dataset = make_conditional_unet(channels=1), make_scheduler(), Ready("encoder_hidden_states")
    draws = StratifiedDraws(num_draws=2)
    features = journey.featurize((network, scheduler), dataset, tmp_path / "f", draws=draws, **EXACT)
    assert not (tmp_path / "f" / "encoded").exists(), "nothing is encoded, so nothing is to be kept"
    times, noise = draws.timesteps([0, 1, 2], 100).flatten(), draws.noise([0, 1, 2], (1, 8, 8), torch.device("cpu"))
    rows_x0, rows_told = dataset.images.repeat_interleave(2, 0), dataset.states.repeat_interleave(2, 0)

    def losses(rows: slice) -> Tensor:
        target = noise.flatten(0, 2)[rows]
        noisy = scheduler.add_noise(rows_x0[rows], target, times[rows])
        return (network(noisy, times[rows], rows_told[rows]).sample - target).square().flatten(1).mean(1)

    assert_same_gradients(network, features.matrix(), one_at_a_time(network, losses, 3, 2))
    condition = Condition({"encoder_hidden_states": dataset.states[:1]})
    trajectory = journey.record((network, scheduler), condition=condition, num_inference_steps=3, progress=False)
    scores = journey.score(features, trajectory, num_draws=2, progress=False)
    assert scores.values.shape == (1, 3, 3)
    whole = journey.score(features, images=dataset.images[:1], conditions=condition, num_draws=2, progress=False)
    item = journey.score(features, images=[dataset[0]], num_draws=2, progress=False)
    assert torch.equal(whole.values, item.values)
    with pytest.raises(TypeError, match="conditions belong to images as the network takes them"):
        journey.score(features, images=[dataset[0]], conditions=condition, num_draws=2, progress=False)
    with pytest.raises(TypeError, match="has no null condition"):
        journey.record((network, scheduler), condition=condition, guidance_scale=2.0, progress=False)


def test_a_bare_network_with_a_text_encoder_of_the_callers_is_guided_and_cached(tmp_path: Path) -> None:
    from journey.models.conditional import ConditionalDenoiser

    torch.manual_seed(0)
    calls: list[str] = []

    def encode_prompt(prompts: list[str]) -> Tensor:
        calls.extend(prompts)
        return torch.stack([randn(5, 16, seed=len(prompt)) for prompt in prompts])

    class Texts(Ready):
        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"image": self.images[index], "text": "x" * (index + 1)}

    denoiser = ConditionalDenoiser(make_conditional_unet(channels=1), make_scheduler(), encode_prompt=encode_prompt)
    features = journey.featurize(denoiser, Texts("text"), tmp_path / "f", draws=StratifiedDraws(2), progress=False)
    # Once for the fit, once for all draws; the last one also fills the batch of nine.
    assert {text: calls.count(text) for text in ("x", "xx", "xxx")} == {"x": 2, "xx": 2, "xxx": 2 + 6}
    plain = journey.record(denoiser, prompt="xx", num_inference_steps=3, progress=False)
    guided = journey.record(denoiser, prompt="xx", guidance_scale=3.0, num_inference_steps=3, progress=False)
    assert (plain.guidance_scale, plain.prompts) == (1.0, ("xx",))
    assert (plain.images - guided.images).abs().max() > 1e-3
    assert torch.equal(guided.negative["encoder_hidden_states"][0], randn(5, 16, seed=0))  # type: ignore[index]
    assert journey.score(features, guided, num_draws=2, progress=False).values.shape == (1, 3, 3)


def test_a_bare_unet_with_classes_takes_labels(tmp_path: Path) -> None:
    unet = make_unet(num_class_embeds=4)
    features = journey.featurize(
        (unet, make_scheduler()), Ready("label"), tmp_path / "f", draws=StratifiedDraws(2), progress=False
    )
    found = journey.record((unet, make_scheduler()), class_labels=[0, 3], num_inference_steps=3, progress=False)
    assert (found.images[0] - found.images[1]).abs().max() > 1e-3
    assert found.prompts == ("class 0", "class 3")
    assert journey.score(features, found, num_draws=2, progress=False).values.shape == (2, 3, 3)


def test_rows_of_samples_follow_their_captions() -> None:
    told = Condition({"c": torch.arange(6)})
    encoded = Encoded(torch.zeros(3, 1), told, [2, 1, 3])
    chosen = encoded.conditions(torch.tensor([[1, 0], [0, 0], [2, 1]]))
    assert chosen is not None
    assert chosen["c"].tolist() == [1, 0, 2, 2, 5, 4]
    part = encoded.select(1, 3)
    assert part.condition is not None
    assert part.condition["c"].tolist() == [2, 3, 4, 5]
    again = Encoded.cat([encoded.select(0, 1), part])
    assert again.condition is not None
    assert again.condition["c"].tolist() == list(range(6))
    assert again.counts == [2, 1, 3]
