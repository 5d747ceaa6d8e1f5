"""Sums over groups, held against losses that are made of them."""

from __future__ import annotations

import torch

from bench.retraining.groups import COUNT, IMAGES, MEANS, OWN, STRONGEST, compare_groups, group_scores, table
from bench.retraining.whole.truth import BINS, QUERY_KINDS, Truth
from journey.evaluate.subsets import random_subsets
from journey.scores.scores import Scores

LABELS = torch.arange(12) % 3
SHOWN = torch.arange(6) % 3  # two queries of each kind


def make_scores() -> Scores:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(6, 1, 12, generator=generator)
    values[torch.arange(6), 0] += 3.0 * (LABELS[None] == SHOWN[:, None])
    return Scores(values, torch.tensor([0]), list(range(12)), 0.1)


def test_every_way_to_use_groups_has_its_scores() -> None:
    scores = make_scores()
    found = group_scores(scores, LABELS, SHOWN)
    values = scores.values[:, 0]
    for q in range(6):
        sums = [values[q, g == LABELS].sum() for g in range(3)]
        strongest = max(range(3), key=lambda g: abs(sums[g]))
        for i in range(12):
            own = bool(LABELS[i] == SHOWN[q])
            assert found[IMAGES][q, i] == values[q, i]
            torch.testing.assert_close(found[MEANS][q, i], sums[LABELS[i]] / 4)
            assert found[OWN][q, i] == (values[q, i] if own else 0)
            assert found[STRONGEST][q, i] == (values[q, i] if LABELS[i] == strongest else 0)
            assert found[COUNT][q, i] == own


def test_losses_that_are_sums_of_scores_are_predicted_and_the_table_says_so() -> None:
    scores, subsets = make_scores(), random_subsets(12, 40)
    losses = -(scores.values[:, 0].double() @ subsets.members.double().T).T.float()  # [num_subsets, num_queries]
    seeds = torch.stack(
        [losses, losses + 0.01 * torch.randn(losses.shape, generator=torch.Generator().manual_seed(1))], 1
    )
    truth = Truth(subsets, 40, seeds[..., None].expand(-1, -1, -1, BINS))
    document = compare_groups(scores, LABELS, SHOWN, truth)
    for kind in QUERY_KINDS:
        assert document["rows"][IMAGES][kind][0] > 0.99
        assert 0.3 < document["rows"][MEANS][kind][0] < document["rows"][IMAGES][kind][0]
        assert 0.3 < document["rows"][OWN][kind][0] < document["rows"][IMAGES][kind][0]
    assert document["sums"]["own_first"] == 1
    text = table(document)
    assert text.splitlines()[2].startswith(f"| {IMAGES} | {document['rows'][IMAGES]['training'][0]:.2f} [")
    assert "highest of the ten sums for 100% of the queries" in text
