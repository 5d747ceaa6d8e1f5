"""Videos and sounds as still images: frames beside each other, waveform over spectrogram."""

from __future__ import annotations

import torch
from torch import Tensor

# Frames of a video that are shown, and their columns.
_FRAMES, _COLUMNS = 4, 2
# Size of a sound's image, half of it waveform, and samples of a window of its spectrogram.
_SIDE, _WINDOW = 128, 256
# The quietest that is not black, in powers of ten below the loudest.
_DECADES = 4.0


def as_image(media: Tensor) -> Tensor:
    """Return the image that stands for a video or a sound on a page.

    Args:
        media: An image [C, H, W], which stays as it is; a video [F, C, H, W], of which the first frame, the last and
            two between them are shown, row by row; or a sound [C, T], shown as its waveform, and below it the
            magnitudes of its short-time Fourier transform, low frequencies at the bottom.

    Returns:
        In [-1, 1]. [C, H, W]
    """
    if media.dim() == 4:
        return _frames(media)
    return _sound(media.mean(0)) if media.dim() == 2 else media


def as_images(media: Tensor, leading: int) -> Tensor:
    """Return the images of several videos or sounds, whose first ``leading`` dimensions count them."""
    if media.dim() == leading + 3:
        return media
    images: Tensor = torch.stack([as_image(one) for one in media.flatten(0, leading - 1)])
    return images.view(*media.shape[:leading], *images.shape[1:])


def _frames(video: Tensor) -> Tensor:
    """Some frames in rows of two. [F, C, H, W] -> [C, rows H, columns W]"""
    count = min(_FRAMES, len(video))
    chosen = torch.linspace(0, len(video) - 1, count, dtype=torch.float64, device="cpu").round().long()
    columns = count if count < _FRAMES else _COLUMNS
    rows = [torch.cat(list(video[part]), -1) for part in chosen.split(columns)]
    return torch.cat(rows, -2)


def _sound(sound: Tensor) -> Tensor:
    """Waveform over spectrogram, white on black. [T] -> [1, _SIDE, _SIDE]"""
    sound = sound.detach().float().cpu()
    height = _SIDE // 2
    # Each column shows the range of the samples in it.
    low, high = (
        torch.stack([end(part) for part in sound.tensor_split(min(_SIDE, len(sound)))])
        for end in (torch.min, torch.max)
    )
    lines = torch.linspace(1, -1, height, dtype=torch.float32, device="cpu")[:, None]
    margin = 1 / (height - 1)
    shown = ((lines <= high + margin) & (lines >= low - margin)).float() * 2 - 1
    window = torch.hann_window(_WINDOW, dtype=torch.float32, device="cpu")
    sound = torch.nn.functional.pad(sound, (0, max(0, _WINDOW - len(sound))))
    hop = max(1, (len(sound) - _WINDOW) // (_SIDE - 1))
    sizes = torch.stft(sound, _WINDOW, hop, window=window, center=False, return_complex=True).abs()
    levels = (sizes / sizes.max().clamp(min=1e-12)).clamp(min=10**-_DECADES).log10() / _DECADES * 2 + 1
    both = [
        torch.nn.functional.interpolate(part[None, None], (height, _SIDE), mode="area")[0]
        for part in (shown, levels.flip(0))
    ]
    return torch.cat(both, -2)
