"""Text-to-image transformers: gradients and losses are the trainer's, sampling is the pipeline's, a run goes through.

Gradients, losses and samples are compared with loops over single rows that call the network as the official training
script or the pipeline does. Prompts have different lengths.
"""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import randn
from families import PROMPTS, SIZE, make_family
from flow_families import FLOWS, make_flow, make_quiet
from models import assert_same_gradients, one_at_a_time
from torch import Tensor, nn
from video_families import VIDEOS

import journey
from journey.errors import CoverageError, GradientCheckError
from journey.measure.draws import StratifiedDraws
from journey.measure.featurizer import Featurizer
from journey.measure.measurements import TrainingLoss
from journey.models.load import as_denoiser
from journey.models.schedulers import as_schedule
from journey.ops.keys import derive_key, to_signed
from journey.ops.noise import keyed_noise
from journey.projectors.exact import Identity
from journey.projectors.random import CountSketch
from journey.report.run import Run

NUM_DRAWS = 2
KINDS = {**FLOWS, **VIDEOS}
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "to_out", "to_qkv_mlp_proj", "add_q_proj", "to_add_out")


def add_adapter(network: Any) -> None:
    """The adapter of the official LoRA scripts, all of whose weights are random."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    targets = [name for name, part in network.named_modules() if isinstance(part, nn.Linear) and name.endswith(TARGETS)]
    # As ``network.add_adapter`` does, which PixArt's transformer lacks.
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, lora_alpha=2, target_modules=targets), network)
    with torch.no_grad():
        for name, p in network.named_parameters():
            if ".lora_B." in name:
                p.normal_(std=0.1)
    network.eval()


def networks_of(pipeline: Any) -> nn.Module:
    """What a script trains: the transformer, or both."""
    second = getattr(pipeline, "transformer_2", None)
    return pipeline.transformer if second is None else nn.ModuleList([pipeline.transformer, second]).eval()


def train_everything(network: nn.Module, *left_out: str) -> None:
    """A full fine-tune, but for what is said to have no rule."""
    for name, p in network.named_parameters():
        p.requires_grad_(not any(part in name for part in left_out))


@pytest.mark.parametrize("kind", ["adapter", "everything"])
@pytest.mark.parametrize("name", KINDS)
def test_gradients_and_losses_are_those_of_the_trainer(name: str, kind: str) -> None:
    pipeline, dataset, ids = make_quiet(KINDS[name]), KINDS[name].dataset(3), [0, 1, 2]
    if kind == "adapter":
        add_adapter(networks_of(pipeline))
    else:
        train_everything(networks_of(pipeline), *KINDS[name].uncovered, *KINDS[name].frozen)
    denoiser = as_denoiser(pipeline)
    encoded = denoiser.encode([dataset[i] for i in ids], ids)
    with torch.no_grad():
        x0 = KINDS[name].latents(pipeline, dataset.images)
    torch.testing.assert_close(encoded.x0, x0, rtol=1e-5, atol=1e-5)

    timesteps = torch.tensor([[[3, 640]], [[250, 999]], [[20, 800]]])
    noise = randn(3, 1, NUM_DRAWS, *x0.shape[1:], seed=5)
    featurizer = Featurizer(denoiser, measurement=TrainingLoss(), projector=Identity())
    features, values = featurizer.features(encoded.x0, timesteps, noise, condition=encoded.condition)

    # A row at a time, under its prompt alone.
    scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)

    def losses(rows: slice) -> Tensor:
        found = []
        for row in range(6)[rows]:
            image, drawn, t = x0[row // 2][None], noise.flatten(0, 2)[row][None], timesteps.flatten()[row : row + 1]
            noisy, time, target = KINDS[name].noised(scheduler, image, drawn, t)
            found.append((KINDS[name].call(pipeline, noisy, time, PROMPTS[row // 2]) - target).square().mean())
        return torch.stack(found)

    expected = one_at_a_time(denoiser.network, losses, 3, NUM_DRAWS)
    wanted = losses(slice(0, 6)).view(3, 2).mean(1).detach()
    torch.testing.assert_close(values.flatten(), wanted, rtol=1e-5, atol=1e-6)
    assert_same_gradients(denoiser.network, features[:, 0], expected)
    print(f"{name} {kind}: gradients {(features[:, 0] - expected).norm() / expected.norm():.1e}, ", end="")
    print(f"losses {((values.flatten() - wanted) / wanted).abs().max():.1e}")


@pytest.mark.parametrize("name", KINDS)
def test_recording_is_the_pipelines_own_sampling(name: str) -> None:
    pipeline, prompts = make_quiet(KINDS[name]), ["a red apple", "two"]
    shape = as_denoiser(pipeline).shape_of(KINDS[name].size)
    key = torch.tensor([to_signed(derive_key(4, "trajectory", 0))])
    start = keyed_noise(key, 1, shape, torch.device("cpu"), antithetic=False, per=1)[:, 0, 0]
    default = as_denoiser(pipeline).default_guidance
    other = "ugly green pears" if KINDS[name].takes_negatives else None
    for scale, negative in ((default, None), (3.0, other), (as_denoiser(pipeline).no_guidance, None)):
        told = {} if negative is None else {"negative_prompt": negative}
        asked = list(prompts)
        found = journey.record(
            pipeline,
            seed=4,
            prompt=asked,
            num_inference_steps=5,
            size=KINDS[name].size,
            guidance_scale=scale,
            progress=False,
            **told,
        )
        assert asked == prompts, "the caller's list was edited"
        expected = KINDS[name].sample(pipeline, start.expand(2, *start.shape[1:]), list(prompts), scale, negative)
        error = (found.images - expected).abs().max() / expected.abs().max()
        assert error <= 1e-5, f"at guidance {scale}: {error:.1e}"
        assert (found.images[0] - found.images[1]).abs().max() > 1e-3, "the prompt made no difference"
        print(f"{name} at guidance {scale}: samples {error:.1e}")


@pytest.mark.parametrize("name", KINDS)
def test_the_default_guidance_is_that_of_the_pipeline(name: str) -> None:
    pipeline = make_quiet(KINDS[name])
    parameters = signature(type(pipeline).__call__).parameters
    guided = "true_cfg_scale" if "true_cfg_scale" in parameters else "guidance_scale"
    scale = parameters[KINDS[name].guidance or guided]
    assert as_denoiser(pipeline).default_guidance == scale.default


@pytest.mark.parametrize("name", KINDS)
def test_a_run_goes_through_to_its_page(name: str, tmp_path: Path) -> None:
    pipeline, dataset = make_quiet(KINDS[name]), KINDS[name].dataset(3)
    add_adapter(networks_of(pipeline))
    options = {"draws": StratifiedDraws(num_draws=2, bins=2), "projector": CountSketch(64), "progress": False}
    journey.featurize(pipeline, dataset, tmp_path / "f", **options)
    features = journey.open_features(tmp_path / "f", pipeline)
    trajectory = journey.record(
        pipeline, prompt=PROMPTS[0], num_inference_steps=3, size=KINDS[name].size, progress=False
    )
    trajectory.save(tmp_path / "t.safetensors")
    trajectory = journey.Trajectory.load(tmp_path / "t.safetensors")
    scores = journey.score(features, trajectory, num_draws=2, progress=False)
    assert scores.values.shape == (1, 3, 3)
    assert scores.values.isfinite().all()
    assert scores.values.abs().max() > 0
    page = Run(trajectory, scores, dataset).write_report(tmp_path / "page.html")
    assert PROMPTS[0] in page.read_text(encoding="utf-8")
    assert as_denoiser(pipeline).decode(trajectory.images).shape == (1, *KINDS[name].decoded)


def test_texts_of_different_lengths_are_padded_with_a_mask_and_trimmed() -> None:
    from journey.models.condition import Condition
    from journey.models.flow import padded

    one, two = padded([torch.ones(2, 3)]), padded([torch.ones(4, 3), torch.ones(1, 3)])
    both = Condition.cat([one, two])
    assert both["encoder_hidden_states"].shape == (3, 4, 3)
    assert both["encoder_hidden_states_mask"].sum(1).tolist() == [2, 4, 1]
    assert both["encoder_hidden_states"].sum((1, 2)).tolist() == [6, 12, 3]
    again = both.select([0, 2]).trimmed()
    assert again["encoder_hidden_states"].shape == (2, 2, 3)
    assert again["encoder_hidden_states_mask"].tolist() == [[True, True], [True, False]]
    with pytest.raises(ValueError, match="conditions must have rows of the same names and shapes"):
        Condition.cat([Condition({"a": torch.ones(1, 2, 3)}), Condition({"a": torch.ones(1, 4, 3)})])
    with pytest.raises(ValueError, match="conditions must have rows of the same names and shapes"):
        Condition.cat([one, padded([torch.ones(2, 5)])])


def test_a_pipeline_whose_text_encoder_was_dropped_says_so() -> None:
    pipeline = make_flow("Z-Image")
    pipeline.text_encoder = None
    with pytest.raises(ValueError, match="text_encoder of the pipeline must be there to read a prompt, got None"):
        journey.record(pipeline, prompt="two", num_inference_steps=1, size=SIZE, progress=False)


def test_a_distilled_klein_is_sampled_without_guidance() -> None:
    pipeline = make_flow("FLUX.2 Klein")
    pipeline.register_to_config(is_distilled=True)
    found = journey.record(pipeline, prompt="two", num_inference_steps=2, size=SIZE, progress=False)
    again = journey.record(pipeline, prompt="two", num_inference_steps=2, size=SIZE, guidance_scale=4.0, progress=False)
    assert found.guidance_scale == again.guidance_scale == 1.0
    assert torch.equal(found.images, again.images)


def test_an_autoencoder_without_a_posterior_gives_no_samples_of_it() -> None:
    with pytest.raises(ValueError, match='latents must be "mean" for SANA, whose autoencoder has no posterior'):
        as_denoiser(make_flow("SANA"), latents="sample")


@pytest.mark.parametrize("kind", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_a_solver_that_is_set_to_flow_matching_samples_as_in_its_pipeline(kind: str) -> None:
    import diffusers

    pipeline = make_flow("SANA")
    euler = as_denoiser(pipeline).schedule
    options = {"prediction_type": "flow_prediction", "flow_shift": 3.0}
    with pytest.raises(ValueError, match="must have use_flow_sigmas=True, got False"):
        as_schedule(getattr(diffusers, kind)(**options))
    pipeline.scheduler = getattr(diffusers, kind)(**options, use_flow_sigmas=True)
    assert as_denoiser(pipeline).schedule.fingerprint() == euler.fingerprint()
    prompts = ["a red apple", "two"]
    found = journey.record(pipeline, seed=4, prompt=prompts, num_inference_steps=5, size=SIZE, progress=False)
    key = torch.tensor([to_signed(derive_key(4, "trajectory", 0))])
    start = keyed_noise(key, 1, (4, 8, 8), torch.device("cpu"), antithetic=False, per=1)[:, 0, 0]
    expected = FLOWS["SANA"].sample(pipeline, start.expand(2, -1, -1, -1), prompts, 4.5, None)
    assert (found.images - expected).abs().max() <= 1e-5 * expected.abs().max()
    # What the last prediction implies is nearly where the sampler ends.
    assert (found.x0_hat[:, -1] - expected).abs().max() <= 0.05 * expected.abs().max()


@pytest.mark.parametrize("name", KINDS)
def test_another_network_predicts_the_same_without_the_parts_that_encode(name: str) -> None:
    denoiser = as_denoiser(make_quiet(KINDS[name]))
    x_t, timesteps = randn(2, *denoiser.shape_of(KINDS[name].size), seed=3), torch.tensor([30, 700])
    told = denoiser.encode_prompt(["a red apple", "two"])
    with torch.no_grad():
        wanted = denoiser.predict(x_t, timesteps, told)
        found = denoiser.around(denoiser.network).predict(x_t, timesteps, told)
    assert torch.equal(found, wanted)
    if name != "SANA":
        sampled = as_denoiser(make_quiet(KINDS[name]), latents="sample").encode_images(
            KINDS[name].dataset(2).images, [0, 1]
        )
        assert sampled.shape == (2, *denoiser.shape_of(KINDS[name].size))


@pytest.mark.parametrize("family", ["SANA", "Qwen-Image"])
def test_a_distilled_network_that_embeds_guidance_is_refused(family: str) -> None:
    pipeline = make_flow(family)
    pipeline.transformer.register_to_config(guidance_embeds=True)
    with pytest.raises(ValueError, match=r"Pipeline must not embed guidance, got guidance_embeds=True"):
        as_denoiser(pipeline)


def test_routed_experts_that_get_no_gradient_must_be_frozen() -> None:
    pipeline = make_flow("HiDream")
    pipeline.transformer.requires_grad_(True)
    with pytest.raises(ValueError, match=r"routed experts of HiDream\w+ must not be trainable, .* got .*\.experts\.0"):
        as_denoiser(pipeline)


@pytest.mark.parametrize("name", [name for name in KINDS if KINDS[name].uncovered])
def test_what_has_no_rule_is_named_and_left_to_autograd(name: str, tmp_path: Path) -> None:
    pipeline = make_quiet(KINDS[name])
    train_everything(pipeline.transformer, *KINDS[name].frozen)
    options: dict[str, Any] = {"projector": CountSketch(64), "draws": StratifiedDraws(num_draws=2), "progress": False}
    with pytest.raises((CoverageError, GradientCheckError), match=KINDS[name].uncovered[0].replace(".", r"\.")):
        journey.featurize(pipeline, KINDS[name].dataset(2), tmp_path / "refused", **options)
    found = journey.featurize(
        pipeline, KINDS[name].dataset(2), tmp_path / "f", uncovered="autograd", **options
    )  # and checked
    assert found.matrix().any(1).all()


@pytest.mark.parametrize("kind", ["DDIMScheduler", "EDMEulerScheduler", "DPMSolverMultistepScheduler"])
@pytest.mark.parametrize("name", ["SANA", "Z-Image", "Stable Diffusion 3"])
def test_a_network_of_flow_matching_is_refused_with_another_scheduler(name: str, kind: str) -> None:
    import diffusers

    pipeline = make_flow(name) if name in FLOWS else make_family(name)
    pipeline.scheduler = getattr(diffusers, kind)()
    with pytest.raises(ValueError, match=f"Pipeline must be one of flow matching, .* got {kind} with "):
        as_denoiser(pipeline)


def test_hidream_takes_images_that_are_no_squares_up_to_its_tokens() -> None:
    pipeline = make_flow("HiDream")
    found = journey.record(pipeline, seed=4, prompt="two", num_inference_steps=2, size=(8, 32), progress=False)
    expected = pipeline(
        ["two"], latents=found.x_t[:, 0], num_inference_steps=2, output_type="latent", height=8, width=32
    ).images
    torch.testing.assert_close(found.images, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"at most 16 tokens of 4 pixels .* got \(8, 36\) with 18"):
        as_denoiser(pipeline).shape_of((8, 36))
    assert as_denoiser(pipeline).shape_of((32, 32)) == (4, 16, 16)
