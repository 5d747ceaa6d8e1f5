"""Every image stands in the Gram matrix with its own weight, whether the fit looked at it or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models import Images, SmallDenoiser, make_images, make_scheduler
from torch import Tensor

import journey
from journey.features import fit as fitting
from journey.features.features import Features
from journey.features.gram_blocks import GramBlock, measure_blocks, whole_matrix
from journey.measure.draws import StratifiedDraws
from journey.models.encoding import encode_some
from journey.projectors.random import CountSketch
from journey.projectors.scaled import Scaled

NUM_IMAGES = 7
IMAGES = Images(make_images(NUM_IMAGES))
EACH = 5  # pseudo-gradients of each image


def make_features(
    folder: Path, dataset: Any = IMAGES, seeds: tuple[int, ...] = (0,), fitted: int = NUM_IMAGES, **options: Any
) -> Features:
    """Features of seven images, and a fit that looked at so many of a dataset."""
    model = (SmallDenoiser(), make_scheduler())
    chosen: dict[str, Any] = {"projector": Scaled(CountSketch(128)), "progress": False}
    chosen["checkpoints"] = [SmallDenoiser(seed) for seed in seeds]
    journey.fit(model, dataset, folder / "fit", pseudo_gradients=EACH * fitted, **chosen, **options)
    return journey.featurize(model, IMAGES, folder / "rows", fit=folder / "fit", draws=StratifiedDraws(2), **chosen)


def blocks_of(features: Features, positions: list[int], checkpoint: int = 0) -> list[GramBlock]:
    denoiser = features.featurizer.denoiser
    denoiser.network.load_state_dict(features.checkpoints[checkpoint].state_dict())  # type: ignore[union-attr]
    samples = encode_some(denoiser, IMAGES, positions)
    return measure_blocks(features.featurizer, features.fit.gram(checkpoint), samples, positions, checkpoint)


def total(blocks: list[GramBlock]) -> Tensor:
    """Sum of their outer products. [proj_dim, proj_dim]."""
    return torch.stack([block.rows.double().T @ block.rows.double() for block in blocks]).sum(0)


def assert_equal(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected.double(), rtol=0, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("own_share", [0.5, 0.0, 1.0])
def test_the_blocks_of_all_images_make_up_the_matrix_of_each_checkpoint(tmp_path: Path, own_share: float) -> None:
    features = make_features(tmp_path, seeds=(1, 2), own_share=own_share)
    for checkpoint in (0, 1):
        gram = features.fit.gram(checkpoint)
        blocks = blocks_of(features, list(range(NUM_IMAGES)), checkpoint)
        assert all(block.in_fit for block in blocks)
        assert blocks[0].rows.shape == (10 * (own_share > 0) + EACH * (own_share < 1), 128)
        assert_equal(total(blocks) / NUM_IMAGES, gram.matrix)


def test_what_is_left_without_some_images_is_the_matrix_of_the_others(tmp_path: Path) -> None:
    """Candidates that the fit's sample holds count once: the matrix is made anew of the rows of the others."""
    features = make_features(tmp_path)
    gram, removed, others = features.fit.gram(), [5, 0, 3], [1, 2, 4, 6]
    blocks = blocks_of(features, removed)
    whole = whole_matrix(gram, blocks, NUM_IMAGES)
    assert_equal(whole, gram.matrix)
    expected = total(blocks_of(features, others)) / NUM_IMAGES
    assert_equal(whole - total(blocks) / NUM_IMAGES, expected)
    twice = gram.matrix.double() * (1 - len(removed) / NUM_IMAGES) + total(blocks) / NUM_IMAGES
    assert (twice - whole).abs().max() > 0.05 * whole.abs().max(), "a matrix that counts them twice is another one"


def test_images_that_the_fit_did_not_see_enter_by_their_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "IMAGES", 4)
    sampled = fitting.sampled_ids(NUM_IMAGES)
    features = make_features(tmp_path, fitted=4)
    gram, candidates = features.fit.gram(), [0, 2, 3, 6]
    blocks = blocks_of(features, candidates)
    assert [block.in_fit for block in blocks] == [position in sampled for position in candidates]
    rest = [position for position in sampled if position not in candidates]
    assert 0 < len(rest) < len(sampled)
    others = total(blocks_of(features, rest)) / len(rest)
    expected = (others * (NUM_IMAGES - len(candidates)) + total(blocks)) / NUM_IMAGES
    assert_equal(whole_matrix(gram, blocks, NUM_IMAGES), expected)
    all_of_fit = blocks_of(features, [*sampled, 2])
    expected = (gram.matrix.double() * (NUM_IMAGES - 5) + total(all_of_fit)) / NUM_IMAGES
    assert_equal(whole_matrix(gram, all_of_fit, NUM_IMAGES), expected)
    everything = blocks_of(features, list(range(NUM_IMAGES)))
    assert_equal(whole_matrix(gram, everything, NUM_IMAGES), total(everything) / NUM_IMAGES)


def test_a_fit_of_other_images_holds_none(tmp_path: Path) -> None:
    features = make_features(tmp_path, Images(make_images(NUM_IMAGES, seed=9)))
    assert not any(block.in_fit for block in blocks_of(features, [0, 4]))
