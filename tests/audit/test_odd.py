"""Images that do not belong are those with which neither training nor the others help."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cases import randn
from made_features import PROJ_DIM, MadeFeatures, make_features
from models import make_images, make_scheduler
from torch import Tensor, nn

from journey.audit.captions import CaptionFits, Exchange
from journey.audit.odd import odd_images
from journey.models.conditional import ConditionalDenoiser

NUM, ODD = 24, 17
IMAGES = make_images(NUM)
SCHEDULER = make_scheduler()


class Trained(nn.Module):
    """Takes a share of the picture that it is told of for what is under the noise: of each its own, the base half."""

    def __init__(self, shares: Tensor, *, adapter: bool = True) -> None:
        super().__init__()
        self.shares = nn.Parameter(shares)
        self.config = SimpleNamespace(in_channels=1, sample_size=8)
        self.peft_config = {"default": None} if adapter else {}
        self.on = True
        self.eval()

    def disable_adapters(self) -> None:
        self.on = False

    def enable_adapters(self) -> None:
        self.on = True

    def forward(self, x_t: Tensor, times: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        signal, which = SCHEDULER.alphas_cumprod[times].view(-1, 1, 1, 1), encoder_hidden_states.flatten().long()
        share = self.shares[which] if self.on else torch.full_like(self.shares[which], 0.5)
        return (x_t - signal.sqrt() * share.view(-1, 1, 1, 1) * IMAGES[which]) / (1 - signal).sqrt()


def encode(prompts: list[str]) -> Tensor:
    return torch.tensor([int(prompt) for prompt in prompts], dtype=torch.float32, device="cpu").view(-1, 1, 1)


def make_shares(odd: float) -> Tensor:
    shares = 0.9 + 0.01 * randn(NUM, seed=3)
    shares[ODD] = odd
    return shares


def make_run(shares: Tensor, rows: Tensor | None = None, *, adapter: bool = True) -> tuple[MadeFeatures, Any]:
    common = 3 * randn(PROJ_DIM, seed=5) + randn(NUM, PROJ_DIM, seed=2)
    features = make_features(common if rows is None else rows)
    model = ConditionalDenoiser(Trained(shares, adapter=adapter), SCHEDULER, encode_prompt=encode)
    return replace(features, featurizer=SimpleNamespace(denoiser=model)), [
        {"image": image, "text": str(i)} for i, image in enumerate(IMAGES)
    ]


def test_the_image_that_training_helped_least_stands_apart() -> None:
    features, dataset = make_run(make_shares(0.55))
    found = odd_images(features, dataset, progress=False)
    assert found.ids[0] == ODD
    assert found.outliers == [ODD]
    assert features.featurizer.denoiser.network.on
    assert odd_images(*make_run(make_shares(0.9)), progress=False).outliers == []


def test_the_image_whose_row_is_unlike_the_others_stands_apart_without_an_adapter() -> None:
    rows = 3 * randn(PROJ_DIM, seed=5) + randn(NUM, PROJ_DIM, seed=2)
    rows[ODD] = 4 * randn(PROJ_DIM, seed=6)
    found = odd_images(*make_run(make_shares(0.9), rows, adapter=False), progress=False)
    assert found.outliers == [ODD]
    assert odd_images(*make_run(make_shares(0.9), adapter=False), progress=False).outliers == []


def make_fits(worst: int, exchanged: list[Exchange]) -> CaptionFits:
    lacks = 0.1 * randn(NUM, seed=9).double()
    lacks[worst] = 9
    order = torch.sort(lacks, descending=True).indices
    return CaptionFits(order.tolist(), lacks[order], torch.zeros_like(lacks), [None] * NUM, exchanged, 3.0)


def test_a_caption_that_does_not_fit_counts_unless_it_was_exchanged() -> None:
    run = make_run(make_shares(0.9))
    assert odd_images(*run, fits=make_fits(4, []), progress=False).outliers == [4]
    pair = [Exchange((4, 6), 1.0, 0.0)]
    assert odd_images(*run, fits=make_fits(4, pair), progress=False).outliers == []
    unread = replace(make_fits(4, []), usual=0.0)
    assert odd_images(*run, fits=unread, progress=False).outliers == []


def test_what_cannot_be_compared_is_refused() -> None:
    features, dataset = make_run(make_shares(0.9))
    with pytest.raises(ValueError, match=f"got none of id {NUM - 1}"):
        odd_images(features, dataset[:-1], progress=False)
    with pytest.raises(ValueError, match=f"loss of image {ODD} is NaN or infinite"):
        odd_images(*make_run(make_shares(float("nan"))), progress=False)
