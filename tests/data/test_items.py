"""Images come in the forms that people have them and leave as float tensors in [-1, 1]."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import SmallDenoiser, make_scheduler
from PIL import Image
from torch.utils.data import DataLoader

from journey.data.folder import ImageFolder
from journey.data.items import captions_of, check_dataset, check_range, get_image, label_of
from journey.models.denoiser import Denoiser

PIXELS = np.array([[0, 51, 102], [153, 204, 255]], dtype=np.uint8)  # [2, 3]
EXPECTED = torch.tensor([[[-1.0, -0.6, -0.2], [0.2, 0.6, 1.0]]])  # [1, 2, 3]
FLOAT = EXPECTED.clone()

ITEMS: dict[str, Any] = {
    "float tensor": FLOAT,
    "double array": FLOAT.double().numpy(),
    "uint8 tensor": torch.from_numpy(PIXELS)[None],
    "uint8 array": PIXELS[None],
    "grey PIL image": Image.fromarray(PIXELS),
    "tuple with a label": (FLOAT, 3),
    "list": [FLOAT],
    "dict": {"label": 1, "image": FLOAT},
    "dict of pixel_values": {"pixel_values": FLOAT},
    "dict of images": {"images": FLOAT},
    "dict of img": {"img": Image.fromarray(PIXELS)},
}


@pytest.mark.parametrize("name", ITEMS)
def test_an_image_has_the_same_numbers_in_every_form(name: str) -> None:
    found = get_image([None, ITEMS[name]], 1)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, EXPECTED, rtol=0, atol=1e-6)


def test_colours_are_channels_in_the_order_red_green_blue() -> None:
    image = Image.new("RGB", (3, 2), (255, 0, 51))
    image.putpixel((2, 1), (0, 255, 255))
    found = get_image([image], 0)
    assert found.shape == (3, 2, 3)
    torch.testing.assert_close(found[:, 0, 0], torch.tensor([1.0, -1.0, -0.6]), rtol=0, atol=1e-6)
    torch.testing.assert_close(found[:, 1, 2], torch.tensor([-1.0, 1.0, 1.0]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["RGBA", "P", "CMYK"])
def test_other_colour_modes_become_rgb(mode: str) -> None:
    image = Image.new("RGB", (3, 2), (255, 0, 255)).convert(mode)
    found = get_image([image], 0)
    torch.testing.assert_close(found[:, 0, 0], torch.tensor([1.0, -1.0, 1.0]), rtol=0, atol=0.02)  # a palette is coarse


def test_floating_point_images_are_not_rescaled() -> None:
    assert get_image([torch.full((1, 2, 2), 3.5, dtype=torch.float64)], 0).unique().tolist() == [3.5]


@pytest.mark.parametrize(
    ("item", "error", "message"),
    [
        ("cat.png", TypeError, r"dataset\[1\] must be an image .* got str"),
        ((), TypeError, r"dataset\[1\] must be an image .* got tuple"),
        (torch.zeros(1, 2, 2).long(), TypeError, r"dataset\[1\] must be uint8 or floating point .* got torch\.int64"),
        (
            {"picture": 1, "label": 2},
            ValueError,
            r"one of the keys image, pixel_values, images, img, video, audio, got picture, label",
        ),
    ],
)
def test_an_item_that_is_no_image_is_refused(item: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        get_image([None, item], 1)


def test_16_bits_become_8_instead_of_white(tmp_path: Path) -> None:
    wide = Image.fromarray(PIXELS.astype(np.uint16) * 257)
    assert wide.mode == "I;16"
    for image in (wide, wide.convert("I")):
        torch.testing.assert_close(get_image([image], 0), EXPECTED, rtol=0, atol=1e-6)
    wide.save(tmp_path / "a.png")
    for channels in (1, 3):
        found = get_image(ImageFolder(tmp_path, channels=channels), 0)
        torch.testing.assert_close(found, EXPECTED.expand(channels, -1, -1), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.fromarray(FLOAT[0].numpy()), r"dataset\[0\] has floating-point pixels, whose range is unknown"),
        (Image.new("I", (2, 2), 200), r"dataset\[0\] has pixels up to 200, which may be 8 or 16 bits"),
        (Image.new("I", (2, 2), 1 << 16), r"dataset\[0\] must have pixels of 8 or 16 bits, got 65536 to 65536"),
    ],
)
def test_pixels_of_an_unknown_range_are_refused(image: Image.Image, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_image([image], 0)


def test_a_photograph_is_turned_as_its_exif_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by a quarter, clockwise
    upright = Image.fromarray(np.repeat(np.repeat(PIXELS, 16, 0), 16, 1))
    upright.save(tmp_path / "a.png", exif=exif)
    found = get_image(ImageFolder(tmp_path, channels=1), 0)
    torch.testing.assert_close(found[:, ::16, ::16], EXPECTED.rot90(-1, (1, 2)), rtol=0, atol=1e-6)


def test_arrays_that_torch_cannot_share_memory_with_are_copied() -> None:
    fixed = PIXELS[None].copy()
    fixed.setflags(write=False)
    for array in (fixed, PIXELS[None, :, ::-1][:, :, ::-1], FLOAT.numpy().astype(">f4")):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            torch.testing.assert_close(get_image([array], 0), EXPECTED, rtol=0, atol=1e-6)


def test_channels_in_the_last_dimension_are_refused_with_the_cure() -> None:
    with pytest.raises(
        ValueError, match=r"dataset\[0\] must be \[C, H, W\], got \[8, 6, 3\]; give it as permute\(2, 0, 1\)"
    ):
        get_image([np.zeros((8, 6, 3), dtype=np.uint8)], 0)
    denoiser = Denoiser(SmallDenoiser(), make_scheduler())
    with pytest.raises(ValueError, match=r"must have 1 channels, .* permute\(2, 0, 1\) makes them so"):
        denoiser.check_image(torch.zeros(8, 8, 1), "dataset[0]")


@pytest.mark.parametrize(
    ("dataset", "error", "message"),
    [
        ({"train": [FLOAT]}, TypeError, r"got dict: give one of its parts, 'train'"),
        (iter([FLOAT]), TypeError, r"must be map-style, .* got list_iterator: a list of its items will do"),
        (DataLoader([FLOAT]), TypeError, r"must be map-style, .* got DataLoader"),
        (None, TypeError, r"must be map-style, .* got NoneType"),
        ([], ValueError, r"dataset must hold at least one image"),
    ],
)
def test_what_is_no_dataset_is_refused(dataset: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_dataset(dataset)


def test_floating_point_images_far_outside_the_range_are_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"dataset has pixels from -2\.5 to 2; models take \[-1, 1\]"):
        check_range([(torch.tensor(-2.5), torch.tensor(2.0)), (torch.tensor(-1.0), torch.tensor(1.0))])


@pytest.mark.parametrize("scale", [1.0, 255.0])
def test_floating_point_images_without_a_pixel_below_zero_are_warned_of(scale: float) -> None:
    images = [(FLOAT + 1) / 2 * scale, FLOAT.clamp(min=0.5)]
    with pytest.warns(
        UserWarning, match=rf"dataset has pixels from 0 to {scale:g}, none below zero; .* 2 \* image - 1"
    ):
        check_range((image.min(), image.max()) for image in images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_range((image.min(), image.max()) for image in [FLOAT, FLOAT.clamp(min=0.5)])
        check_range([(torch.tensor(0.0), torch.tensor(0.0))])


@pytest.mark.parametrize("damage", ["cut off", "text", "empty", "nowhere"])
def test_an_image_that_cannot_be_read_is_named(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    path.write_bytes({"cut off": whole[: len(whole) // 2], "text": b"not an image"}.get(damage, b""))
    if damage == "nowhere":
        path.unlink()
        path.symlink_to(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"a\.png cannot be read as an image: .*; repair or remove it"):
        ImageFolder(tmp_path)[0]


def test_folders_and_notes_of_other_systems_that_are_named_like_images_are_no_images(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    save(tmp_path / "folder.png" / "a.png", (4, 4), (9, 9, 9))
    (tmp_path / "._a.png").write_bytes(b"notes")
    assert ImageFolder(tmp_path).paths == [tmp_path / "folder.png" / "a.png"]


def save(path: Path, size: tuple[int, int], colour: tuple[int, int, int]) -> None:
    """Write an image of one colour; size is width and height, as PIL has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def test_a_folder_lists_its_images_by_path_and_nothing_else(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "c/d.webp", "B.bmp"):
        save(tmp_path / name, (4, 4), (9, 9, 9))
    (tmp_path / "notes.txt").write_text("no image")
    folder = ImageFolder(tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in folder.paths] == ["B.bmp", "a.JPG", "b.png", "c/d.webp"]
    assert len(folder) == 4


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_a_folder_gives_the_channels_that_are_asked_for(tmp_path: Path, channels: int, mode: str) -> None:
    save(tmp_path / "red.png", (4, 4), (255, 0, 0))
    assert ImageFolder(tmp_path, channels=channels)[0].mode == mode
    assert get_image(ImageFolder(tmp_path, channels=channels), 0).shape == (channels, 4, 4)


@pytest.mark.parametrize("size", [(6, 4), (2, 12), (8, 8), (30, 20)])
def test_images_are_scaled_to_cover_and_cropped_in_the_centre(tmp_path: Path, size: tuple[int, int]) -> None:
    # Left half black, right half white: a centred crop has its edge in the middle.
    array = np.zeros((10, 20, 3), dtype=np.uint8)
    array[:, 10:] = 255
    Image.fromarray(array).save(tmp_path / "halves.png")
    image = get_image(ImageFolder(tmp_path, size=size), 0)
    assert tuple(image.shape) == (3, *size)
    torch.testing.assert_close(image, -image.flip(2), rtol=0, atol=0.05)  # 8 bits, rounded twice
    assert image[:, :, 0].max() < 0 < image[:, :, -1].min()


def test_scaling_keeps_the_proportions(tmp_path: Path) -> None:
    array = np.zeros((10, 20, 3), dtype=np.uint8)
    array[:, :4] = array[:, -4:] = 255  # outside of the square in the centre
    Image.fromarray(array).save(tmp_path / "borders.png")
    assert get_image(ImageFolder(tmp_path, size=(8, 8)), 0).unique().tolist() == [-1.0]


def test_an_image_keeps_its_size_unless_told(tmp_path: Path) -> None:
    save(tmp_path / "wide.png", (5, 3), (1, 2, 3))
    assert get_image(ImageFolder(tmp_path), 0).shape == (3, 3, 5)


def test_a_folder_that_is_missing_or_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError, match=r"dataset must be a folder of images, got .*absent"):
        ImageFolder(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"holds no image \(\.png, \.jpg"):
        ImageFolder(tmp_path)
    save(tmp_path / "x.png", (2, 2), (0, 0, 0))
    with pytest.raises(ValueError, match="channels must be 1 or 3, got 4"):
        ImageFolder(tmp_path, channels=4)


def test_a_folder_may_tell_captions_of_its_images(tmp_path: Path) -> None:
    for name in ("b.png", "a.png", "c.png"):
        Image.fromarray(PIXELS).save(tmp_path / name)
    lines = ['{"file_name": "b.png", "text": "a pear"}', '{"file_name": "a.png", "text": ["an apple", "fruit"]}']
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    folder = ImageFolder(tmp_path, channels=1)
    assert captions_of(folder[0], "dataset[0]") == ["an apple", "fruit"]
    assert captions_of(folder[1], "dataset[1]") == ["a pear"]
    torch.testing.assert_close(get_image(folder, 2), EXPECTED, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"dataset\[2\] must have one of the keys text, .* got image"):
        captions_of(folder[2], "dataset[2]")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"file_name": "a.png"}\n{"text": "x"}', r"line 2 of .*metadata\.jsonl must be a JSON object with file_name"),
        ("[1]", "line 1 of .* must be a JSON object with file_name"),
        ('{"file_name": "z.png"}', r"metadata\.jsonl of .* names 1 images that are not there: .*z\.png"),
    ],
)
def test_damaged_metadata_is_refused(tmp_path: Path, text: str, message: str) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        ImageFolder(tmp_path)


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ({"image": FLOAT, "text": "a"}, ["a"]),
        ({"image": FLOAT, "caption": ["a", "b"]}, ["a", "b"]),
        ({"image": FLOAT, "prompt": ("a",)}, ["a"]),
        ({"image": FLOAT, "captions": ["", "b"]}, ["", "b"]),
        ((FLOAT, "a"), ["a"]),
    ],
)
def test_captions_come_in_any_documented_form(item: Any, expected: list[str]) -> None:
    assert captions_of(item, "dataset[0]") == expected


@pytest.mark.parametrize(
    ("item", "error", "message"),
    [
        (FLOAT, TypeError, r"dataset\[7\] must be a dict or tuple with an image and a caption, got Tensor"),
        ((FLOAT, 3), TypeError, r"dataset\[7\] must have a string or a list of strings as caption, got int"),
        ({"text": ["a", None]}, TypeError, r"must have a string or a list of strings as caption, got NoneType"),
        ({"text": []}, ValueError, r"must have at least one caption, got an empty list"),
        ({"image": FLOAT}, ValueError, r"must have one of the keys text, caption, prompt, captions, got image"),
    ],
)
def test_what_is_no_caption_is_refused(item: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        captions_of(item, "dataset[7]")


@pytest.mark.parametrize(
    "item", [{"image": FLOAT, "label": 3}, {"class_labels": torch.tensor(3)}, (FLOAT, 3), (FLOAT, np.int64(3))]
)
def test_labels_come_in_any_documented_form(item: Any) -> None:
    assert label_of(item, "dataset[0]") == 3


@pytest.mark.parametrize("label", [3.0, "3", None])
def test_what_is_no_label_is_refused(label: Any) -> None:
    with pytest.raises(TypeError, match=r"dataset\[7\] must have an integer as class label, got"):
        label_of({"label": label}, "dataset[7]")
