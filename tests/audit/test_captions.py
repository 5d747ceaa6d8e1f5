"""Captions that do not fit are found by a model that knows what words mean, and not judged by one that does not."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cases import randn
from made_features import PROJ_DIM, MadeFeatures, make_features
from models import IMAGE, make_images, make_scheduler
from torch import Tensor, nn

from journey.audit.captions import adapter_at, misfit_captions
from journey.models.conditional import ConditionalDenoiser

IMAGES = make_images(12)
CAPTIONS = [f"picture {i}" for i in range(12)]
SCHEDULER = make_scheduler()


class Knowing(nn.Module):
    """Takes the picture that a caption names for what is under the noise; with gain 0 it hears nothing."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))
        self.config = SimpleNamespace(in_channels=1, sample_size=8)
        self.eval()

    def forward(self, x_t: Tensor, times: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        signal = SCHEDULER.alphas_cumprod[times].view(-1, 1, 1, 1)
        picture = self.gain * encoder_hidden_states.view(-1, *IMAGE)
        return (x_t - signal.sqrt() * picture) / (1 - signal).sqrt()


def encode(prompts: list[str]) -> Tensor:
    return torch.stack([IMAGES[int(prompt.split()[-1])].flatten()[None] for prompt in prompts])


def make_run(captions: list[str], gain: float = 1.0) -> tuple[MadeFeatures, list[dict[str, Any]]]:
    features = make_features(randn(12, PROJ_DIM))
    model = ConditionalDenoiser(Knowing(gain), SCHEDULER, encode_prompt=encode)
    dataset = [{"image": image, "text": text} for image, text in zip(IMAGES, captions, strict=True)]
    return replace(features, featurizer=SimpleNamespace(denoiser=model)), dataset


def test_swapped_captions_come_first_and_the_right_one_is_named() -> None:
    captions = [*CAPTIONS]
    captions[3], captions[8] = captions[8], captions[3]
    found = misfit_captions(*make_run(captions), num_captions=11, progress=False)
    assert set(found.ids[:2]) == set(found.misfits) == {3, 8}
    assert {i: found.better[place] for place, i in enumerate(found.ids[:2])} == {3: 8, 8: 3}
    assert found.better[2:] == [None] * 10
    assert found.reads


def test_right_captions_are_left_alone() -> None:
    found = misfit_captions(*make_run(CAPTIONS), num_captions=5, progress=False)
    assert found.misfits == []
    assert found.lacks.abs().max() < 0.5
    assert found.gain > 0.9


def test_a_model_that_hears_nothing_judges_nothing() -> None:
    captions = [CAPTIONS[i - 1] for i in range(12)]
    found = misfit_captions(*make_run(captions, gain=0.0), num_captions=5, progress=False)
    assert not found.reads
    assert found.misfits == []


class Layer(nn.Module):
    """A layer with an adapter, as peft has them."""

    scale = 1.0

    def scale_layer(self, factor: float) -> None:
        self.scale *= factor

    def unscale_layer(self, factor: float) -> None:
        self.scale /= factor


def test_the_adapter_is_weaker_only_for_a_while() -> None:
    network, layer = Knowing(1.0), Layer()
    told: list[str] = []
    network.layer = layer
    network.peft_config = {"default": None}
    network.disable_adapters = lambda: told.append("off")
    network.enable_adapters = lambda: told.append("on")
    with suppress(RuntimeError), adapter_at(network, 0.0):
        assert (told, layer.scale) == (["off"], 1.0)
        raise RuntimeError
    assert told == ["off", "on"]
    with suppress(RuntimeError), adapter_at(network, 0.5):
        assert layer.scale == 0.5
        raise RuntimeError
    assert (told, layer.scale) == (["off", "on"], 1.0)
    with adapter_at(Knowing(1.0), 0.0):  # has none
        pass


def test_what_cannot_be_judged_is_refused() -> None:
    features, dataset = make_run(CAPTIONS)
    with pytest.raises(ValueError, match="num_captions must be at least 3"):
        misfit_captions(features, dataset, num_captions=2)
    with pytest.raises(ValueError, match="got none of id 11"):
        misfit_captions(features, dataset[:11], progress=False)


def test_a_caption_that_others_share_is_not_compared_with_itself() -> None:
    # Four pictures of three images each; one image has the caption of another picture.
    features, _ = make_run(CAPTIONS)
    pictures = [i % 4 for i in range(12)]
    told = [*pictures]
    told[7] = 0
    dataset = [{"image": IMAGES[p], "text": CAPTIONS[t]} for p, t in zip(pictures, told, strict=True)]
    found = misfit_captions(features, dataset, progress=False)
    assert found.reads
    assert found.misfits == [7]
    same = [{"image": image, "text": CAPTIONS[i % 3]} for i, image in enumerate(IMAGES)]
    with pytest.raises(ValueError, match="at least 4 different captions to compare them, got 3"):
        misfit_captions(features, same, progress=False)
