"""Groups of nearly parallel rows are found beyond the noise of their draws, and nothing else."""

from __future__ import annotations

import pytest
import torch
from cases import randn
from made_features import PROJ_DIM, make_features, metric
from models import Images, make_images
from torch import Tensor

from journey.audit.near_duplicates import Duplicates, Pair, equal_pictures, near_duplicates, with_equal


def make_means(num: int = 30) -> Tensor:
    """Rows with something in common, as those of one model have. [num, PROJ_DIM]"""
    return 2 * randn(num, PROJ_DIM, seed=3) + 0.3 * randn(PROJ_DIM, seed=4)


def test_copies_and_a_chain_of_copies_are_groups() -> None:
    means = make_means()
    means[7] = 1.5 * means[2]  # a row's length says nothing
    means[20], means[11] = means[12] + 0.1 * randn(PROJ_DIM, seed=8), means[12] - 0.1 * randn(PROJ_DIM, seed=9)
    found = near_duplicates(make_features(means, 1.0))
    assert sorted(found.groups) == [[2, 7], [11, 12, 20]]
    assert all(pairs[0].cosine == max(pair.cosine for pair in pairs) for pairs in found.pairs)
    assert not found.undecided


def test_no_pair_is_found_where_there_is_none() -> None:
    found = near_duplicates(make_features(make_means(), 1.0))
    assert found.groups == []
    assert 0 < found.null < 1


def test_an_altered_copy_is_told_by_being_by_far_the_nearest_of_its_original() -> None:
    means = make_means()
    means[7] = means[2] + 2 * randn(PROJ_DIM, seed=8)
    cluster = randn(PROJ_DIM, seed=10)
    for i, weight in ((14, 4.0), (15, 5.0), (16, 6.0)):  # alike, as many pictures of one thing are
        means[i] = means[i] + weight * cluster
    features = make_features(means, 0.5)
    assert near_duplicates(features, threshold=1.0).groups == [[2, 7]]


def test_the_cosine_is_that_in_the_damped_metric_without_the_noise() -> None:
    means = make_means()
    means[7] = means[2] + 0.5 * randn(PROJ_DIM, seed=8)
    kernel = means.double() @ metric(make_features(means), 1.0) @ means.double().T
    expected = (kernel[2, 7] / (kernel[2, 2] * kernel[7, 7]).sqrt()).item()
    found = [near_duplicates(make_features(means, 10.0, seed=s)) for s in range(20)]
    pairs = [next(p for group in one.pairs for p in group if p.ids == (2, 7)) for one in found]
    cosines = torch.tensor([pair.cosine for pair in pairs])
    assert cosines.mean().item() == pytest.approx(expected, abs=0.03)
    # At most: what shortens a product shortens the lengths too.
    assert cosines.std().item() < pairs[0].error < 0.2


def test_rows_of_noise_make_no_pair() -> None:
    means = make_means()
    means[4] = means[5] = 0.01 * means[6]
    found = near_duplicates(make_features(means, 3.0))
    assert not {4, 5} & {i for group in found.groups for i in group}


def test_a_threshold_of_the_callers_own_must_be_a_cosine() -> None:
    for wrong in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="threshold must be a cosine"):
            near_duplicates(make_features(make_means()), threshold=wrong)


def test_equal_pictures_are_duplicates_whatever_the_noise_says() -> None:
    pictures = make_images(4)[[0, 1, 0, 2, 0, 1, 3]]
    equal = equal_pictures(list(range(7)), Images(pictures))
    assert equal == [[0, 2, 4], [1, 5]]
    pair = Pair((0, 2), 0.5, 0.4)
    found = Duplicates([[1, 5, 6]], [[Pair((1, 5), 0.9, 0.0)]], 0.8, [pair, Pair((3, 6), 0.5, 0.4)])
    merged = with_equal(found, equal)
    assert merged.groups == [[0, 2, 4], [1, 5, 6]]
    assert merged.pairs[0] == [Pair((0, 2), 1.0, 0.0)]
    assert merged.undecided == [Pair((3, 6), 0.5, 0.4)]
