"""LoRA adapters: their parameters alone are measured, from peft or from a file, and several files are checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import add_adapter, save_adapter
from families import LATENT, Captioned, make_family
from models import assert_same_gradients, one_at_a_time
from torch import Tensor, nn

import journey
from journey.measure.draws import StratifiedDraws
from journey.models.load import as_denoiser
from journey.projectors.exact import Identity

peft = pytest.importorskip("peft")

EXACT: dict[str, Any] = {
    "projector": Identity(),
    "measurement": journey.TrainingLoss(),
    "row": "float32",
    "progress": False,
}


def lora_names(network: nn.Module) -> list[str]:
    return [name for name, _ in network.named_parameters() if ".lora_" in name]


def test_features_are_autograds_gradients_of_the_adapter_alone(tmp_path: Path) -> None:
    pipeline, dataset = make_family("Stable Diffusion"), Captioned(2)
    add_adapter(pipeline.unet)
    denoiser, draws = as_denoiser(pipeline), StratifiedDraws(num_draws=2)
    features = journey.featurize(pipeline, dataset, tmp_path / "f", draws=draws, **EXACT)
    names = [slot.name for slot in features.featurizer.engine.slots.values()]
    assert names == lora_names(pipeline.unet)
    encoded = denoiser.encode([dataset[0], dataset[1]], [0, 1])
    times, noise = (
        draws.timesteps([0, 1], 1000).flatten(),
        draws.noise([0, 1], (4, LATENT, LATENT), torch.device("cpu")),
    )
    rows = encoded.x0.repeat_interleave(2, 0)
    assert encoded.condition is not None
    states = encoded.condition["encoder_hidden_states"].repeat_interleave(2, 0)

    def losses(chosen: slice) -> Tensor:
        target = noise.flatten(0, 2)[chosen]
        noisy = pipeline.scheduler.add_noise(rows[chosen], target, times[chosen])
        prediction = pipeline.unet(noisy, times[chosen], states[chosen]).sample
        return (prediction - target).square().flatten(1).mean(1)

    assert_same_gradients(pipeline.unet, features.matrix(), one_at_a_time(pipeline.unet, losses, 2, 2))


def test_an_adapter_loaded_from_a_file_is_measured_like_the_one_that_was_saved(tmp_path: Path) -> None:
    trained, fresh, dataset = make_family("Stable Diffusion"), make_family("Stable Diffusion"), Captioned(2)
    add_adapter(trained.unet)
    save_adapter(trained, tmp_path / "lora")
    fresh.load_lora_weights(tmp_path / "lora")
    options: dict[str, Any] = {"draws": StratifiedDraws(num_draws=2), **EXACT}
    found = journey.featurize(fresh, dataset, tmp_path / "f", **options)
    wanted = journey.featurize(trained, dataset, tmp_path / "g", **options)
    torch.testing.assert_close(found.matrix(), wanted.matrix(), rtol=1e-4, atol=1e-6)
    trajectory = journey.record(fresh, prompt="two", num_inference_steps=3, progress=False)
    assert journey.score(found, trajectory, num_draws=2, progress=False).values.shape == (1, 3, 2)


@pytest.mark.parametrize("name", ["Stable Diffusion XL", "Stable Diffusion 3", "Flux"])
def test_an_adapter_of_every_text_family_is_loaded_from_its_file_and_alone_is_measured(
    name: str, tmp_path: Path
) -> None:
    trained, fresh, dataset = make_family(name), make_family(name), Captioned(2)
    part = "unet" if hasattr(trained, "unet") else "transformer"
    add_adapter(getattr(trained, part))
    weights = peft.get_peft_model_state_dict(getattr(trained, part))
    type(trained).save_lora_weights(tmp_path / "lora", **{f"{part}_lora_layers": weights})
    fresh.load_lora_weights(tmp_path / "lora")
    # The first batch is compared with autograd.
    options: dict[str, Any] = {"draws": StratifiedDraws(num_draws=2), **EXACT}
    found = journey.featurize(fresh, dataset, tmp_path / "f", **options)
    assert [slot.name.replace("default_0", "default") for slot in found.featurizer.engine.slots.values()] == lora_names(
        getattr(trained, part)
    )
    wanted = journey.featurize(trained, dataset, tmp_path / "g", **options)
    torch.testing.assert_close(found.matrix(), wanted.matrix(), rtol=1e-4, atol=1e-6)
    assert wanted.matrix().any(1).all()


def test_files_of_an_adapter_are_checkpoints(tmp_path: Path) -> None:
    dataset, options = Captioned(2), {"draws": StratifiedDraws(num_draws=2), **EXACT}
    alone = []
    for seed in (1, 2):
        pipeline = make_family("Stable Diffusion")
        add_adapter(pipeline.unet, seed)
        save_adapter(pipeline, tmp_path / f"lora{seed}")
        alone.append(journey.featurize(pipeline, dataset, tmp_path / f"f{seed}", **options).matrix())
    pipeline = make_family("Stable Diffusion")
    add_adapter(pipeline.unet, 3)
    before = {name: p.clone() for name, p in pipeline.unet.named_parameters()}
    paths = [tmp_path / "lora1", tmp_path / "lora2" / "pytorch_lora_weights.safetensors"]
    both = journey.featurize(pipeline, dataset, tmp_path / "f", checkpoints=paths, **options)
    for i, wanted in enumerate(alone):
        torch.testing.assert_close(both.matrix(i), wanted, rtol=1e-4, atol=1e-6)
    assert not torch.equal(alone[0], alone[1])
    assert all(torch.equal(p, before[name]) for name, p in pipeline.unet.named_parameters())


def test_a_file_of_another_adapter_is_refused(tmp_path: Path) -> None:
    pipeline, plain = make_family("Stable Diffusion"), make_family("Stable Diffusion")
    add_adapter(pipeline.unet)
    save_adapter(pipeline, tmp_path / "lora")
    with pytest.raises(ValueError, match="checkpoint of a LoRA adapter needs a network with one adapter, got none"):
        journey.featurize(plain, Captioned(2), tmp_path / "f", checkpoints=[tmp_path / "lora"], progress=False)
    plain.unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"]))
    plain.unet.eval()
    with pytest.raises(ValueError, match="checkpoint does not fit the adapter: 0 weights are missing"):
        journey.featurize(plain, Captioned(2), tmp_path / "f", checkpoints=[tmp_path / "lora"], progress=False)


def test_a_dropout_in_train_mode_inside_the_adapter_is_refused() -> None:
    pipeline = make_family("Stable Diffusion")
    add_adapter(pipeline.unet)
    dropouts = [module for module in pipeline.unet.modules() if isinstance(module, nn.Dropout) and module.p == 0.5]
    dropouts[0].train()
    with pytest.raises(ValueError, match=r"layers must be in eval mode, .*lora_dropout.* are in train mode"):
        as_denoiser(pipeline)
