"""An image that surely helps early and surely hurts later is counted, others are not."""

from __future__ import annotations

import torch

from bench.seeds.__main__ import turned
from journey.scores.errors import ScoreErrors
from journey.scores.scores import Scores


def test_only_images_that_surely_help_before_they_surely_hurt_are_counted() -> None:
    errors = ScoreErrors(torch.ones(1, 4), torch.zeros(1, 4), torch.ones(1, 1, 3), torch.zeros(1, 1, 3))
    values = torch.tensor([[[5.0, -5.0, 5.0, 1.0], [0.0, 0.0, 9.0, 0.0], [-3.0, 5.0, 4.0, -5.0]]])
    scores = Scores(
        values, torch.tensor([900, 500, 100]), ["turns", "other way", "helps", "unsure"], 1.0, errors=errors
    )
    assert scores.standard_errors().unique().tolist() == [1.0]
    assert turned(scores) == ([1], (0, 0))
