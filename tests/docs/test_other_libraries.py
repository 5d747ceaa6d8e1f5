"""Scores leave for other libraries the way round that these take them."""

from __future__ import annotations

import pytest
import torch
from cases import randn

from journey.evaluate.lds import lds, lds_per_query, predict_losses
from journey.evaluate.subsets import random_subsets
from journey.scores.scores import Scores

NUM_QUERIES, NUM_TRAIN = 3, 20
SCORES = Scores(randn(NUM_QUERIES, 2, NUM_TRAIN), torch.tensor([80, 40]), list(range(NUM_TRAIN)), 0.1)
SUBSETS = random_subsets(NUM_TRAIN, 8)
LOSSES = randn(8, 2, NUM_QUERIES, seed=1)


def test_quanda_gets_queries_first_and_dattri_training_images_first() -> None:
    assert torch.equal(SCORES.to_quanda(40), SCORES.values[:, 1])
    assert torch.equal(SCORES.to_dattri(40), SCORES.values[:, 1].T)
    assert torch.equal(SCORES.to_quanda("mean"), SCORES.values.mean(1))
    only = Scores(SCORES.values[:, :1], SCORES.timesteps[:1], SCORES.train_ids, 0.1)
    assert torch.equal(only.to_quanda(), SCORES.values[:, 0])
    assert only.to_dattri().is_contiguous()


def test_a_step_must_be_named_where_there_are_several() -> None:
    for step in (None, 30):
        with pytest.raises(ValueError, match=r'step must be one of the timesteps \[80, 40\] or "mean", got'):
            SCORES.to_quanda(step)


def test_columns_are_put_in_the_order_of_the_dataset() -> None:
    order = torch.randperm(NUM_TRAIN, generator=torch.Generator().manual_seed(0))
    names = [f"{i}.png" for i in range(NUM_TRAIN)]
    for ids, given in ((order.tolist(), None), (order.tolist(), range(NUM_TRAIN)), ([names[i] for i in order], names)):
        stored = Scores(SCORES.values[..., order], SCORES.timesteps, ids, 0.1)
        assert torch.equal(stored.to_quanda("mean", ids=given), SCORES.to_quanda("mean"))
        assert torch.equal(stored.to_dattri(40, ids=given), SCORES.to_dattri(40))


def test_columns_that_are_not_the_whole_dataset_are_refused() -> None:
    some = Scores(SCORES.values, SCORES.timesteps, list(range(1, NUM_TRAIN + 1)), 0.1)
    with pytest.raises(ValueError, match=r"columns must be all images of the dataset, .* give their ids"):
        some.to_dattri("mean")
    for ids in (range(NUM_TRAIN - 1), [*range(NUM_TRAIN - 1), 0]):
        with pytest.raises(ValueError, match="columns must be all images of the dataset"):
            SCORES.to_quanda("mean", ids=ids)


def test_sums_over_subsets_as_quanda_takes_them_are_what_losses_are_compared_with() -> None:
    explanations = SCORES.to_quanda("mean")
    sums = torch.stack([explanations[:, list(SUBSETS.indices(j))].sum(1) for j in range(len(SUBSETS))], 1)
    torch.testing.assert_close(-sums.double(), predict_losses(explanations, SUBSETS), rtol=1e-5, atol=1e-5)


def test_dattris_lds_is_ours_query_by_query() -> None:
    metric = pytest.importorskip("dattri.metric")
    indices = torch.tensor([SUBSETS.indices(j) for j in range(len(SUBSETS))])
    # Its responses are higher where the query is more likely, ours are losses.
    found, _ = metric.lds(SCORES.to_dattri(80), (-LOSSES.mean(1), indices))
    ours = lds_per_query(predict_losses(SCORES.to_quanda(80), SUBSETS), LOSSES.double())
    torch.testing.assert_close(found.double(), ours, rtol=1e-5, atol=1e-6)
    table = lds({"mine": SCORES.to_quanda(80)}, LOSSES, SUBSETS, num_bootstrap=2)
    assert abs(table.rows["mine"].lds.value - found.mean().item()) < 1e-5
