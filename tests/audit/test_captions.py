"""Captions that do not fit are found by a model that knows what words mean, and not judged by one that does not."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cases import randn
from made_features import PROJ_DIM, MadeFeatures, make_features
from models import IMAGE, make_images, make_scheduler
from torch import Tensor, nn

from journey.audit import captions as audit
from journey.audit.captions import misfit_captions
from journey.models.conditional import ConditionalDenoiser

IMAGES = make_images(12)
CAPTIONS = [f"picture {i}" for i in range(12)]
SCHEDULER = make_scheduler()


class Knowing(nn.Module):
    """Takes the picture that a caption names for what is under the noise; with gain 0 it hears nothing."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain, dtype=torch.float32, device="cpu"))
        self.config = SimpleNamespace(in_channels=1, sample_size=8)
        self.eval()

    def forward(self, x_t: Tensor, times: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        signal = SCHEDULER.alphas_cumprod[times].view(-1, 1, 1, 1)
        picture = self.gain * encoder_hidden_states.view(-1, *IMAGE)
        return (x_t - signal.sqrt() * picture) / (1 - signal).sqrt()


class Adapted(Knowing):
    """Has learned by heart, in its adapter, that pictures 3 and 8 have each other's captions."""

    def __init__(self) -> None:
        super().__init__(1.0)
        self.peft_config = {"default": None}
        self.on = True

    def disable_adapters(self) -> None:
        self.on = False

    def enable_adapters(self) -> None:
        self.on = True

    def forward(self, x_t: Tensor, times: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        told = encoder_hidden_states.clone()
        for i, other in ((3, 8), (8, 3)):
            same = (encoder_hidden_states.flatten(1) == IMAGES[i].flatten()).all(1)
            told[same & self.on] = IMAGES[other].flatten()
        return super().forward(x_t, times, told)


def encode(prompts: list[str]) -> Tensor:
    return torch.stack([IMAGES[int(prompt.split()[-1])].flatten()[None] for prompt in prompts])


def make_run(
    captions: list[str], network: nn.Module | None = None, images: Tensor = IMAGES
) -> tuple[MadeFeatures, list[dict[str, Any]]]:
    features = make_features(randn(12, PROJ_DIM))
    model = ConditionalDenoiser(Knowing(1.0) if network is None else network, SCHEDULER, encode_prompt=encode)
    dataset = [{"image": image, "text": text} for image, text in zip(images, captions, strict=True)]
    return replace(features, featurizer=SimpleNamespace(denoiser=model)), dataset


def swapped() -> list[str]:
    captions = [*CAPTIONS]
    captions[3], captions[8] = captions[8], captions[3]
    return captions


def test_swapped_captions_come_first_as_a_pair_and_the_right_ones_are_named() -> None:
    found = misfit_captions(*make_run(swapped()), progress=False)
    assert set(found.ids[:2]) == set(found.misfits) == {3, 8}
    assert {i: found.better[place] for place, i in enumerate(found.ids[:2])} == {3: 8, 8: 3}
    assert found.better[2:] == [None] * 10
    assert [pair.ids for pair in found.exchanged] == [(3, 8)]
    assert found.exchanged[0].gain > 1
    assert found.reads


def test_a_style_that_the_model_does_not_expect_hides_no_swap() -> None:
    # Paler and turned towards white: the loss under the right caption is then larger than under some others.
    found = misfit_captions(*make_run(swapped(), images=0.2 * IMAGES + 0.7), progress=False)
    assert [pair.ids for pair in found.exchanged] == [(3, 8)]
    assert set(found.misfits) == {3, 8}


def test_what_the_adapter_has_learned_by_heart_hides_no_swap() -> None:
    network = Adapted()
    found = misfit_captions(*make_run(swapped(), network), progress=False)
    assert [pair.ids for pair in found.exchanged] == [(3, 8)]
    assert network.on
    with_it = replace_adapter(network)
    assert misfit_captions(*make_run(swapped(), with_it), progress=False).exchanged == []


def replace_adapter(network: Adapted) -> Adapted:
    """The same network as one that was trained as a whole: its adapter cannot be taken off."""
    network.peft_config = {}
    return network


def test_right_captions_are_left_alone() -> None:
    found = misfit_captions(*make_run(CAPTIONS), progress=False)
    assert found.misfits == found.exchanged == []
    assert found.lacks.abs().max() < 0.5
    assert found.usual > 3


def test_one_wrong_caption_is_no_exchange() -> None:
    captions = [*CAPTIONS]
    captions[5] = CAPTIONS[0]
    found = misfit_captions(*make_run(captions), progress=False)
    assert found.ids[0] == 5
    assert found.lacks[0] > 0.8
    assert found.lacks[1] < 0.5
    assert found.exchanged == []


def test_blocks_of_pairs_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    captions = swapped()
    captions[0], captions[11] = captions[11], captions[0]
    whole = misfit_captions(*make_run(captions), progress=False)
    monkeypatch.setattr(audit, "_BLOCK", 5)
    found = misfit_captions(*make_run(captions), progress=False)
    assert {pair.ids for pair in found.exchanged} == {(3, 8), (0, 11)}
    assert [pair.ids for pair in found.exchanged] == [pair.ids for pair in whole.exchanged]
    assert (found.ids, found.better) == (whole.ids, whole.better)
    assert found.usual == pytest.approx(whole.usual, rel=0.05)


def test_a_model_that_hears_nothing_judges_nothing() -> None:
    captions = [CAPTIONS[i - 1] for i in range(12)]
    found = misfit_captions(*make_run(captions, Knowing(0.0)), progress=False)
    assert not found.reads
    assert found.misfits == found.exchanged == []


def test_what_cannot_be_judged_is_refused() -> None:
    features, dataset = make_run(CAPTIONS)
    with pytest.raises(ValueError, match="got none of id 11"):
        misfit_captions(features, dataset[:11], progress=False)
    with pytest.raises(ValueError, match="predicts NaN or infinity"):
        misfit_captions(*make_run(CAPTIONS, Knowing(float("nan"))), progress=False)


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
    assert found.exchanged == []
    same = [{"image": image, "text": CAPTIONS[i % 3]} for i, image in enumerate(IMAGES)]
    with pytest.raises(ValueError, match="at least 4 different captions to compare them, got 3"):
        misfit_captions(features, same, progress=False)
