"""Where a command writes, refused before the work and not after, and how it writes what was generated."""

from __future__ import annotations

import wave
from pathlib import Path

import torch
from torch import Tensor

from journey.errors import naming_folder
from journey.files.publish import check_writable
from journey.report.view import to_picture

# How long a frame of a video stays.
_MILLISECONDS = 60


def prepare_folder(out: Path) -> None:
    """Make an output folder, or refuse it before the work and not after.

    Raises:
        FileExistsError: If it is a file.
        OSError: If it cannot be made or written to.
    """
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"out must be a folder, got {out}, which is a file")
    with naming_folder(out):
        out.mkdir(parents=True, exist_ok=True)
        check_writable(out)


def prepare_file(path: Path | None, name: str) -> None:
    """Refuse an output file whose folder is not there, before the work and not after.

    Raises:
        FileNotFoundError: If its folder is not there.
        IsADirectoryError: If it is a folder.
    """
    if path is not None and path.is_dir():
        raise IsADirectoryError(f"{name} must be a file, got {path}, which is a folder")
    if path is not None and not path.parent.is_dir():
        raise FileNotFoundError(f"{name} must be a file in a folder that is there, got {path}")


def save_media(media: Tensor, folder: Path, name: str, *, sampling_rate: int | None = None) -> Path:
    """Write a generated image as PNG, a video as an animated GIF, a sound as WAV of 16 bits.

    Args:
        media: In [-1, 1]: [C, H, W], [F, C, H, W] or [C, T].
        folder: Where the file is written.
        name: The file is called ``image-NAME.png``, ``video-NAME.gif`` or ``sound-NAME.wav``.
        sampling_rate: Samples a second, of a sound.

    Returns:
        The path.
    """
    if media.dim() == 2:
        path = folder / f"sound-{name}.wav"
        samples = media.T.clamp(-1, 1).mul(32767).round().to(torch.int16).numpy()
        with wave.open(str(path), "wb") as file:
            file.setnchannels(len(media))
            file.setsampwidth(2)
            file.setframerate(int(sampling_rate or 0))
            file.writeframes(samples.astype("<i2").tobytes())
    elif media.dim() == 4:
        path, frames = folder / f"video-{name}.gif", [to_picture(frame) for frame in media]
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=_MILLISECONDS, loop=0)
    else:
        path = folder / f"image-{name}.png"
        to_picture(media).save(path)
    return path
