"""Importance draws put timesteps where the density is and leave the mean over all timesteps as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from models import IMAGE, SmallDenoiser, make_images, make_scheduler
from torch import Tensor

import journey
from journey.features.open import open_features
from journey.measure.batch import measure_values
from journey.measure.draws import StratifiedDraws
from journey.measure.measurements import TrainingLoss
from journey.measure.shared_draws import SharedDraws
from journey.methods.method import Method
from journey.methods.preconditioners import Plain
from journey.models.denoiser import Denoiser
from journey.projectors.exact import Identity

CPU = torch.device("cpu")
IMAGES = make_images(4)
# More noise is drawn more often; no two timesteps alike.
DENSITY = [1 + t / 20 for t in range(100)]


def draws_of(num_draws: int = 4, **options: object) -> journey.ImportanceDraws:
    return journey.ImportanceDraws(num_draws, density=DENSITY, **options)  # type: ignore[arg-type]


def gradients(draws: journey.ImportanceDraws, ids: list[int]) -> tuple[Tensor, Tensor]:
    """Of every draw, by autograd, and its weight. [num_samples, num_draws, grad_dim], [num_samples, num_draws]."""
    net, scheduler, rows = SmallDenoiser(), make_scheduler(), []
    times, noise = draws.timesteps(ids, 100), draws.noise(ids, IMAGE, CPU)
    for i in range(len(ids)):
        for t, e in zip(times[i, 0], noise[i, 0], strict=True):
            loss = F.mse_loss(net(scheduler.add_noise(IMAGES[ids[i]][None], e[None], t[None]), t[None]), e[None])
            rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))]))
    # 1 / (n p(t)), with p the share of the density.
    weights = sum(DENSITY) / 100 / torch.tensor(DENSITY)[times[:, 0]]
    return torch.stack(rows).view(len(ids), draws.num_draws, -1), weights


def test_the_weighted_mean_is_exactly_the_mean_over_all_timesteps() -> None:
    # Whole densities that add up to the number of draws in each bin: a stratum lies within one timestep, so that every
    # timestep is drawn as often as its density says, wherever in the stratum the draw falls.
    draws = journey.ImportanceDraws(8, 2, antithetic=False, density=[1, 2, 4, 1, 3, 1, 2, 2])
    values = torch.tensor([3.0, -1.0, 5.0, 0.5, 2.0, 8.0, -4.0, 1.0], dtype=torch.float64)
    times = draws.timesteps([0, 5, 9], 8)
    weights = draws.row_weights(times, 8)
    found = (weights * values[times]).mean(2)
    expected = values.view(2, 4).mean(1).expand(3, 2)
    assert torch.allclose(found, expected, rtol=1e-6)
    assert not torch.allclose(values[times].mean(2), expected, rtol=1e-2)


def test_timesteps_are_drawn_as_often_as_their_density_says() -> None:
    density = [1.0, 3.0, 2.0, 10.0]
    times = journey.ImportanceDraws(1, antithetic=False, density=density).timesteps(list(range(4000)), 4).flatten()
    for t, share in enumerate(torch.tensor(density) / 16):
        deviation = (share * (1 - share) / 4000).sqrt()
        assert abs((times == t).double().mean() - share) < 5 * deviation


def test_an_even_density_gives_stratified_draws_that_count_alike() -> None:
    even, plain = journey.ImportanceDraws(6, 3, seed=2, density=[0.7] * 100), StratifiedDraws(6, 3, seed=2)
    times = even.timesteps([0, 7], 100)
    assert torch.equal(times, plain.timesteps([0, 7], 100))
    assert torch.equal(even.noise([0, 7], (2,), CPU), plain.noise([0, 7], (2,), CPU))
    assert torch.allclose(even.row_weights(times, 100), torch.ones(times.shape))


def test_draws_depend_on_the_sample_alone_and_pairs_share_timestep_and_weight() -> None:
    draws = draws_of(6, bins=2)
    times = draws.timesteps([3, 1, 8], 100)
    weights = draws.row_weights(times, 100)
    assert torch.equal(times[1:2], draws.timesteps([1], 100))
    assert torch.equal(times[..., 0::2], times[..., 1::2])
    assert torch.equal(weights[1:2], draws.row_weights(times[1:2], 100))
    shared = SharedDraws(draws)
    assert torch.equal(shared.row_weights(times, 100), weights)


def test_stored_features_are_weighted_means_of_gradients_whatever_the_batch(tmp_path: Path) -> None:
    draws, model = draws_of(), (SmallDenoiser(), make_scheduler())
    grads, weights = gradients(draws, [0, 1, 2, 3])
    expected = (weights[..., None] * grads).mean(1)
    options = {"draws": draws, "projector": Identity(), "progress": False}
    options |= {"measurement": TrainingLoss(), "row": "float32"}
    for batch_size in (1, 3):
        stored = journey.featurize(model, IMAGES, tmp_path / str(batch_size), batch_size=batch_size, **options)
        assert (stored.matrix() - expected).norm() <= 1e-5 * expected.norm()
    assert open_features(tmp_path / "3", model).draws == draws


def test_methods_and_values_honour_the_weights() -> None:
    draws, model = draws_of(), Denoiser(SmallDenoiser(), make_scheduler())
    grads, weights = gradients(draws, [0, 1, 2, 3])
    method = Method("test", "", draws=draws, projector=Identity(), preconditioner=Plain())
    for per_draw, rows in (("mean", grads), ("normalized", F.normalize(grads, dim=-1))):
        expected = (weights[..., None] * rows).mean(1)
        measured, _ = method.change(per_draw=per_draw).measure(model, IMAGES, IMAGES[:1], progress=False)
        assert (measured.train - expected).norm() <= 1e-5 * expected.norm()
    values = measure_values(model, IMAGES, draws=draws, measurement=TrainingLoss())
    assert torch.allclose(values[:, 0], measured.values, rtol=1e-5)
    with pytest.raises(ValueError, match="all count alike where they are kept apart"):
        method.change(per_draw="concatenated").measure(model, IMAGES, IMAGES[:1], progress=False)


def test_a_timestep_that_would_never_be_drawn_and_a_density_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"density must be positive at every timestep, got timesteps \[1\]"):
        journey.ImportanceDraws(density=[1.0, 0.0, 2.0])
    with pytest.raises(ValueError, match="density must have a number for each of the 50 timesteps, got 100"):
        draws_of().timesteps([0], 50)
