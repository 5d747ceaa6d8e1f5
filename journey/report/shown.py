"""The training images that a run keeps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from journey.data.ids import Ids
from journey.data.items import Dataset, get_image
from journey.files.tensors import read_tensors, write_tensors
from journey.report.view import to_picture
from journey.scores.saved import id_tensors, ids_of_tensors

_MAX_SIDE = 256  # pixels of a kept training image
_NAMES = "names"  # of the ids of the whole dataset, where they are not its positions


@dataclass(frozen=True)
class Shown:
    """The training images that a run shows, as a dataset with gaps.

    Attributes:
        length: Of the whole dataset.
        images: By dataset index, uint8. Each [C, H, W]
        ids: Of the images of the whole dataset.
    """

    length: int
    images: dict[int, Tensor]
    ids: Ids

    def __len__(self) -> int:
        """Length of the whole dataset."""
        return self.length

    def __getitem__(self, index: int) -> Tensor:
        """One of the images that were kept, uint8."""
        return self.images[index]


def save_images(path: Path, dataset: Dataset, positions: list[int], ids: Ids) -> None:
    """Write some training images, 8 bits each, those of one shape as one tensor.

    Args:
        path: The file.
        dataset: The training images.
        positions: Which of them.
        ids: Of all of them.
    """
    groups: dict[tuple[int, ...], dict[int, Tensor]] = {}
    for i in positions:
        picture = to_picture(get_image(dataset, i), max_side=_MAX_SIDE)
        flat = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
        image = flat.view(picture.height, picture.width, len(picture.getbands())).permute(2, 0, 1)
        groups.setdefault(tuple(image.shape), {})[i] = image
    tensors = {} if ids == list(range(len(ids))) else id_tensors(_NAMES, ids)
    for group, images in enumerate(groups.values()):
        tensors[f"ids.{group}"] = torch.tensor(list(images), dtype=torch.int64, device="cpu")
        tensors[f"images.{group}"] = torch.stack(list(images.values()))
    write_tensors(path, "training images", tensors)


def load_images(path: Path, length: int) -> Shown:
    """Read what ``save_images`` wrote.

    Args:
        path: The file.
        length: Of the whole dataset.

    Returns:
        The training images.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or holds something else.
    """
    saved = read_tensors(path, "training images")
    groups = [name.partition(".")[2] for name in saved if name.startswith("ids.")]
    missing = [f"images.{group}" for group in groups if f"images.{group}" not in saved]
    if missing:
        raise ValueError(f"{path} is damaged: it lacks {', '.join(missing)}")
    pairs = [(saved[f"ids.{group}"], saved[f"images.{group}"]) for group in groups]
    images = {i: image for positions, images in pairs for i, image in zip(positions.tolist(), images, strict=True)}
    counted = not any(name.startswith(_NAMES) for name in saved)
    return Shown(length, images, list(range(length)) if counted else ids_of_tensors(_NAMES, saved, str(path)))
