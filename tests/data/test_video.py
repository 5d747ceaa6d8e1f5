"""Animated files are videos where frames are asked for; tensors, lists of frames and sounds are items too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from journey.data.folder import ImageFolder
from journey.data.items import image_of
from journey.data.picture import Form


def write_animation(path: Path, frames: int, size: tuple[int, int] = (12, 8)) -> None:
    """Frames of one grey each, 40 levels apart."""
    pictures = [Image.new("RGB", size, (40 * i,) * 3) for i in range(frames)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=50)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_a_folder_of_animations_is_one_of_videos(suffix: str, tmp_path: Path) -> None:
    write_animation(tmp_path / f"a.{suffix}", 6)
    (tmp_path / "a.txt").write_text("a red apple")
    item = ImageFolder(tmp_path, size=(5, 4, 4))[0]
    assert isinstance(item, dict)
    assert item["text"] == "a red apple"
    video = image_of(item, "a")
    assert video.shape == (5, 3, 4, 4)
    wanted = torch.arange(5.0) * 40 / 127.5 - 1
    torch.testing.assert_close(video.mean((1, 2, 3)), wanted, rtol=0, atol=0.03)
    assert Form((2, 4, 4), 1).read(tmp_path / f"a.{suffix}", "a").shape == (2, 1, 4, 4)
    with pytest.raises(
        ValueError, match=r"a\.\w+ must have at least 7 frames, as the model's videos do, got 6; remove"
    ):
        ImageFolder(tmp_path, size=(7, 4, 4))[0]


def test_a_still_picture_or_a_damaged_file_is_no_video(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"must have at least 5 frames, .* got 1"):
        ImageFolder(tmp_path, size=(5, 4, 4))[0]
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="cannot be read as an animation"):
        ImageFolder(tmp_path, size=(5, 4, 4))[0]
    with pytest.raises(ValueError, match="a must be a video or a sound as the model takes, got a picture"):
        Form((5, 4, 4), 3).bring(Image.new("RGB", (4, 4)), "a")


def test_videos_and_sounds_come_as_tensors_arrays_and_lists_of_frames() -> None:
    frames = torch.randint(256, (5, 3, 4, 6), dtype=torch.uint8)
    wanted = frames.float() / 127.5 - 1
    pictures = [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in frames]
    for item in (
        frames,
        frames.numpy(),
        {"video": frames},
        {"video": list(frames)},
        {"video": pictures},
        (wanted, "a"),
    ):
        assert torch.equal(image_of(item, "a"), wanted)
    with pytest.raises(
        ValueError, match=r"a must be \[F, C, H, W\], got \[5, 4, 6, 3\]; give it as permute\(0, 3, 1, 2\)"
    ):
        image_of(frames.permute(0, 2, 3, 1), "a")
    with pytest.raises(ValueError, match=r"a must have frames \[C, H, W\] of one size, got"):
        image_of({"video": [frames[0], frames[1, :, :2]]}, "a")
    sound = np.array([[-32768, 0, 16384]], dtype=np.int16)
    assert image_of({"audio": sound}, "a").tolist() == [[-1, 0, 0.5]]
    assert image_of({"audio": torch.tensor([[0.25]])}, "a").tolist() == [[0.25]]
