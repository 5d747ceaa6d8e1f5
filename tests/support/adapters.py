"""LoRA adapters of small models, added and saved as trainers do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

peft = pytest.importorskip("peft")

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "conv1"]


def add_adapter(network: Any, seed: int = 0) -> None:
    """Linear and convolution adapters, all of whose weights are random."""
    torch.manual_seed(seed)
    # A file does not tell the scale lora_alpha / r; its readers take it for 1.
    network.add_adapter(peft.LoraConfig(r=2, lora_alpha=2, target_modules=TARGETS, lora_dropout=0.5))
    with torch.no_grad():
        for name, p in network.named_parameters():
            if ".lora_B." in name:
                p.normal_(std=0.1)
    network.eval()


def save_adapter(pipeline: Any, folder: Path) -> None:
    type(pipeline).save_lora_weights(folder, unet_lora_layers=peft.get_peft_model_state_dict(pipeline.unet))
