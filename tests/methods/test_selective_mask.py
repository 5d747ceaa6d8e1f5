"""A selective mask is close to the best of all masks, and leaves the entries that it says."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from models import SmallDenoiser, make_images, make_scheduler
from torch import Tensor

from journey.measure.draws import StratifiedDraws
from journey.measure.measurements import TrainingLoss
from journey.methods import grass
from journey.methods.selective_mask import Selected, agreement, fit_selective_mask, select_entries
from journey.models.condition import Encoded
from journey.models.denoiser import Denoiser
from journey.projectors.base import ParameterSlot
from journey.projectors.exact import Identity
from journey.projectors.random import CountSketch

ENTRIES, KEPT = 10, 4


def gradients(seed: int) -> tuple[Tensor, Tensor]:
    """Correlated gradients with a mean. [30, ENTRIES], [8, ENTRIES]."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(ENTRIES, ENTRIES, generator=generator)
    train, query = (torch.randn(n, ENTRIES, generator=generator) @ mix for n in (30, 8))
    return train + torch.randn(ENTRIES, generator=generator), query + torch.randn(ENTRIES, generator=generator)


def mask_of(entries: tuple[int, ...]) -> Tensor:
    return torch.zeros(ENTRIES).index_fill(0, torch.tensor(entries), 1.0)


def correlation_by_hand(mask: Tensor, train: Tensor, query: Tensor) -> float:
    pairs = [torch.stack([train @ q, (train * mask) @ (q * mask)]) for q in query]
    return sum(torch.corrcoef(pair)[0, 1].item() for pair in pairs) / len(pairs)


def test_agreement_is_the_mean_correlation_of_inner_products() -> None:
    train, query = gradients(0)
    mask = mask_of((1, 4, 7))
    assert agreement(mask, train, query).item() == pytest.approx(correlation_by_hand(mask, train, query), abs=1e-5)


def test_the_chosen_entries_are_nearly_the_best_of_all_choices() -> None:
    ranks, found, start = [], [], []
    for seed in range(8):
        train, query = gradients(seed)
        every = sorted(
            (agreement(mask_of(chosen), train, query).item() for chosen in combinations(range(ENTRIES), KEPT)),
            reverse=True,
        )
        assert len(every) == 210
        values = [
            agreement(select_entries(train, query, KEPT, num_steps=n).float(), train, query).item() for n in (0, 100)
        ]
        start.append(values[0])
        found.append(values[1])
        ranks.append(sum(value > values[1] + 1e-6 for value in every))
    # A choice at random would pass one of the eight with probability 5 / 210.
    assert max(ranks) < 5, f"of 210 choices, so many are better: {ranks}"
    assert sum(found) > sum(start), "the optimisation did not improve on the entries' own variance"


def test_entries_that_are_large_but_the_same_for_all_images_are_not_chosen() -> None:
    train, query = gradients(1)
    train[:, :5] = 100.0
    query[:, :5] = 100.0
    assert not select_entries(train, query, KEPT)[:5].any()


def test_a_projector_keeps_the_chosen_entries_and_no_others() -> None:
    kept = torch.rand(20, generator=torch.Generator().manual_seed(0)) < 0.5
    projector = Selected(Identity(), kept)
    slot, grads = ParameterSlot("w", 4, 3, 8), torch.randn(2, 4, 3)
    features = torch.zeros(2, projector.features_dim(20))
    projector.add_(features, slot, grads[:, :3])
    projector.add_(features, slot, grads[:, 3:], 3)
    expected = torch.zeros(2, 20)
    expected[:, 8:] = grads.flatten(1)
    assert torch.equal(features, expected * kept)
    assert Selected(Identity(), ~kept).fingerprint() != projector.fingerprint()
    with pytest.raises(ValueError, match="entry for each of 21 parameters"):
        projector.features_dim(21)


def test_the_preset_keeps_the_share_of_a_model_that_it_is_asked_for() -> None:
    model, samples = Denoiser(SmallDenoiser(), make_scheduler()), Encoded.single(make_images(12))
    draws = StratifiedDraws(num_draws=2)
    kept = fit_selective_mask(model, samples, draws=draws, measurement=TrainingLoss(), keep=0.25)
    assert kept.dtype == torch.bool
    assert kept.sum() == round(0.25 * 193)
    projector = grass(num_draws=2, keep=0.25, mask="selective").projector
    assert not isinstance(projector, CountSketch)
    assert callable(projector)
    assert torch.equal(projector(model, samples).kept, kept)


def test_wrong_sizes_are_refused() -> None:
    train, query = gradients(0)
    with pytest.raises(ValueError, match="num_kept must be between 1 and 10, got 11"):
        select_entries(train, query, 11)
    model = Denoiser(SmallDenoiser(), make_scheduler())
    with pytest.raises(ValueError, match="keep"):
        fit_selective_mask(
            model, Encoded.single(make_images(12)), draws=StratifiedDraws(2), measurement=TrainingLoss(), keep=0
        )
    with pytest.raises(ValueError, match="at least 10, got 40, 3"):
        fit_selective_mask(model, Encoded.single(make_images(3)), draws=StratifiedDraws(2), measurement=TrainingLoss())
    with pytest.raises(ValueError, match='"selective", got'):
        grass(mask="learned")  # type: ignore[arg-type]
