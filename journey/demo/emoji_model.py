"""The text-to-image demo's model: a small UNet that reads captions, trained once and kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from journey.demo.emoji import EmojiDataset
from journey.demo.fit import fit
from journey.demo.minilm import MAX_TOKENS, STATE_DIM, TextEncoder
from journey.files.fingerprint import JSONValue, fingerprint_json, fingerprint_tensors
from journey.files.publish import publish

_CONFIG: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 1,
    "block_out_channels": (32, 64),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": STATE_DIM,
    "attention_head_dim": 8,
    "norm_num_groups": 8,
}
_BATCH_SIZE = 32
_LEARNING_RATE = 2e-3
_DROPPED = 0.1  # captions replaced by the empty one, so that guidance has something to lead away from
_SEED = 0


def build_text_unet(size: int) -> nn.Module:
    """Build the untrained denoiser: levels of 32 and 64 channels, captions at the lower, 1.2 million parameters.

    Args:
        size: Side of the images in pixels.

    Returns:
        The ``UNet2DConditionModel``, float32, on the CPU; always with the same weights.
    """
    from diffusers import UNet2DConditionModel

    untyped: Any = UNet2DConditionModel  # diffusers carries no types
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        model: nn.Module = untyped(sample_size=size, **_CONFIG)
    return model


def train_or_load(
    dataset: EmojiDataset, encoder: TextEncoder, cache: Path, *, steps: int, progress: bool = True
) -> tuple[nn.Module, Path]:
    """Return the trained model: the kept one if it is of this data, encoder and number of steps.

    Args:
        dataset: The training images.
        encoder: Reads their captions.
        cache: Where trained models are kept, each in a folder named by what it depends on.
        steps: Optimiser steps.
        progress: Show a progress bar while training.

    Returns:
        The network in eval mode, and its folder in the cache.

    Raises:
        ValueError: If the kept file is damaged, or ``steps`` is not positive.
        OSError: If the folder cannot be written to.
    """
    recipe: dict[str, JSONValue] = {
        "images": fingerprint_tensors({"images": dataset.images}),
        "captions": list(dataset.captions),
        "encoder": encoder.fingerprint(),
        "max_tokens": MAX_TOKENS,
        "unet": _CONFIG,
        "training": [steps, _BATCH_SIZE, _LEARNING_RATE, _DROPPED, _SEED],
    }
    key = fingerprint_json(recipe)
    folder = cache / f"text-demo-{key[:16]}"
    path = folder / "model.safetensors"
    unet = build_text_unet(dataset.images.shape[-1])
    if path.exists():
        unet.load_state_dict(_read(path, key))
        return unet.eval(), folder
    states, empty = encoder(dataset.captions), encoder([""])

    def tell(chosen: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        dropped = torch.rand(len(chosen), generator=generator, dtype=torch.float32, device="cpu") < _DROPPED
        return {"encoder_hidden_states": torch.where(dropped[:, None, None], empty, states[chosen])}

    fit(
        unet,
        dataset.images,
        tell=tell,
        steps=steps,
        batch_size=_BATCH_SIZE,
        learning_rate=_LEARNING_RATE,
        seed=_SEED,
        progress=progress,
    )
    folder.mkdir(parents=True, exist_ok=True)
    _write(path, unet.state_dict(), key)
    return unet, folder


def _write(path: Path, weights: dict[str, Tensor], key: str) -> None:
    told = json.dumps({"recipe": key, "sha256": fingerprint_tensors(weights)}, sort_keys=True)
    publish(path, [save(weights, metadata={"text-demo": told})])


def _read(path: Path, key: str) -> dict[str, Tensor]:
    cure = "Delete the file and run again; the model is then trained anew."
    try:
        with safe_open(path, "pt") as file:
            told = json.loads((file.metadata() or {}).get("text-demo", "{}"))
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}. {cure}") from error
    if told != {"recipe": key, "sha256": fingerprint_tensors(weights)}:
        raise ValueError(f"{path} is damaged: it does not hold the weights that it says. {cure}")
    return weights
