"""A folder of images as a dataset, with what its ``metadata.jsonl`` tells."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from journey.data.items import CAPTION_KEYS, LABEL_KEYS, captions_of, eight_bits, label_of

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


class ImageFolder:
    """The images of a folder and its subfolders, in the order of their paths.

    A file ``metadata.jsonl`` in the folder tells more about them, one JSON object a line as the Hugging Face library
    ``datasets`` has it: ``{"file_name": "a.png", "text": "a red apple"}``. Items are then dicts with what it says and
    ``image``; otherwise they are images. Photographs are turned as their EXIF orientation says; of 16 bits the upper 8
    are kept; transparency is dropped, as ``convert("RGB")`` does.

    Args:
        folder: Where the images are.
        size: Height and width that images are scaled to, bilinearly, and cropped to in the centre; None keeps them.
        channels: 1 (grey) or 3 (RGB).

    Raises:
        NotADirectoryError: If there is no such folder.
        ValueError: If it holds no image, ``metadata.jsonl`` is damaged or names a file that is not there, or
            ``channels`` is neither 1 nor 3; when an image is asked for, if its file cannot be read.
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, size: tuple[int, int] | None = None, channels: int = 3
    ) -> None:
        root = Path(folder)
        if not root.is_dir():
            raise NotADirectoryError(f"dataset must be a folder of images, got {root}")
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {channels}")
        self.root = root
        self.paths = sorted(path for path in root.rglob("*") if _is_image(path))
        if not self.paths:
            raise ValueError(f"dataset folder {root} holds no image ({', '.join(IMAGE_SUFFIXES)})")
        self.size = size
        self.channels = channels
        self._told = _read_metadata(root / "metadata.jsonl") if (root / "metadata.jsonl").exists() else None
        missing = sorted(str(path) for path in set(self._told or ()) - set(self.paths))
        if missing:
            raise ValueError(f"metadata.jsonl of {root} names {len(missing)} images that are not there: {missing[:3]}")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Image.Image | dict[str, Any]:
        image = self._image(self.paths[index])
        return image if self._told is None else {**self._told.get(self.paths[index], {}), "image": image}

    @property
    def labels(self) -> list[str]:
        """What each image is called on a page: its first caption, else its class and path, else its path."""
        return [self._label(path) for path in self.paths]

    def _label(self, path: Path) -> str:
        told, name = (self._told or {}).get(path, {}), path.relative_to(self.root).as_posix()
        if any(key in told for key in CAPTION_KEYS):
            return captions_of(told, name)[0]
        if any(key in told for key in LABEL_KEYS):
            return f"class {label_of(told, name)}, {name}"
        return name

    def _image(self, path: Path) -> Image.Image:
        try:
            with Image.open(path) as opened:
                turned = ImageOps.exif_transpose(opened)
                turned.load()
        # What Pillow raises for files that are cut off or no images.
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"{path} cannot be read as an image: {error}; repair or remove it") from error
        image = eight_bits(turned, str(path)).convert("L" if self.channels == 1 else "RGB")
        if self.size is None:
            return image
        height, width = self.size
        scale = max(height / image.height, width / image.width)
        scaled = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
        image = image.resize(scaled, Image.Resampling.BILINEAR)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        return image.crop((left, top, left + width, top + height))


def _is_image(path: Path) -> bool:
    """Whether a path names an image; ``._photo.png`` and the like hold what other systems note about one."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("._") and not path.is_dir()


def _read_metadata(path: Path) -> dict[Path, dict[str, Any]]:
    """What a ``metadata.jsonl`` says about each image."""
    told = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            record = json.loads(line)
            told[path.parent / record.pop("file_name")] = record
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"line {number} of {path} must be a JSON object with file_name: {error!r}") from error
    return told
