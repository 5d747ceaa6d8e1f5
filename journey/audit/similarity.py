"""How alike two pictures are without a model: pixels, structure (SSIM), and the region in which they match."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_SIDE = 64  # pictures are compared at this side, at most
_SIGMA, _WINDOW = 1.5, 11
_C1, _C2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2  # of SSIM, for values that span 2
_FARTHEST = 8  # a shift is looked for up to a side's eighth
_MATCHES = 0.6  # local structure from which two places show the same


@dataclass(frozen=True)
class Region:
    """Where a picture matches another one.

    Attributes:
        box: (top, left, bottom, right) in pixels of the first picture, around all that matches; None if nothing does.
        share: Share of its pixels that match.
        shift: By how many pixels the second is moved down and right to match best.
    """

    box: tuple[int, int, int, int] | None
    share: float
    shift: tuple[int, int]


def pixel_distance(queries: Tensor, images: Tensor) -> Tensor:
    """Return the root mean square difference of pixels, in [0, 2], float64.

    Args:
        queries: In [-1, 1]. [num_queries, C, H, W]
        images: Of the same size. [num_images, C, H, W]

    Returns:
        [num_queries, num_images]
    """
    a, b = queries.flatten(1).double(), images.flatten(1).double()
    # Without matrix products, in which equal pictures would differ by rounding.
    distances: Tensor = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
    scaled: Tensor = distances / a.shape[1] ** 0.5
    return scaled


def structural_similarity(queries: Tensor, images: Tensor) -> Tensor:
    """Return the structural similarity (SSIM) of grey pictures of at most 64 pixels, 1 for equal ones, float64.

    Args:
        queries: In [-1, 1]. [num_queries, C, H, W]
        images: Of the same size. [num_images, C, H, W]

    Returns:
        [num_queries, num_images]

    Reference:
        Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004, Eq. 13.
    """
    a, b = grey(queries), grey(images)
    return torch.stack([_ssim(query.expand_as(b), b).mean((1, 2, 3)) for query in a])


def matching_region(query: Tensor, image: Tensor) -> Region:
    """Return the part of a picture whose structure is that of another one, moved to where it matches best.

    Local structure is the covariance part of SSIM, which neither brightness nor contrast of a colour changes.

    Args:
        query: In [-1, 1]. [C, H, W]
        image: Of the same size. [C, H, W]

    Returns:
        The region, to within a pixel of the reduced pictures.
    """
    a, b = grey(query[None]), grey(image[None])
    height, width = a.shape[2:]
    far = (height // _FARTHEST, width // _FARTHEST)
    shifts = [(y, x) for y in range(-far[0], far[0] + 1) for x in range(-far[1], far[1] + 1)]
    shifts.sort(key=lambda shift: (abs(shift[0]) + abs(shift[1]), shift))  # of equal ones the smallest
    moved = torch.cat([_moved(b, *shift) for shift in shifts])
    structure = _structure(a.expand_as(moved), moved)[:, 0]
    best = int(structure.mean((1, 2)).argmax())
    found = structure[best] >= _MATCHES
    scale = (query.shape[1] / height, query.shape[2] / width)
    down, right = (round(s * factor) for s, factor in zip(shifts[best], scale, strict=True))
    if not found.any():
        return Region(None, 0.0, (down, right))
    rows, columns = (found.any(axis).nonzero().flatten() for axis in (1, 0))
    box = (
        round(rows[0].item() * scale[0]),
        round(columns[0].item() * scale[1]),
        round((rows[-1].item() + 1) * scale[0]),
        round((columns[-1].item() + 1) * scale[1]),
    )
    return Region(box, found.double().mean().item(), (down, right))


def grey(images: Tensor) -> Tensor:
    """Return the mean of the channels, reduced to at most 64 pixels a side, float64. [num, 1, h, w]"""
    mean = images.double().mean(1, keepdim=True)
    longest = max(mean.shape[2:])
    if longest <= _SIDE:
        return mean
    size = [max(1, side * _SIDE // longest) for side in mean.shape[2:]]
    return F.interpolate(mean, size=size, mode="area")


def _moved(images: Tensor, down: int, right: int) -> Tensor:
    """Pictures moved, with their edges repeated where nothing comes from. [num, 1, h, w]"""
    pads = (max(right, 0), max(-right, 0), max(down, 0), max(-down, 0))
    padded = F.pad(images, pads, mode="replicate")
    top, left = max(-down, 0), max(-right, 0)
    return padded[:, :, top : top + images.shape[2], left : left + images.shape[3]]


def _blurred(images: Tensor) -> Tensor:
    """Local means under a Gaussian window. [num, 1, h, w]"""
    side = min(_WINDOW, *(s if s % 2 else s - 1 for s in images.shape[2:]))
    at = torch.arange(side, dtype=torch.float64, device=images.device) - side // 2
    window = (-at.square() / (2 * _SIGMA**2)).exp()
    window = window / window.sum()
    padded = F.pad(images, (side // 2,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))


def _moments(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Local means, sum of variances, covariance."""
    mean_a, mean_b = _blurred(a), _blurred(b)
    variances = _blurred(a * a) - mean_a**2 + _blurred(b * b) - mean_b**2
    return mean_a, mean_b, variances, _blurred(a * b) - mean_a * mean_b


def _ssim(a: Tensor, b: Tensor) -> Tensor:
    mean_a, mean_b, variances, covariance = _moments(a, b)
    luminance = (2 * mean_a * mean_b + _C1) / (mean_a**2 + mean_b**2 + _C1)
    return luminance * (2 * covariance + _C2) / (variances + _C2)


def _structure(a: Tensor, b: Tensor) -> Tensor:
    """Correlation of the surroundings of each pixel; places without structure in both match."""
    mean_a, mean_b, _, covariance = _moments(a, b)
    products = (_blurred(a * a) - mean_a**2).clamp(min=0) * (_blurred(b * b) - mean_b**2).clamp(min=0)
    return (covariance + _C2) / (products.sqrt() + _C2)
