"""Regions become soft masks of the image, and keep their area and their complement when they are resampled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import randn
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from journey.scores.regions import pixel_masks, resample_masks

IMAGES = randn(2, 3, 4, 6)
BOX = torch.zeros(4, 6)
BOX[1:3, 2:5] = 1


def test_a_box_counts_rows_then_columns_and_ends_before_its_end() -> None:
    assert torch.equal(pixel_masks((1, 2, 3, 5), IMAGES), BOX.expand(2, 4, 6))


@pytest.mark.parametrize(
    "form",
    [
        lambda _: BOX,
        lambda _: BOX.bool(),
        lambda _: BOX.to(torch.uint8),
        lambda _: BOX.double().numpy(),
        lambda _: (BOX * 255).to(torch.uint8).numpy(),
        lambda _: Image.fromarray((BOX * 255).to(torch.uint8).numpy()),
        lambda path: path,
        lambda path: str(path),
        lambda _: lambda image: BOX,
        lambda _: [(1, 2, 3, 5), BOX],
    ],
)
def test_every_form_of_a_region_is_the_same_mask(tmp_path: Path, form: Any) -> None:
    Image.fromarray((BOX * 255).to(torch.uint8).numpy()).save(tmp_path / "mask.png")
    masks = pixel_masks(form(tmp_path / "mask.png"), IMAGES)
    assert masks.dtype == torch.float32
    assert torch.equal(masks, BOX.expand(2, 4, 6))


def test_soft_masks_and_gray_levels_are_weights() -> None:
    soft = torch.rand(4, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(pixel_masks(soft, IMAGES)[0], soft)
    levels = (soft * 255).round().to(torch.uint8)
    assert torch.equal(pixel_masks(levels, IMAGES)[1], levels.float() / 255)


def test_a_function_is_given_each_image() -> None:
    masks = pixel_masks(lambda image: image[1] > 0, IMAGES)
    assert torch.equal(masks, (IMAGES[:, 1] > 0).float())


@pytest.mark.parametrize(
    ("region", "message"),
    [
        ((0, 0, 5, 6), r"box \(top, left, bottom, right\) that is not empty, within 4 x 6 pixels, got \(0, 0, 5, 6\)"),
        ((2, 0, 2, 6), "not empty"),
        ((0, 0, 4), r"box .* got \(0, 0, 4\)"),
        (torch.ones(6, 4), r"size of the image \[4, 6\], got \[6, 4\]"),
        (torch.full((4, 6), 1.5), r"values in \[0, 1\] \(or uint8\), got 1\.5 to 1\.5"),
        (torch.full((4, 6), float("nan")), r"values in \[0, 1\]"),
        (np.zeros((4, 6)), "got zero everywhere"),
        (lambda image: torch.ones(2, 2), r"region's mask must have the size"),
        ([BOX], "one for each of 2 images, got a list of 1"),
    ],
)
def test_a_region_that_is_none_is_refused(region: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pixel_masks(region, IMAGES)


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(TypeError, match=r"region must be a box .* got int"):
        pixel_masks(3, IMAGES)  # type: ignore[arg-type]


def random_masks(height: int, width: int, seed: int) -> torch.Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


@given(*(st.integers(1, 40) for _ in range(4)), st.integers(0, 10))
def test_resampling_keeps_the_mean_and_the_complement(h: int, w: int, new_h: int, new_w: int, seed: int) -> None:
    masks = random_masks(h, w, seed)
    found = resample_masks(masks, (new_h, new_w))
    assert found.shape == (3, new_h, new_w)
    # Averages of at most 1,600 float32 values in [0, 1], made in float64: rounding of the result alone.
    torch.testing.assert_close(found.mean((1, 2)), masks.mean((1, 2)), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found + resample_masks(1 - masks, (new_h, new_w)), torch.ones_like(found))


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 5))
def test_resampling_to_a_divisor_is_the_mean_of_blocks(h: int, w: int, factor: int) -> None:
    masks = random_masks(h * factor, w * factor, 0)
    expected = torch.nn.functional.avg_pool2d(masks, factor)
    torch.testing.assert_close(resample_masks(masks, (h, w)), expected, rtol=1e-6, atol=1e-6)


def test_a_pixel_on_the_border_of_two_is_shared_by_area() -> None:
    found = resample_masks(torch.tensor([[[1.0, 0.0, 0.0]]]), (1, 2))
    assert found.flatten().tolist() == pytest.approx([2 / 3, 0.0])
