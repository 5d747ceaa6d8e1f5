"""How many draws go through the network at once where nobody says."""

from __future__ import annotations

import pytest

import journey
from journey.features.row_plan import RowPlan


@pytest.mark.parametrize(
    ("device", "num_draws", "images"),
    [("cpu", 4, 16), ("cpu", 20, 3), ("cuda", 4, 64), ("cuda", 20, 12), ("cpu", 100, 1)],
)
def test_images_keep_their_draws_together_and_a_gpu_gets_more_of_them(device: str, num_draws: int, images: int) -> None:
    plan = RowPlan.of(journey.StratifiedDraws(num_draws), device)
    assert plan.images_per_batch == images
    assert plan.rows == images * num_draws


def test_no_more_images_are_planned_than_there_are() -> None:
    assert RowPlan.of(journey.StratifiedDraws(4), "cuda", 5).images_per_batch == 5
