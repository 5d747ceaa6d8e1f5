"""Adapters in every spelling arrive as a whole or are refused, and mean what diffusers' own loading makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import SPELLINGS, add_adapter, as_kohya, part_of, save, weights_of
from families import make_family
from torch import Tensor

from journey.models.lora_files import load_lora


def trained(name: str = "Stable Diffusion", **options: Any) -> Any:
    """A pipeline with an adapter, all of whose weights are random."""
    pipeline = make_family(name)
    add_adapter(getattr(pipeline, part_of(pipeline)), **options)
    return pipeline


def answer(pipeline: Any) -> Tensor:
    """What a Stable Diffusion network says of fixed inputs."""
    generator = torch.Generator().manual_seed(3)
    x, states = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 6, 16, generator=generator)
    with torch.no_grad():
        return pipeline.unet(x, torch.tensor([3, 700]), states).sample


@pytest.mark.parametrize("alpha", [2.0, 16.0])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_an_adapter_is_loaded_from_every_spelling_with_its_scale(spelling: str, alpha: float, tmp_path: Path) -> None:
    wanted, fresh = trained(alpha=alpha), make_family("Stable Diffusion")
    load_lora(fresh, SPELLINGS[spelling](wanted, tmp_path / "lora"))
    fresh.unet.eval()
    torch.testing.assert_close(answer(fresh), answer(wanted), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(answer(fresh), answer(make_family("Stable Diffusion")), rtol=1e-3)


@pytest.mark.parametrize("name", ["Stable Diffusion XL", "Stable Diffusion 3", "Flux"])
@pytest.mark.parametrize("spelling", ["diffusers", "without a prefix", "diffusion_model", "peft folder"])
def test_adapters_of_every_family_are_loaded_from_every_spelling(name: str, spelling: str, tmp_path: Path) -> None:
    wanted, fresh = trained(name), make_family(name)
    load_lora(fresh, SPELLINGS[spelling](wanted, tmp_path / "lora"))
    found = getattr(fresh, part_of(fresh)).state_dict()
    for key, tensor in weights_of(wanted).items():
        layer, _, last = key.rpartition(".")
        assert torch.equal(found[f"{layer}.default_0.{last}"], tensor)


def test_tensors_of_the_text_encoder_are_loaded_too(tmp_path: Path) -> None:
    import peft

    wanted, fresh = trained(), make_family("Stable Diffusion")
    torch.manual_seed(1)
    wanted.text_encoder.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    layers = peft.get_peft_model_state_dict(wanted.text_encoder)
    type(wanted).save_lora_weights(tmp_path, unet_lora_layers=weights_of(wanted), text_encoder_lora_layers=layers)
    load_lora(fresh, tmp_path)
    assert len([name for name, _ in fresh.text_encoder.named_parameters() if "lora_" in name]) == len(layers)


def nothing_of_the_network(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace("unet.", "text_encoder."): tensor for name, tensor in tensors.items()}


FAULTS = {
    "another network's prefix": lambda tensors: {f"prior.{name}": tensor for name, tensor in tensors.items()},
    "only the text encoder": nothing_of_the_network,
    "layers that are not there": lambda tensors: {
        **tensors,
        "unet.up_blocks.7.attn.to_q.lora_A.weight": torch.ones(2, 8),
        "unet.up_blocks.7.attn.to_q.lora_B.weight": torch.ones(8, 2),
    },
    "other words": lambda tensors: {name.replace("lora_", "lorb_"): tensor for name, tensor in tensors.items()},
    "half of each pair": lambda tensors: {name: t for name, t in tensors.items() if "lora_A" in name},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_is_not_read_as_a_whole_is_refused_with_its_first_keys(fault: str, tmp_path: Path) -> None:
    tensors = {f"unet.{name}": tensor.contiguous() for name, tensor in weights_of(trained()).items()}
    changed = FAULTS[fault](tensors)
    path = save(changed, tmp_path / "mine.safetensors")
    with pytest.raises(ValueError, match=r"lora .*mine\.safetensors was not read as an adapter of Stable") as error:
        load_lora(make_family("Stable Diffusion"), path)
    assert sorted(changed)[0] in str(error.value)


def test_what_diffusers_would_drop_of_a_dora_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    tensors = load_file(as_kohya(trained(), tmp_path))
    scales = {name.replace("alpha", "dora_scale"): torch.ones(8, 1) for name in tensors if name.endswith(".alpha")}
    path = save({**tensors, **scales}, tmp_path / "dora.safetensors")
    with pytest.raises(ValueError, match="is a DoRA with dora_scale, which diffusers leaves out"):
        load_lora(make_family("Stable Diffusion"), path)


def test_an_adapter_that_is_nowhere_is_named() -> None:
    with pytest.raises(
        OSError, match=r"lora must be an existing file or folder, or a repo id .* got /nowhere/mine\.safe"
    ):
        load_lora(make_family("Stable Diffusion"), "/nowhere/mine.safetensors")


def test_a_network_whose_weights_are_nowhere_takes_no_adapter(tmp_path: Path) -> None:
    pipeline = make_family("Stable Diffusion")
    pipeline.unet.to("meta")
    with pytest.raises(ValueError, match=r"unet must have its parameters at hand, got .* on the meta device"):
        load_lora(pipeline, as_kohya(trained(), tmp_path))
