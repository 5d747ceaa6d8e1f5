"""Is this image a copy of a training image?"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from journey.audit.kernel import Kernel, check_pictures
from journey.audit.similarity import Region, matching_region, pixel_distance, structural_similarity
from journey.curvature.gram import DEFAULT_DAMPING
from journey.data.folder import ImageFolder
from journey.data.ids import ids_of, positions_of
from journey.data.items import Dataset, check_range, get_image, image_of
from journey.errors import check_count
from journey.features.features import Features
from journey.files.fingerprint import fingerprint_tensors
from journey.generation.trajectory import Trajectory
from journey.models.condition import Condition, Encoded
from journey.scores.image_queries import IMAGE_DRAWS, plan_images
from journey.scores.queries import check_features
from journey.scores.score import score

MIN_HELD_OUT = 19  # of fewer no p-value is .05 or less
Pictures = Trajectory | Dataset | Tensor | str | os.PathLike[str]


@dataclass(frozen=True)
class Copy:
    """How near an image is to the training images.

    Attributes:
        ids: The nearest training images, nearest first.
        cosines: Of the image's row with theirs in the damped metric, one for rows in one direction. [len(ids)]
        errors: Standard errors of the cosines, at most. [len(ids)]
        margin: How far the first is above the second; two copies in the training set leave none.
        p_value: Share of held-out images, with this one, whose nearest training image is as near: small for a copy.
        distance: Root mean square difference to the nearest in pixels, in [0, 2]; None without ``dataset``.
        structure: Structural similarity (SSIM) with the nearest, one for equal ones; None likewise.
        region: Where it matches the nearest; None likewise.
    """

    ids: tuple[int | str, ...]
    cosines: tuple[float, ...]
    errors: tuple[float, ...]
    margin: float
    p_value: float
    distance: float | None = None
    structure: float | None = None
    region: Region | None = None


def copies(
    features: Features,
    images: Pictures,
    *,
    held_out: Pictures,
    dataset: Dataset | str | os.PathLike[str] | None = None,
    conditions: Condition | None = None,
    top: int = 5,
    num_draws: int | None = None,
    seed: int = 0,
    damping: float = DEFAULT_DAMPING,
    progress: bool = True,
) -> list[Copy]:
    """Say of images whether they are copies of training images, also shifted, recoloured, cropped or partly repainted.

    An image is measured as the training images were; its row is compared with theirs. How near is near is read off
    images that were never trained on: ``p = (1 + how many of them are as near) / (1 + how many there are)``. If the
    image is exchangeable with them, p is at most alpha with a probability of at most alpha. A model that reads captions
    is told the same with them as with the image, since a caption in common brings rows together, whatever the pictures
    show; so each caption costs a measurement of all held-out images. Of several captions the first one counts.

    Args:
        features: The training images, from ``journey.featurize`` with the same model.
        images: The images in question, as ``images`` of ``journey.score``.
        held_out: Images of the same kind that the model was never trained on, at least 19, in the same forms. They
            are told what the images are told. One that was trained on makes all others look less like copies.
        dataset: The training images, or their folder, for what pixels say about the nearest one.
        conditions: As ``conditions`` of ``journey.score``, for ``images``.
        top: How many of the nearest training images to name.
        num_draws: As for ``journey.score``.
        seed: Likewise.
        damping: Likewise.
        progress: Show a progress bar.

    Returns:
        The evidence for each image.

    Raises:
        TypeError: As ``journey.score``.
        ValueError: As ``journey.score``, or if the model is not one of images, there are fewer than 19 held-out images,
            two of them are equal or one is in ``dataset``, ``top`` is out of range, the features' draws do not tell
            their noise, or ``dataset`` lacks the nearest image or has another size.
    """
    check_features(features)
    check_pictures(features.featurizer.denoiser)
    if num_draws is not None:
        check_count("num_draws", num_draws, least=2)
    kernel = Kernel.of(features, damping)
    if not 1 <= top <= len(kernel.ids):
        raise ValueError(f"top must be between 1 and the {len(kernel.ids)} training images, got {top}")
    draws = IMAGE_DRAWS if num_draws is None else num_draws

    def encoded(given: Pictures, told_with: Condition | None = None) -> Encoded:
        return plan_images(features, given, told_with, region=None, num_draws=draws, seed=seed).samples

    images, others = _opened(images, features), _opened(held_out, features)
    count = others.num_queries if isinstance(others, Trajectory) else len(others)
    if count < MIN_HELD_OUT:
        raise ValueError(
            f"held_out must be at least {MIN_HELD_OUT} images that were not trained on, got {count}: with fewer no "
            "p-value can be .05"
        )
    _check_held_out(others, None if dataset is None else _opened(dataset, features))
    if not features.featurizer.denoiser.is_latent:
        _check_pixels(images)
        _check_pixels(others)
    samples = encoded(images, conditions)
    told = samples.conditions(torch.zeros(len(samples), 1, dtype=torch.int64, device="cpu"))
    # A tensor, as the network takes it, has no captions.
    pictures = others if told is not None and isinstance(others, Tensor) else encoded(others).x0
    asked: dict[str, Any] = {"num_draws": draws, "seed": seed, "damping": damping, "progress": progress}
    cosines, errors = _cosines(kernel, samples.x0, told, asked)
    best = cosines.topk(max(2, top), dim=1)
    nulls = _nulls(kernel, pictures, [None if told is None else told.select([i]) for i in range(len(samples))], asked)
    p_values = (1 + (nulls >= best.values[:, :1]).sum(1)).double() / (1 + count)
    beside = _beside(kernel, images, best.indices[:, 0].tolist(), dataset)
    return [
        Copy(
            tuple(kernel.ids[i] for i in best.indices[query, :top].tolist()),
            tuple(best.values[query, :top].tolist()),
            tuple(errors[query, best.indices[query, :top]].tolist()),
            (best.values[query, 0] - best.values[query, 1]).item(),
            p_values[query].item(),
            *beside[query],
        )
        for query in range(len(cosines))
    ]


def _check_held_out(others: Any, dataset: Dataset | None) -> None:
    """Refuse held-out images that are one image several times, or training images: no p-value would hold."""
    if isinstance(others, Trajectory):
        return
    names = [fingerprint_tensors({"image": image_of(others[i], f"held_out[{i}]")}) for i in range(len(others))]
    if len(set(names)) < len(names):
        raise ValueError("held_out must be different images, got two that are equal")
    known = set(names)
    if dataset is None:
        return
    for i in range(len(dataset)):
        if fingerprint_tensors({"image": get_image(dataset, i)}) in known:
            raise ValueError(f"held_out must be images that were never trained on, got one that is dataset[{i}]")


def _check_pixels(images: Any) -> None:
    """Warn of images that are most likely not in [-1, 1]: such look like copies of nothing."""
    if not isinstance(images, Trajectory):
        pictures = (image_of(images[i], f"images[{i}]") for i in range(len(images)))
        check_range((picture.min(), picture.max()) for picture in pictures)


def _opened(images: Pictures, features: Features) -> Any:
    """A folder's images in the size of the model."""
    if isinstance(images, str | os.PathLike):
        denoiser = features.featurizer.denoiser
        return ImageFolder(images, size=denoiser.sample_size, channels=denoiser.in_channels or 3)
    return images


def _nulls(kernel: Kernel, pictures: Tensor, told: Sequence[Condition | None], asked: dict[str, Any]) -> Tensor:
    """How near the nearest is of each held-out image, told what each query is told. [num_queries, num_held_out]"""
    known: dict[str, Tensor] = {}
    names = ["" if row is None else fingerprint_tensors(dict(row.tensors)) for row in told]
    for name, row in zip(names, told, strict=True):
        if name not in known:
            known[name] = _cosines(kernel, pictures, row, asked)[0].amax(1)
    return torch.stack([known[name] for name in names])


def _cosines(
    kernel: Kernel, images: Tensor, conditions: Condition | None, told: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Cosines of images with the training images, and their errors. [num_queries, num_train], twice."""
    features = kernel.features
    scores = score(features, images=images, conditions=conditions, **told)
    assert scores.solutions is not None
    squares = []
    for number, solved in enumerate(scores.solutions[:, :, 0].double()):
        factor = features.fit.gram(number).factor.double()
        # v^T M v: the norm of the row under the inverse of what it was solved with.
        own = (
            ((solved @ factor) * solved).sum(1)
            if len(factor) == factor.shape[1]
            else (solved @ factor.T).square().sum(1)
        )
        squares.append(own + kernel.damping * solved.square().sum(1))
    # Of a row that is all noise nothing can be said.
    theirs = torch.where(kernel.known, kernel.lengths, torch.full_like(kernel.lengths, torch.inf))
    safe = torch.stack(squares).mean(0).sqrt()[:, None] * theirs
    return scores.values[:, 0].double() / safe, scores.standard_errors()[:, 0].double() / safe


def _beside(
    kernel: Kernel, images: Any, nearest: Sequence[int], dataset: Dataset | str | os.PathLike[str] | None
) -> list[tuple[float | None, float | None, Region | None]]:
    """What pixels say about each image and its nearest training image."""
    if dataset is None:
        return [(None, None, None)] * len(nearest)
    data: Dataset = _opened(dataset, kernel.features)
    places = positions_of(ids_of(data))
    found: list[tuple[float | None, float | None, Region | None]] = []
    for query, column in enumerate(nearest):
        train_id = kernel.ids[column]
        if train_id not in places:
            raise ValueError(f"dataset must hold the training images of the features, got none of id {train_id!r}")
        mine = images.image_pixels[query] if isinstance(images, Trajectory) else image_of(images[query], "images")
        theirs = get_image(data, places[train_id])
        if mine.shape != theirs.shape:
            raise ValueError(
                f"dataset must have images of the size of images, {list(mine.shape)}, got {list(theirs.shape)}"
            )
        pair = (mine.cpu()[None], theirs[None])
        distance, structure = pixel_distance(*pair).item(), structural_similarity(*pair).item()
        found.append((distance, structure, matching_region(mine.cpu(), theirs)))
    return found
