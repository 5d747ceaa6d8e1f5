"""A folder of images as a dataset, with what files and folders in it tell about them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from journey.data.captions import add_captions, caption_files
from journey.data.items import CAPTION_KEYS, LABEL_KEYS, captions_of, label_of
from journey.data.listing import describe_passed_over, first_names, list_folder
from journey.data.metadata import METADATA_NAMES, read_metadata
from journey.data.numbers import as_size
from journey.data.picture import Form

# Folders of these names are parts of a data set, not classes.
_PARTS = {"train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation"}


class ImageFolder:
    """The images of a folder and its subfolders, in the order of their paths.

    Images are all that Pillow decodes, told by suffix; hidden files and folders (``.a.png``, ``__MACOSX``) are not
    looked at, links are followed, and what is passed over is counted in a warning. Items are images, or dicts with
    ``image`` and what else is told:

    * ``metadata.jsonl``, one object a line as the Hugging Face library ``datasets`` has it: ``{"file_name": "a.png",
      "text": "a red apple"}``; or ``metadata.csv`` or ``metadata.parquet`` with a column ``file_name``. They may
      also stand in subfolders.
    * ``a.txt`` or ``a.caption`` beside ``a.png`` is its caption ``text``; then every image must have one.
    * If all images are one folder deep, in two folders or more, and there is no metadata, these are classes:
      ``label`` counts their sorted names. Parts of a data set, such as ``train`` and ``test``, are no classes.

    Photographs are turned as their EXIF orientation says; of an animation the first frame is taken, of 16 bits the
    upper 8; transparency is dropped, as ``convert("RGB")`` does.

    Args:
        folder: Where the images are.
        size: Height and width that images are scaled to, bilinearly, and cropped to in the centre; None keeps them. Of
            videos frames, height and width: items are the first frames of animated GIF, WebP or PNG files.
        channels: 1 (grey) or 3 (RGB).

    Attributes:
        paths: The files, by position.
        ids: Their paths inside the folder, by which images are named.
        classes: Names of the class folders, by label; None if folders are no classes.

    Raises:
        NotADirectoryError: If there is no such folder.
        ValueError: If it holds no image, what is told is damaged, contradicts itself or names a file that is not
            there, only some images have a caption file, or ``channels`` is neither 1 nor 3; when an image is asked
            for, if its file cannot be read.
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, size: tuple[int, ...] | None = None, channels: int = 3
    ) -> None:
        root = Path(folder)
        if not root.is_dir():
            raise NotADirectoryError(f"dataset must be a folder of images, got {root}")
        size = None if size is None else as_size(size, "size")
        if size is not None and len(size) == 1:
            raise ValueError(
                f"dataset must hold tensors [C, T] in [-1, 1] for a model of sounds, got the folder {root}: files of "
                "sounds are not read, so give a dataset of your own whose items have audio and text"
            )
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {channels}")
        listing = list_folder(root)
        metadata = [path for path in listing.others if path.name in METADATA_NAMES]
        captions = caption_files(listing.images, listing.others)
        read = {*metadata, *(path for several in captions.values() for path in several)}
        left_out = describe_passed_over(
            root, listing._replace(others=[path for path in listing.others if path not in read])
        )
        if not listing.images:
            raise ValueError(
                f"dataset folder {root} holds no image (.png, .jpg, .webp and all else that Pillow decodes)"
                + (f"; {left_out}" if left_out else "")
            )
        self.root = root
        self.paths = listing.images
        self.size = size
        self.channels = channels
        self.classes = None if metadata else _classes(root, listing.images)
        self._told: dict[Path, dict[str, Any]] | None = None
        if self.classes is not None:
            labels = {name: label for label, name in enumerate(self.classes)}
            self._told = {path: {"label": labels[path.parent.name]} for path in self.paths}
            _warn_of_doubtful_labels(root, self.classes, listing.folders)
        if metadata:
            self._told = read_metadata(root, metadata, self.paths)
        if captions:
            self._told = add_captions(root, self._told or {}, captions, self.paths)
        if metadata:
            _warn_of_gaps(root, self._told or {}, self.paths)
        if left_out:
            warnings.warn(f"dataset folder {root}: {left_out}", stacklevel=2)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Image.Image | Tensor | dict[str, Any]:
        path = self.paths[index]
        image = Form(self.size, self.channels).read(path, str(path))
        return image if self._told is None else {**self.told(index), "image": image}

    @cached_property
    def ids(self) -> list[str]:
        """The path of each image inside the folder, with ``/`` between its parts."""
        names = [path.relative_to(self.root).as_posix() for path in self.paths]
        wrong = [os.fsencode(name) for name in names if not _is_utf8(name)]
        if wrong:
            raise ValueError(
                f"{len(wrong)} of {len(names)} images in {self.root} have names that are not UTF-8, such as "
                f"{wrong[0]!r}, and images are named by their paths; rename the files"
            )
        return names

    def told(self, index: int) -> dict[str, Any]:
        """What metadata, caption files and class folders tell of an image, which is not decoded for that."""
        return dict((self._told or {}).get(self.paths[index], {}))

    @property
    def labels(self) -> list[str]:
        """What each image is called on a page: its first caption, else its class and path, else its path."""
        return [self._label(path) for path in self.paths]

    def _label(self, path: Path) -> str:
        told = (self._told or {}).get(path, {})
        name = os.fsencode(path.relative_to(self.root)).decode("utf-8", "replace")  # pages cannot hold other names
        if any(key in told for key in CAPTION_KEYS):
            return captions_of(told, name)[0]
        if self.classes is None and any(key in told for key in LABEL_KEYS):  # the path begins with the class
            return f"class {label_of(told, name)}, {name}"
        return name


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _classes(root: Path, images: Sequence[Path]) -> list[str] | None:
    """Return the sorted names of class folders, where all images are in such; by the rules of ``datasets``."""
    folders = {path.parent for path in images}
    names = sorted(folder.name for folder in folders)
    if any(folder == root or folder.parent != root for folder in folders) or len(names) < 2:
        return None
    return None if _PARTS.intersection(name.lower() for name in names) else names


def _warn_of_doubtful_labels(root: Path, classes: Sequence[str], folders: Sequence[str]) -> None:
    """Warn if folders are numbered otherwise than their sorted names count, or one without images has no label."""
    cure = "tell labels in metadata.jsonl if the model learned others"
    if empty := sorted(set(folders) - set(classes)):
        named = ", ".join(empty[:3]) + (", ..." if len(empty) > 3 else "")
        text = f"dataset folder {root}: {len(empty)} folders hold no image and count as no class ({named}); {cure}"
        warnings.warn(text, stacklevel=3)
    wrong = [(name, label) for label, name in enumerate(classes) if not name.isdecimal() or int(name) != label]
    if wrong and all(name.isdecimal() for name in classes):
        name, label = wrong[0]
        text = f"dataset folder {root}: labels count the sorted names of folders, so {name!r} is class {label}; {cure}"
        warnings.warn(text, stacklevel=3)


def _warn_of_gaps(root: Path, told: dict[Path, dict[str, Any]], images: Sequence[Path]) -> None:
    """Warn of images that metadata tells no caption or label of while it does so of others, or nothing at all."""
    gaps = {}
    for kind, keys in (("caption", CAPTION_KEYS), ("class label", LABEL_KEYS)):
        without = [path for path in images if not any(key in told.get(path, {}) for key in keys)]
        if 0 < len(without) < len(images):
            gaps[kind] = without
    if not gaps and len(told) < len(images):
        gaps["line"] = [path for path in images if path not in told]
    for kind, without in gaps.items():
        warnings.warn(
            f"dataset folder {root}: {len(without)} of {len(images)} images have no {kind} in its metadata "
            f"({first_names(root, without)}); a model that is told what stands there refuses them",
            stacklevel=3,
        )
