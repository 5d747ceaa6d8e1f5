"""Copies of training images are told from images that were never trained on, with p-values that hold."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models import Images, make_images, make_scheduler, make_unet
from torch import Tensor

import journey
from journey.audit.copies import copies
from journey.evaluate.training import UNetTraining
from journey.features.features import Features
from journey.models.conditional import ConditionalDenoiser

TRAIN = make_images(16)
HELD_OUT = make_images(40, seed=9)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Features:
    """Of a network that has learned its sixteen images by heart, more or less."""
    model = (make_unet(), make_scheduler())
    network = UNetTraining(model, TRAIN, steps=100, batch_size=8)(range(16), seed=0)
    return journey.featurize(
        (network, make_scheduler()),
        Images(TRAIN),
        tmp_path_factory.mktemp("copies") / "features",
        draws=journey.StratifiedDraws(40),
        projector=journey.CountSketch(1024),
        progress=False,
    )


def ask(features: Features, images: Tensor, **options: object) -> list[journey.audit.copies.Copy]:
    return copies(features, images, held_out=HELD_OUT[:19], dataset=Images(TRAIN), progress=False, **options)


def test_exact_copies_are_found_with_the_smallest_p_value(features: Features) -> None:
    found = ask(features, TRAIN[3:7], top=3)
    assert [copy.ids[0] for copy in found] == [3, 4, 5, 6]
    assert {copy.p_value for copy in found} == {1 / 20}
    assert all(len(copy.ids) == len(copy.cosines) == len(copy.errors) == 3 for copy in found)
    assert all(copy.margin > 0 and copy.cosines[0] > copy.cosines[1] for copy in found)
    assert all(copy.distance == 0 and copy.structure == pytest.approx(1) for copy in found)
    assert all(copy.region is not None and copy.region.share == 1 for copy in found)


def test_the_p_value_is_the_rank_among_images_that_were_not_trained_on(features: Features) -> None:
    values = torch.tensor([copy.p_value for copy in ask(features, HELD_OUT[19:])])
    assert 0.3 < values.mean() < 0.75  # uniform, but for 21 images and a null of 19
    assert ((values * 20).round() / 20 == values).all()


def test_pixels_are_left_out_without_a_dataset(features: Features) -> None:
    (found,) = copies(features, TRAIN[:1], held_out=HELD_OUT[:19], progress=False)
    assert (found.distance, found.structure, found.region) == (None, None, None)


def test_what_cannot_be_answered_is_refused(features: Features, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 19 images"):
        copies(features, TRAIN[:1], held_out=HELD_OUT[:18], progress=False)
    with pytest.raises(ValueError, match="held_out must be different images, got two that are equal"):
        copies(features, TRAIN[:1], held_out=HELD_OUT[[0] * 19], progress=False)
    with pytest.raises(
        ValueError, match=r"held_out must be images that were never trained on, got one that is dataset\[5\]"
    ):
        copies(
            features, TRAIN[:1], held_out=torch.cat([HELD_OUT[:18], TRAIN[5:6]]), dataset=Images(TRAIN), progress=False
        )
    with pytest.raises(ValueError, match="top must be between"):
        ask(features, TRAIN[:1], top=17)
    with pytest.raises(ValueError, match="got none of id 3"):
        copies(features, TRAIN[3:4], held_out=HELD_OUT[:19], dataset=Images(TRAIN[:2]), progress=False)
    with pytest.raises(TypeError, match="features must be Features"):
        copies(str(tmp_path), TRAIN[:1], held_out=HELD_OUT)  # type: ignore[arg-type]


def test_held_out_images_are_told_what_the_image_is_told(tmp_path: Path) -> None:
    model = ConditionalDenoiser(make_unet(num_class_embeds=3), make_scheduler(), name="class_labels")

    def told(images: Tensor, labels: list[int]) -> list[dict[str, object]]:
        return [{"image": image, "label": label} for image, label in zip(images, labels, strict=True)]

    options = {"draws": journey.StratifiedDraws(4), "projector": journey.CountSketch(64), "progress": False}
    features = journey.featurize(model, told(TRAIN, [i % 3 for i in range(16)]), tmp_path / "f", **options)
    held_out, queries = HELD_OUT[:19], HELD_OUT[19:21]
    asked = {"num_draws": 4, "progress": False}
    expected = copies(features, told(queries, [1, 2]), held_out=told(held_out, [0] * 19), **asked)
    again = copies(features, told(queries, [1, 2]), held_out=told(held_out, [i % 3 for i in range(19)]), **asked)
    assert again == expected, "captions of held-out images count"
    for query, label in enumerate((1, 2)):
        one = copies(features, told(held_out, [label] * 19), held_out=told(held_out, [0] * 19), **asked)
        nearest = torch.tensor([copy.cosines[0] for copy in one])
        nearer = int((nearest >= expected[query].cosines[0]).sum())
        assert expected[query].p_value == (1 + nearer) / 20
