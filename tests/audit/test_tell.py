"""An exchange of captions is told of once, with both images, and an image that does not belong not for its caption."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from models import make_images

from journey.audit.captions import CaptionFits, Exchange
from journey.audit.opponents import Effects
from journey.audit.tell import Teller

NUM = 6


def make_teller() -> Teller:
    zeros = torch.zeros(NUM, dtype=torch.float64, device="cpu")
    effects = Effects(list(range(NUM)), zeros, zeros, zeros, zeros)
    dataset = [{"image": image, "text": f"picture {i}"} for i, image in enumerate(make_images(NUM))]
    kernel: Any = SimpleNamespace(unit=1.0)
    return Teller(kernel, dataset, effects, captioned=True)


def test_of_wrong_captions_each_is_told_of_once() -> None:
    lacks = torch.tensor([2.0, 1.8, 1.5, 1.2, 0.1, 0.0], dtype=torch.float64, device="cpu")
    better: list[int | str | None] = [1, 4, 0, 5, None, None]
    fits = CaptionFits([4, 1, 3, 2, 0, 5], lacks, lacks / 10, better, [Exchange((1, 4), 1.5, 0.1)], 3.0)
    pair, single = make_teller().captions(fits, odd=[2])
    assert pair.ids == (1, 4)
    assert (pair.value, pair.error) == (1.5, 0.1)
    assert [shown.words for shown in pair.shown] == ["“picture 1”", "“picture 4”"]
    assert single.ids == (3,)
    assert "“picture 3” fits this image no better" in single.sentence
    assert "That of 0 fits best: “picture 0”." in single.sentence
