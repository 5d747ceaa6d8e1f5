"""LoRA adapters of small models, added and saved as trainers do."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

peft = pytest.importorskip("peft")

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "conv1"]


def add_adapter(network: Any, seed: int = 0, alpha: float = 2, targets: Any = TARGETS) -> None:
    """Linear and convolution adapters, all of whose weights are random; the scale is ``alpha / 2``."""
    torch.manual_seed(seed)
    # A file need not tell the scale lora_alpha / r; its readers then take it for 1.
    network.add_adapter(peft.LoraConfig(r=2, lora_alpha=alpha, target_modules=targets, lora_dropout=0.5))
    with torch.no_grad():
        for name, p in network.named_parameters():
            if ".lora_B." in name:
                p.normal_(std=0.1)
    network.eval()


def save_adapter(pipeline: Any, folder: Path) -> None:
    type(pipeline).save_lora_weights(folder, unet_lora_layers=peft.get_peft_model_state_dict(pipeline.unet))


def part_of(pipeline: Any) -> str:
    """What the pipeline calls its network."""
    return "unet" if hasattr(pipeline, "unet") else "transformer"


def weights_of(pipeline: Any) -> dict[str, Tensor]:
    """The adapter's tensors as peft names them."""
    return peft.get_peft_model_state_dict(getattr(pipeline, part_of(pipeline)))


def config_of(pipeline: Any) -> dict[str, Any]:
    return getattr(pipeline, part_of(pipeline)).peft_config["default"].to_dict()


def as_peft(pipeline: Any, folder: Path) -> Path:
    """As diffusers' newer scripts: lora_A, lora_B, and the config in the file."""
    part = part_of(pipeline)
    options = {f"{part}_lora_layers": weights_of(pipeline), f"{part}_lora_adapter_metadata": config_of(pipeline)}
    type(pipeline).save_lora_weights(folder, **options)
    return folder


def as_official(pipeline: Any, folder: Path) -> Path:
    """As diffusers' scripts for Stable Diffusion: ``unet....lora.down.weight``."""
    from diffusers.utils import convert_state_dict_to_diffusers

    layers = convert_state_dict_to_diffusers(weights_of(pipeline))
    type(pipeline).save_lora_weights(folder, unet_lora_layers=layers)
    return folder


def as_kohya(pipeline: Any, folder: Path) -> Path:
    """As kohya's trainer: layers joined by underscores, and an alpha for each."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in weights_of(pipeline).items():
        layer, _, rest = name.partition(".lora_")
        named = f"lora_unet_{layer.replace('.', '_')}"
        tensors[f"{named}.lora_{'down' if rest.startswith('A') else 'up'}.weight"] = tensor.contiguous()
        tensors[f"{named}.alpha"] = torch.tensor(float(config_of(pipeline)["lora_alpha"]))
    return save(tensors, folder / "mine-000005.safetensors", {"ss_network_dim": "2"})


def as_plain(pipeline: Any, folder: Path) -> Path:
    """As ``network.save_lora_adapter``: no prefix, and the config in the file."""
    getattr(pipeline, part_of(pipeline)).save_lora_adapter(folder)
    return folder


def as_diffusion_model(pipeline: Any, folder: Path) -> Path:
    """As trainers that write ``diffusion_model.`` before diffusers' names, with an alpha for each layer."""
    tensors = {f"diffusion_model.{name}": tensor.contiguous() for name, tensor in weights_of(pipeline).items()}
    alpha = torch.tensor(float(config_of(pipeline)["lora_alpha"]))
    layers = {name.partition(".lora_")[0] for name in tensors}
    return save({**tensors, **{f"{layer}.alpha": alpha.clone() for layer in layers}}, folder / "mine.safetensors")


def as_peft_folder(pipeline: Any, folder: Path) -> Path:
    """As ``PeftModel.save_pretrained``."""
    tensors = {f"base_model.model.{name}": tensor.contiguous() for name, tensor in weights_of(pipeline).items()}
    save(tensors, folder / "adapter_model.safetensors")
    told = {key: sorted(value) if isinstance(value, set) else value for key, value in config_of(pipeline).items()}
    (folder / "adapter_config.json").write_text(json.dumps(told, default=str))
    return folder


def save(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), path, metadata)
    return path


# Every spelling that tells its lora_alpha.
SPELLINGS: dict[str, Callable[[Any, Path], Path]] = {
    "diffusers": as_peft,
    "kohya": as_kohya,
    "without a prefix": as_plain,
    "diffusion_model": as_diffusion_model,
    "peft folder": as_peft_folder,
}
