"""Videos stand as frames and sounds as waveform and spectrogram, in pictures and as files."""

from __future__ import annotations

import wave
from math import pi
from pathlib import Path

import pytest
import torch
from PIL import Image

from journey.cli.outputs import save_media
from journey.report.media import as_image, as_images
from journey.report.view import to_picture


def test_an_image_stays_as_it_is() -> None:
    image = torch.rand(3, 4, 5)
    assert as_image(image) is image
    several = image.expand(2, 6, -1, -1, -1)
    assert as_images(several, 2) is several


def test_a_video_is_its_first_and_last_frame_and_two_between_row_by_row() -> None:
    video = torch.arange(10.0).view(10, 1, 1, 1).expand(-1, 3, 2, 3)
    found = as_image(video)
    assert found.shape == (3, 4, 6)
    assert found[0, ::2, ::3].tolist() == [[0, 3], [6, 9]]
    assert as_image(video[:2])[0, 0].tolist() == [0, 0, 0, 1, 1, 1]
    assert as_images(video.expand(2, 5, -1, -1, -1, -1), 2).shape == (2, 5, 3, 4, 6)


def test_a_tone_is_a_line_at_its_frequency_below_the_range_of_its_waves() -> None:
    rate, seconds = 8000, 2
    time = torch.arange(rate * seconds) / rate
    tone = 0.5 * (2 * pi * 1000 * time).sin()
    found = as_image(tone.expand(2, -1))
    assert found.shape == (1, 128, 128)
    wave_rows, spectrum = found[0, :64], found[0, 64:]
    filled = (wave_rows > 0).float().mean()
    assert filled == pytest.approx(0.5, abs=0.03)
    # 1,000 of 4,000 Hz: a quarter from below.
    assert 63 - int(spectrum.mean(1).argmax()) == pytest.approx(16, abs=1)
    assert as_image(torch.zeros(1, 10)).isfinite().all()
    assert to_picture(found).size == (128, 128)


def test_generated_media_are_written_as_files_of_their_kind(tmp_path: Path) -> None:
    levels = torch.linspace(-1, 1, 5)
    with Image.open(save_media(levels.view(5, 1, 1, 1).expand(-1, 3, 4, 6), tmp_path, "0")) as video:
        assert (video.format, video.n_frames, video.size) == ("GIF", 5, (6, 4))
    path = save_media(torch.stack([levels, -levels]), tmp_path, "1", sampling_rate=44100)
    with wave.open(str(path)) as sound:
        assert (sound.getnchannels(), sound.getframerate(), sound.getnframes()) == (2, 44100, 5)
        samples = torch.frombuffer(bytearray(sound.readframes(5)), dtype=torch.int16).view(5, 2)
    assert samples[:, 0].tolist() == [-32767, -16384, 0, 16384, 32767]
    assert samples[:, 1].tolist() == samples[:, 0].flip(0).tolist()
    with Image.open(save_media(torch.zeros(3, 4, 6), tmp_path, "2")) as image:
        assert image.size == (6, 4)
