"""Which files of a folder are images, and which are passed over."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

# Pillow knows their names, but has no decoder of its own: of GRIB, HDF5, BUFR and MPEG it reads the header, Windows
# draws WMF, and EPS is a program that Ghostscript would run.
_NO_PICTURES = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")


class Listing(NamedTuple):
    """What a folder and its subfolders hold."""

    images: list[Path]  # sorted
    others: list[Path]  # sorted: files that are no images
    hidden: list[Path]  # files and folders, not looked into
    loops: list[Path]  # linked folders that lead back to one above them
    folders: list[str]  # names of the folders directly inside that were looked into, sorted


def image_formats() -> list[str]:
    """The formats that Pillow decodes, with those of plugins that the caller has registered."""
    Image.init()
    return [name for name in Image.OPEN if name not in _NO_PICTURES]


def image_suffixes() -> frozenset[str]:
    """The suffixes of those formats, in lower case; Pillow reads .mpo, which it registers for writing, as a JPEG."""
    formats = {*image_formats(), "MPO"}
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats)


def list_folder(root: Path) -> Listing:
    """Sort out the files of a folder and its subfolders.

    Names that begin with a dot and folders that begin with two underscores, such as ``__MACOSX``, are hidden, as in
    the Hugging Face library ``datasets``; the folder itself may have any name. Links to files and to folders are
    followed (torchvision does both, ``datasets`` only the former), but for those that lead back to a folder above.

    Args:
        root: The folder.

    Returns:
        Paths that begin with ``root``.
    """
    suffixes = image_suffixes()
    found = Listing([], [], [], [], [])
    top = os.path.realpath(root)
    waiting = [(root, top, frozenset([top]))]  # a folder, its real path, and those of the folders on the way to it
    while waiting:
        folder, real_folder, above = waiting.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                path = folder / entry.name
                # Unlike those of an entry, these tests answer for a link that leads nowhere or to itself.
                linked = entry.is_symlink()
                is_folder = os.path.isdir(path) if linked else entry.is_dir()  # noqa: PTH112
                is_file = os.path.isfile(path) if linked else entry.is_file()  # noqa: PTH113
                if entry.name.startswith("." if not is_folder else (".", "__")):
                    found.hidden.append(path)
                elif is_folder:
                    real = os.path.realpath(path) if linked else str(Path(real_folder, entry.name))
                    if real in above:
                        found.loops.append(path)
                        continue
                    waiting.append((path, real, above | {real}))
                    if folder == root:
                        found.folders.append(entry.name)
                # A link that leads nowhere is an image that cannot be read; a pipe would never end.
                elif path.suffix.lower() in suffixes and (is_file or (linked and not os.path.exists(path))):  # noqa: PTH110
                    found.images.append(path)
                else:
                    found.others.append(path)
    for names in found:
        names.sort()
    return found


def describe_passed_over(root: Path, listing: Listing) -> str:
    """Count and name what is not taken from a folder; empty if there is nothing."""
    kinds = {
        "files that are no images Pillow reads": listing.others,
        "hidden files or folders": listing.hidden,
        "linked folders that lead back to one above": listing.loops,
    }
    told = [f"{len(paths)} {kind} ({first_names(root, paths)})" for kind, paths in kinds.items() if paths]
    return f"passed over {', '.join(told)}" if told else ""


def first_names(root: Path, paths: Sequence[Path]) -> str:
    """Name the first three of some files, as they are called inside a folder."""
    return ", ".join(path.relative_to(root).as_posix() for path in paths[:3]) + (", ..." if len(paths) > 3 else "")


def read_text(path: Path) -> str:
    """Return what a text file holds, line ends as they are, without the mark that Windows begins files with.

    Raises:
        ValueError: If it is not UTF-8.
    """
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {line} of {path} is not UTF-8 ({error.reason}); save the file as UTF-8") from None
