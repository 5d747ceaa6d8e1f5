"""Pixels, structure and matching regions agree with their definitions and survive what copies go through."""

from __future__ import annotations

import pytest
import torch
from cases import randn
from torch import Tensor

from journey.audit.similarity import matching_region, pixel_distance, structural_similarity


def make_pictures(num: int = 4, side: int = 32, seed: int = 0) -> Tensor:
    """Smooth pictures within [-1, 1]. [num, 3, side, side]"""
    coarse = randn(num, 3, side // 4, side // 4, seed=seed)
    return torch.tanh(torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic"))


def test_the_distance_of_pixels_is_the_root_mean_square() -> None:
    a, b = make_pictures(2), make_pictures(3, seed=1)
    expected = torch.stack([torch.stack([(x - y).double().square().mean().sqrt() for y in b]) for x in a])
    torch.testing.assert_close(pixel_distance(a, b), expected, rtol=1e-6, atol=1e-6)


def test_structure_is_one_for_equal_pictures_and_that_of_a_plain_loop() -> None:
    a, b = make_pictures(1, 16), make_pictures(1, 16, seed=1)
    assert structural_similarity(a, a).item() == pytest.approx(1)
    assert structural_similarity(a, b).item() == pytest.approx(plain_ssim(a[0], b[0]), abs=1e-9)
    assert structural_similarity(a, b).item() < 0.6


def plain_ssim(a: Tensor, b: Tensor) -> float:
    """Wang et al.'s Eq. 13, pixel by pixel, with edges repeated."""
    x, y = (image.double().mean(0) for image in (a, b))
    at = torch.arange(-5.0, 6.0, dtype=torch.float64)
    window = torch.exp(-(at[:, None] ** 2 + at**2) / (2 * 1.5**2))
    window = window / window.sum()
    padded = [torch.nn.functional.pad(image[None, None], (5,) * 4, mode="replicate")[0, 0] for image in (x, y)]
    total = 0.0
    for row in range(len(x)):
        for column in range(len(x)):
            p, q = (image[row : row + 11, column : column + 11] for image in padded)
            mean_p, mean_q = (window * p).sum(), (window * q).sum()
            var_p, var_q = (window * p * p).sum() - mean_p**2, (window * q * q).sum() - mean_q**2
            both = (window * p * q).sum() - mean_p * mean_q
            total += float(
                (2 * mean_p * mean_q + 0.0004)
                * (2 * both + 0.0036)
                / ((mean_p**2 + mean_q**2 + 0.0004) * (var_p + var_q + 0.0036))
            )
    return total / x.numel()


def test_a_shifted_picture_matches_where_it_was_moved_to() -> None:
    picture = make_pictures(1)[0]
    moved = torch.roll(picture, (3, -2), (1, 2))
    found = matching_region(moved, picture)
    assert found.shift == (3, -2)
    assert found.share > 0.8
    assert matching_region(picture, picture).shift == (0, 0)


def test_the_region_leaves_out_what_was_repainted() -> None:
    picture, other = make_pictures(2)
    painted = picture.clone()
    painted[:, 16:] = other[:, 16:]
    found = matching_region(painted, picture)
    assert found.box is not None
    top, _, bottom, _ = found.box
    assert top == 0
    assert found.share < 0.75
    assert matching_region(painted, picture).share > matching_region(other, picture).share
    assert bottom <= 32


def test_recolouring_does_not_hide_a_copy() -> None:
    picture = make_pictures(1)[0]
    darker = picture * torch.tensor([0.5, 0.7, 0.6])[:, None, None] - 0.2
    assert matching_region(darker, picture).share > 0.8


def test_large_pictures_have_regions_in_their_own_pixels() -> None:
    picture = make_pictures(1, 256)[0]
    found = matching_region(torch.roll(picture, (8, 12), (1, 2)), picture)
    assert found.shift == (8, 12)
    assert found.box is not None
    assert max(found.box) > 64
