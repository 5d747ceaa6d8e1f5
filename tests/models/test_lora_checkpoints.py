"""A file of an adapter put into a network is the network that diffusers would have loaded from that file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import (
    SPELLINGS,
    add_adapter,
    as_kohya,
    as_official,
    as_peft,
    as_peft_folder,
    part_of,
    peft,
    save,
    weights_of,
)
from families import Captioned, make_family
from torch import Tensor

import journey
from journey.measure.draws import StratifiedDraws
from journey.models.checkpoints import loaded
from journey.projectors.exact import Identity

OPTIONS: dict[str, Any] = {"draws": StratifiedDraws(num_draws=1), "projector": Identity(), "progress": False}


def trained(name: str = "Stable Diffusion", seed: int = 0, **options: Any) -> Any:
    pipeline = make_family(name)
    add_adapter(getattr(pipeline, part_of(pipeline)), seed, **options)
    return pipeline


def weights_of_network(network: Any, adapter: str = "default") -> Tensor:
    found = peft.get_peft_model_state_dict(network, adapter_name=adapter)
    return torch.cat([tensor.flatten() for tensor in found.values()])


def as_bin(pipeline: Any, folder: Path) -> Path:
    layers = {f"{part_of(pipeline)}_lora_layers": weights_of(pipeline)}
    type(pipeline).save_lora_weights(folder, safe_serialization=False, **layers)
    return folder


def as_official_with_text_encoder(pipeline: Any, folder: Path) -> Path:
    encoder = {"text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(2, 16)}
    encoder |= {"text_model.encoder.layers.0.self_attn.q_proj.lora_B.weight": torch.ones(16, 2)}
    tensors = {f"unet.{name}": tensor.contiguous() for name, tensor in weights_of(pipeline).items()}
    save({**tensors, **{f"text_encoder.{name}": t for name, t in encoder.items()}}, folder / "mine.safetensors")
    return folder


# Those that diffusers loads itself; the last need not tell their lora_alpha.
KNOWN: dict[str, Callable[[Any, Path], Path]] = {
    "diffusers": as_peft,
    "kohya": as_kohya,
    "lora.down and lora.up": as_official,
    "bin": as_bin,
}


@pytest.mark.parametrize("spelling", KNOWN)
def test_features_under_a_file_are_those_of_a_network_that_diffusers_loaded_from_it(
    spelling: str, tmp_path: Path
) -> None:
    path = KNOWN[spelling](trained(seed=1), tmp_path / "lora")
    by_diffusers, ours, dataset = make_family("Stable Diffusion"), trained(seed=2), Captioned(2)
    by_diffusers.load_lora_weights(path)
    by_diffusers.unet.eval()
    wanted = journey.featurize(by_diffusers, dataset, tmp_path / "f", **OPTIONS).matrix()
    found = journey.featurize(ours, dataset, tmp_path / "g", checkpoints=[path], **OPTIONS).matrix()
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    assert wanted.any(1).all()


# kohya's names are those of the original network's layers, which a tiny one of another depth has not.
@pytest.mark.parametrize(
    ("name", "spelling"),
    [("Stable Diffusion", "kohya")]
    + [
        (name, spelling)
        for name in ("Stable Diffusion", "Stable Diffusion XL", "Stable Diffusion 3", "Flux")
        for spelling in SPELLINGS
        if spelling != "kohya"
    ],
)
def test_an_adapter_of_every_spelling_is_put_in_place(name: str, spelling: str, tmp_path: Path) -> None:
    other = trained(name, seed=1)
    path, network = SPELLINGS[spelling](other, tmp_path / "lora"), getattr(trained(name, seed=2), part_of(other))
    with loaded(network, path):
        found = peft.get_peft_model_state_dict(network)
        assert all(torch.equal(found[key], tensor) for key, tensor in weights_of(other).items())


def test_a_file_that_only_diffusers_converter_of_the_family_understands_is_put_in_place(tmp_path: Path) -> None:
    networks, files = [], []
    for seed in (1, 2):
        tensors = {}
        for name in ("img_attn_qkv", "txt_attn_qkv"):  # three layers of diffusers in one of the original network
            layer, generator = f"lora_unet_double_blocks_0_{name}", torch.Generator().manual_seed(seed)
            tensors[f"{layer}.lora_down.weight"] = torch.randn(2, 32, generator=generator)
            tensors[f"{layer}.lora_up.weight"] = torch.randn(96, 2, generator=generator)
            tensors[f"{layer}.alpha"] = torch.tensor(1.0)
        files.append(save(tensors, tmp_path / f"{seed}.safetensors"))
        pipeline = make_family("Flux")
        pipeline.load_lora_weights(files[-1])
        networks.append(pipeline.transformer)
    wanted = weights_of_network(networks[0], "default_0")
    assert not torch.equal(weights_of_network(networks[1], "default_0"), wanted)
    with loaded(networks[1], files[0]):
        assert torch.equal(weights_of_network(networks[1], "default_0"), wanted)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_file_with_another_lora_alpha_is_refused(spelling: str, tmp_path: Path) -> None:
    path = SPELLINGS[spelling](trained(alpha=16), tmp_path / "lora")
    message = r"must have the lora_alpha of the network's adapter, 2 with .*, got 16 with .*load the network's adapter"
    with pytest.raises(ValueError, match=message), loaded(trained().unet, path):
        pass
    with loaded(trained(alpha=16).unet, path):
        pass


def test_a_file_that_does_not_tell_its_lora_alpha_stands_for_the_scale_one(tmp_path: Path) -> None:
    path, network = as_official(trained(), tmp_path), trained(alpha=16).unet
    message = r"does not tell its lora_alpha, which stands for lora_alpha = r = 2, .* has lora_alpha = 16"
    with pytest.raises(ValueError, match=message), loaded(network, path):
        pass
    with loaded(network, weights_of(trained(seed=1))):  # a state dict in memory has the network's
        assert torch.equal(weights_of_network(network), weights_of_network(trained(seed=1).unet))


def test_a_module_with_another_scale_is_refused() -> None:
    with (
        pytest.raises(ValueError, match="must scale its adapter as the network does"),
        loaded(trained().unet, trained(alpha=16).unet),
    ):
        pass


def test_ranks_and_scales_of_single_layers_count(tmp_path: Path) -> None:
    def uneven(seed: int, alpha: int) -> Any:
        pipeline = make_family("Stable Diffusion")
        config = peft.LoraConfig(
            r=2, lora_alpha=2, target_modules=["to_q", "to_k"], rank_pattern={"to_k": 3}, alpha_pattern={"to_k": alpha}
        )
        torch.manual_seed(seed)
        pipeline.unet.add_adapter(config)
        pipeline.unet.eval()
        return pipeline

    path = as_peft(uneven(1, 5), tmp_path / "lora")
    with loaded(uneven(2, 5).unet, path):
        pass
    with pytest.raises(ValueError, match=r"adapter, 6 with .* in .*to_k, got 5"), loaded(uneven(2, 6).unet, path):
        pass
    other = make_family("Stable Diffusion")
    other.unet.add_adapter(peft.LoraConfig(r=4, target_modules=["to_q", "to_k"]))
    message = r"to_k\.lora_A\.weight must be \[4, 8\], got \[3, 8\] .*: the ranks or the layers differ"
    with pytest.raises(ValueError, match=message), loaded(other.unet, path):
        pass


def test_use_rslora_counts(tmp_path: Path) -> None:
    path, pipeline = as_peft_folder(trained(), tmp_path), trained()
    config = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps({**config, "use_rslora": True}))
    with (
        pytest.raises(ValueError, match=r"use_rslora=False in .*, got 2 with use_rslora=True"),
        loaded(pipeline.unet, path),
    ):
        pass


@pytest.mark.parametrize("kind", ["LoKrConfig", "LoHaConfig"])
def test_adapters_of_other_kinds_have_a_scale_too(kind: str, tmp_path: Path) -> None:
    def other(seed: int, alpha: int) -> Any:
        torch.manual_seed(seed)
        config = getattr(peft, kind)(r=2, alpha=alpha, target_modules=["to_q"], init_weights=False)
        return peft.get_peft_model(make_family("Stable Diffusion").unet, config).eval()

    other(1, 4).save_pretrained(tmp_path / "lora")
    network, wanted = other(2, 4).get_base_model(), other(1, 4).get_base_model()
    with loaded(network, tmp_path / "lora"):
        assert torch.equal(weights_of_network(network), weights_of_network(wanted))
    with (
        pytest.raises(ValueError, match=r"must have the alpha of the network's adapter, 2, got 4"),
        loaded(other(2, 2).get_base_model(), tmp_path / "lora"),
    ):
        pass


def test_what_a_file_holds_of_the_text_encoder_is_left_out_with_the_reason(tmp_path: Path) -> None:
    path, network = as_official_with_text_encoder(trained(seed=1), tmp_path), trained().unet
    with (
        pytest.warns(UserWarning, match=r"2 tensors of .*, such as text_encoder\.text_model.*not measured"),
        loaded(network, path),
    ):
        assert torch.equal(weights_of_network(network), weights_of_network(trained(seed=1).unet))


def test_a_file_with_more_than_the_adapter_has_is_refused_with_its_first_keys(tmp_path: Path) -> None:
    tensors = {f"unet.{name}": tensor.contiguous() for name, tensor in weights_of(trained()).items()}
    path = save({**tensors, "vae.conv.lora_A.weight": torch.ones(2, 2)}, tmp_path / "mine.safetensors")
    message = r"does not fit the adapter: 0 weights are missing .* 1 are unknown .*begins with unet\.down"
    with pytest.raises(ValueError, match=message), loaded(trained().unet, path):
        pass
