"""Models of videos and of sounds: what fits them, two experts, regions in every frame, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cases import randn
from flow_families import make_quiet
from models import assert_same_gradients
from torch import Tensor, nn
from video_families import VIDEO, VIDEOS

import journey
from journey.measure.draws import StratifiedDraws
from journey.measure.featurizer import Featurizer
from journey.measure.measurements import TrainingLoss
from journey.models.experts import Experts
from journey.models.load import as_denoiser
from journey.models.lora_files import load_lora
from journey.projectors.exact import Identity
from journey.projectors.random import CountSketch


@pytest.fixture(scope="module")
def wan22() -> Any:
    """Trained in a few of its parameters."""
    pipeline = make_quiet(VIDEOS["Wan 2.2"])
    for network in (pipeline.transformer, pipeline.transformer_2):
        for name, p in network.named_parameters():
            p.requires_grad_("attn1.to_q" in name)
    return pipeline


def test_draws_of_any_number_in_any_bins_go_to_their_own_expert(wan22: Any) -> None:
    denoiser = as_denoiser(wan22)
    (boundary,) = denoiser.boundaries
    times = denoiser.schedule.network_time(torch.tensor([boundary - 1, boundary]))
    assert times[0] < 874.99 < times[1]  # which is 875, rounded
    encoded = denoiser.encode([VIDEOS["Wan 2.2"].dataset(2)[i] for i in range(2)], [0, 1])
    # Bins with draws of both, of one, and other numbers of them in other samples.
    timesteps = torch.tensor([[[1, 900, 3], [800, 801, 999]], [[5, 4, 3], [650, 800, boundary]]])
    noise, weights = randn(2, 2, 3, *encoded.x0.shape[1:], seed=5), randn(2, 2, 3, seed=6).abs()
    condition = encoded.condition
    featurizer = Featurizer(denoiser, measurement=TrainingLoss(), projector=Identity())
    calls: list[list[int]] = []
    names = {wan22.transformer: 0, wan22.transformer_2: 1}

    def count(network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append([names[network], len(args[0])])

    handles = [network.register_forward_pre_hook(count, with_kwargs=True) for network in names]
    features, values = featurizer.features(encoded.x0, timesteps, noise, condition=condition, weights=weights)
    for handle in handles:
        handle.remove()
    assert {first for first, _ in calls} == {0, 1}

    # Both on all rows, each row taking the answer of its own.
    def mean(sample: int, bin_: int) -> Tensor:
        x0, drawn, t = encoded.x0[sample].expand(3, -1, -1, -1, -1), noise[sample, bin_], timesteps[sample, bin_]
        told = condition.select([sample]).expand(3)
        states = nn.functional.pad(
            told["encoder_hidden_states"], (0, 0, 0, 12 - told["encoder_hidden_states"].shape[1])
        )
        noisy, time = denoiser.add_noise(x0, drawn, t), denoiser.schedule.network_time(t)
        high, low = (network(noisy, time, states).sample for network in (wan22.transformer, wan22.transformer_2))
        found = torch.where((time >= 874.99).view(-1, 1, 1, 1, 1), high, low)
        return ((found - (drawn - x0)).square().flatten(1).mean(1) * weights[sample, bin_]).mean()

    parameters = [p for p in denoiser.network.parameters() if p.requires_grad]
    for bin_ in range(2):
        means = [mean(sample, bin_) for sample in range(2)]
        grads = [torch.autograd.grad(value, parameters) for value in means]
        expected = torch.stack([torch.cat([g.flatten() for g in of]) for of in grads])
        assert_same_gradients(denoiser.network, features[:, bin_], expected, may_be_zero=True)
        torch.testing.assert_close(values[:, bin_], torch.stack(means).detach(), rtol=1e-5, atol=1e-6)

    # Norms of single draws are measured in mixed passes.
    norms = featurizer.norms(encoded.x0, timesteps, noise, condition=condition)
    assert norms.shape == (2, 2, 3, len(parameters))
    of_expert = torch.stack(
        [norms[..., : len(parameters) // 2].norm(dim=-1), norms[..., len(parameters) // 2 :].norm(dim=-1)]
    )
    high = timesteps >= boundary
    assert (of_expert[0] > 0).equal(high)
    assert (of_expert[1] > 0).equal(~high)


def test_a_region_of_a_video_is_the_same_in_every_frame_and_its_parts_add_up(tmp_path: Path) -> None:
    pipeline, family = make_quiet(VIDEOS["LTX"]), VIDEOS["LTX"]
    options = {"projector": CountSketch(64), "draws": StratifiedDraws(num_draws=2), "progress": False}
    features = journey.featurize(
        pipeline, family.dataset(2), tmp_path / "f", select="*attn1.to_q*", check=False, **options
    )
    trajectory = journey.record(pipeline, prompt="two", num_inference_steps=2, size=VIDEO, progress=False)
    box = torch.zeros(VIDEO[1:])
    box[2:6, 1:5] = 1
    shared = {"damping": 0.1, "num_draws": 2, "progress": False}
    whole = journey.score(features, trajectory, **shared).values
    inside, outside = (journey.score(features, trajectory, region=part, **shared).values for part in (box, 1 - box))
    torch.testing.assert_close(inside + outside, whole, rtol=0, atol=1e-5 * whole.abs().max().item())
    given = journey.score(features, trajectory, region=lambda video: video.mean((0, 1)).sigmoid(), **shared)
    assert given.values.isfinite().all()
    images = journey.score(features, images=family.dataset(2), region=(2, 1, 6, 5), **shared)
    assert images.values.isfinite().all()


def test_sounds_have_no_regions_and_their_own_length(tmp_path: Path) -> None:
    pipeline, family = make_quiet(VIDEOS["Stable Audio"]), VIDEOS["Stable Audio"]
    denoiser = as_denoiser(pipeline)
    options = {"projector": CountSketch(64), "draws": StratifiedDraws(num_draws=2), "progress": False}
    features = journey.featurize(
        pipeline, family.dataset(2), tmp_path / "f", select="*attn1.to_q*", check=False, **options
    )
    trajectory = journey.record(pipeline, prompt="two", num_inference_steps=2, progress=False)
    assert trajectory.image_pixels.shape == (1, 2, 32)
    assert trajectory.pixels is not None
    assert trajectory.pixels.dtype == torch.int16
    decoded = denoiser.decode(trajectory.images)
    torch.testing.assert_close(trajectory.image_pixels, decoded, rtol=0, atol=1 / 32767)
    with pytest.raises(ValueError, match="region must be None for sounds"):
        journey.score(features, trajectory, region=(0, 0, 1, 1), progress=False)
    sound = {"audio": torch.zeros(2, 32), "text": "two"}
    full, _ = denoiser.encode_conditions([sound], ["a"])
    short, _ = denoiser.encode_conditions([{**sound, "seconds_total": 2.0}], ["a"])
    assert torch.equal(full["encoder_hidden_states"], denoiser.encode_prompt(["two"])["encoder_hidden_states"])
    assert not torch.equal(full["global_hidden_states"], short["global_hidden_states"])
    assert denoiser.describe(sound, "a") != denoiser.describe({**sound, "seconds_total": 2.0}, "a")
    for wrong in (9.0, None, "2", True, float("nan"), torch.ones(2)):
        with pytest.raises(
            ValueError, match=r"seconds_total of a must be above 0 and at most 8, got .*: it is the number"
        ):
            denoiser.encode_conditions([{**sound, "seconds_total": wrong}], ["a"])
    with pytest.raises(ValueError, match=r"must be a sound \[C, T\] = \[2, 32\] at 4 samples a second, got \[2, 31\]"):
        denoiser.check_image(torch.zeros(2, 31), "a")
    with pytest.raises(ValueError, match="files of sounds are not read"):
        journey.featurize(pipeline, tmp_path, tmp_path / "g", progress=False)


@pytest.mark.parametrize("name", ["Wan 2.1", "CogVideoX rotary"])
def test_a_video_that_does_not_fit_is_refused_in_words(name: str) -> None:
    denoiser = as_denoiser(make_quiet(VIDEOS[name]))
    with pytest.raises(ValueError, match=r"a must be a video \[F, C, H, W\], got \[3, 8, 8\]; a still image is one of"):
        denoiser.check_image(torch.zeros(3, 8, 8), "a")
    with pytest.raises(ValueError, match=r"a must be a video \[F, 3, H, W\], got \[3, 5, 8, 8\]"):
        denoiser.check_image(torch.zeros(3, 5, 8, 8), "a")
    with pytest.raises(ValueError, match=r"a does not fit: size must have 1, .* frames"):
        denoiser.check_image(torch.zeros(4, 3, 8, 8), "a")
    with pytest.raises(ValueError, match="size must be a height and width that 4 divides"):
        denoiser.shape_of((5, 8, 6))
    with pytest.raises(ValueError, match="size must be the frames, height and width of a video, got"):
        denoiser.shape_of((8, 8))
    denoiser.video_size = 16  # type: ignore[assignment]
    with pytest.raises(TypeError, match=r"video_size must be a tuple of positive integers, .* got 16"):
        denoiser.shape_of(None)
    with pytest.raises(ValueError, match="a has NaN or infinite pixels"):
        denoiser.check_image(torch.full((5, 3, 8, 8), torch.nan), "a")


def test_an_adapter_of_one_expert_alone_asks_for_the_other_to_be_frozen(wan22: Any) -> None:
    high, low = nn.Module(), nn.Module()
    high.to_q = nn.Module()
    high.to_q.lora_A = nn.Linear(1, 1)
    low.w = nn.Parameter(torch.zeros(1))
    high.config = None  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"transformer_2 must have an adapter .* call transformer_2.requires_grad_"):
        Experts(high, low, 875)
    Experts(high, low.requires_grad_(False), 875)
    with pytest.raises(
        ValueError, match="lora of a Short must be 2 files, for transformer and transformer_2, got x; for"
    ):
        load_lora(wan22, "x")


@pytest.mark.parametrize("one", ["transformer", "transformer_2"])
def test_one_expert_alone_is_measured_on_its_own_draws(tmp_path: Path, one: str) -> None:
    pipeline, family = make_quiet(VIDEOS["Wan 2.2"]), VIDEOS["Wan 2.2"]
    options = {"projector": CountSketch(64), "draws": StratifiedDraws(num_draws=2, bins=10), "progress": False}
    alone = journey.featurize(pipeline, family.dataset(2), tmp_path / one, select=f"{one}.*", **options)
    assert alone.matrix().any()
    (shard,) = alone.shards()
    silent = (shard.features == 0).all(2).all(0)  # bins whose draws the other expert answers
    assert silent.any()
    assert not silent.all()
    assert bool(silent[0]) == (one == "transformer")  # noise is highest in the last bin


def test_a_scheduler_that_does_not_know_the_shift_is_refused_in_words() -> None:
    from diffusers import UniPCMultistepScheduler

    pipeline = make_quiet(VIDEOS["LTX"])
    pipeline.scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    with pytest.raises(ValueError, match=r"scheduler must tell base_image_seq_len, .* got UniPCMultistepScheduler"):
        journey.record(pipeline, prompt="two", num_inference_steps=2, size=VIDEO, progress=False)


@pytest.mark.parametrize("name", ["Stable Audio", "CogVideoX 1.0"])
def test_a_scheduler_of_another_kind_is_refused(name: str) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    pipeline = make_quiet(next(family for key, family in VIDEOS.items() if key.startswith(name.split(" 1")[0])))
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(ValueError, match=r"scheduler of a .* must be .* got a? ?FlowMatchEulerDiscreteScheduler"):
        as_denoiser(pipeline)


def test_pipelines_of_wan_that_are_told_more_are_refused() -> None:
    pipeline = make_quiet(VIDEOS["Wan 2.1"])
    pipeline.register_to_config(expand_timesteps=True)
    with pytest.raises(ValueError, match="one time for all tokens, got expand_timesteps=True"):
        as_denoiser(pipeline)
    pipeline.register_to_config(expand_timesteps=False, boundary_ratio=0.9)
    with pytest.raises(ValueError, match=r"transformer_2 of a Short with boundary_ratio=0.9 must be there, got None"):
        as_denoiser(pipeline)


@pytest.mark.parametrize("kind", ["mean", "sample"])
def test_the_extra_frame_of_a_block_is_a_copy_that_is_not_decoded(kind: str) -> None:
    family = VIDEOS["CogVideoX rotary"]
    denoiser = as_denoiser(make_quiet(family), latents=kind)
    latents = denoiser.encode_images(family.dataset(2).images, [0, 1])
    assert latents.shape == (2, 4, 4, 4, 4)
    assert torch.equal(latents[:, :, 0], latents[:, :, 1])
    assert denoiser.decode(latents).shape == (2, *VIDEO[:1], 3, *VIDEO[1:])


def test_two_experts_compute_in_what_their_network_does() -> None:
    pipeline = make_quiet(VIDEOS["Wan 2.2"])
    for network in (pipeline.transformer, pipeline.transformer_2):
        network.to(torch.bfloat16)
        for name, p in network.named_parameters():  # as diffusers loads it
            p.data = p.data.float() if any(part in name for part in network._keep_in_fp32_modules) else p.data
    assert as_denoiser(pipeline).dtype == torch.bfloat16
