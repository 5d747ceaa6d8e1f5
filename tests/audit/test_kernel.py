"""The kernel of training images is that of numpy, without the noise's part on its diagonal."""

from __future__ import annotations

import pytest
import torch
from cases import randn
from made_features import PROJ_DIM, make_features, metric

from journey.audit.kernel import Kernel
from journey.audit.opponents import opponents
from journey.audit.self_influence import self_influence

MEANS = randn(9, PROJ_DIM, seed=1)


@pytest.mark.parametrize("checkpoints", [1, 2])
def test_without_noise_it_is_the_kernel_of_the_rows(checkpoints: int) -> None:
    features = make_features(MEANS, checkpoints=checkpoints)
    kernel = Kernel.of(features, damping=0.5)
    expected = MEANS.double() @ metric(features, 0.5) @ MEANS.double().T
    torch.testing.assert_close(kernel.own, expected.diagonal(), rtol=1e-5, atol=0)
    blocks = list(kernel.blocks())
    assert [block.first for block in blocks] == [0, 4]  # one of each shard
    torch.testing.assert_close(torch.cat([block.values for block in blocks]), expected, rtol=1e-4, atol=1e-4)
    assert kernel.own_errors.abs().max() == 0
    assert kernel.unit == 9 * 0.25  # images times the mean diagonal of the Gauss-Newton matrix


def test_the_diagonal_is_without_the_noise_and_its_error_is_that_of_repetitions() -> None:
    clean = Kernel.of(make_features(MEANS)).own
    runs = [Kernel.of(make_features(MEANS, 10.0, seed=seed)) for seed in range(100)]
    found = torch.stack([run.own for run in runs])
    raw = torch.stack([list_own(seed) for seed in range(20)]).mean(0)
    bias, left = (raw - clean).mean().item(), (found.mean(0) - clean).mean().item()
    assert bias > 0.2 * clean.mean()  # else there is nothing to take off
    assert abs(left) < 0.08 * bias
    stated = torch.stack([run.own_errors for run in runs]).square().mean(0).sqrt()
    ratio = found.std(0) / stated
    # The stated error takes the measured row for the mean: with much noise it is somewhat too large.
    assert 0.6 < ratio.mean() < 1.1


def list_own(seed: int) -> torch.Tensor:
    """The plain squares, by the inverse."""
    features = make_features(MEANS, 10.0, seed=seed)
    rows = features.rows[0].double()
    return ((rows @ metric(features, 1.0)) * rows).sum(1)


def test_errors_off_the_diagonal_are_those_of_repetitions() -> None:
    runs = [make_features(MEANS, 2.0, seed=seed) for seed in range(60)]
    blocks = [torch.cat([block.values for block in Kernel.of(run).blocks()]) for run in runs]
    stated = torch.cat([block.errors for block in Kernel.of(runs[0]).blocks()])
    off = ~torch.eye(9, dtype=torch.bool)
    ratio = (torch.stack(blocks).std(0) / stated)[off]
    assert 0.8 < ratio.mean() < 1.1


def test_self_influence_ranks_images_by_the_kernel_and_tells_changes_of_loss() -> None:
    means = MEANS * torch.arange(1, 10)[:, None]
    found = self_influence(make_features(means))
    own = Kernel.of(make_features(means)).own
    assert found.ids == own.argsort(descending=True).tolist()
    torch.testing.assert_close(found.loss_change, found.values / (9 * 0.25))


def test_an_image_against_all_others_comes_first_and_alone() -> None:
    common = randn(PROJ_DIM, seed=5)
    means = common + 0.1 * MEANS
    means[6] = -common
    found = opponents(make_features(means, 0.1))
    assert found.ids[0] == 6
    assert found.opponents == [6]
    assert found.against[0] == 1
    kernel = means.double() @ metric(make_features(means), 1.0) @ means.double().T
    expected = (kernel.sum(0) - kernel.diagonal())[6] / 8
    assert found.values[0].item() == pytest.approx(expected.item(), rel=0.05)
    assert found.loss_change[0] == found.values[0] / (9 * 0.25)


def test_the_error_of_a_mean_over_others_is_that_of_repetitions() -> None:
    means = randn(PROJ_DIM, seed=5) + MEANS
    runs = [opponents(make_features(means, 2.0, seed=seed)) for seed in range(60)]
    found = torch.stack([run.values[torch.tensor([run.ids.index(i) for i in range(9)])] for run in runs])
    stated = torch.stack([run.errors.mean() for run in runs]).mean()
    assert 0.7 < found.std(0).mean() / stated < 1.2


def test_features_that_do_not_know_their_noise_are_refused() -> None:
    with pytest.raises(ValueError, match="two independent halves"):
        Kernel.of(make_features(MEANS, float("nan")))
    with pytest.raises(ValueError, match="at least three images"):
        Kernel.of(make_features(MEANS[:2]))
    with pytest.raises(TypeError, match="features must be Features"):
        self_influence("features")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="damping"):
        self_influence(make_features(MEANS), damping=-1)
