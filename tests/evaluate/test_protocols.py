"""Published protocols are the numbers of their papers, and what is retrained and measured follows them."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from cases import randn
from models import IMAGE, SmallDenoiser, make_images, make_scheduler

from journey.evaluate.lds import lds
from journey.evaluate.protocols import dtrak_protocol, kfac_protocol
from journey.measure.draws import UniformDraws

CPU = torch.device("cpu")


def test_the_dtrak_protocol_is_64_halves_three_seeds_and_every_timestep_under_three_noises() -> None:
    protocol = dtrak_protocol()
    assert (protocol.num_subsets, protocol.fraction, protocol.num_seeds) == (64, 0.5, 3)
    assert (protocol.num_queries, protocol.held_out) == (1000, True)
    assert len(protocol.draws) == 3
    for draws in protocol.draws:
        assert torch.equal(draws.timesteps([4], 1000)[0, 0], torch.arange(1000))
    noise = [draws.noise([4], (2,), CPU) for draws in protocol.draws]
    assert not torch.equal(noise[0], noise[1])


def test_the_kfac_protocol_is_100_halves_five_seeds_and_5000_draws() -> None:
    protocol = kfac_protocol()
    assert (protocol.num_subsets, protocol.fraction, protocol.num_seeds, protocol.num_queries) == (100, 0.5, 5, 1000)
    assert sum(draws.num_draws for draws in protocol.draws) == 5000
    assert len(set(protocol.draws[0].timesteps([0], 1000).flatten().tolist())) > 900


def test_runs_are_all_seeds_of_a_subset_after_each_other() -> None:
    protocol = replace(dtrak_protocol(), num_subsets=3, num_seeds=2)
    subsets = protocol.subsets(10, seed=1)
    assert subsets.members.sum(1).tolist() == [5, 5, 5]
    runs = protocol.runs(subsets)
    assert [run.seed for run in runs] == [0, 1, 0, 1, 0, 1]
    assert [run.indices for run in runs] == [subsets.indices(j) for j in (0, 0, 1, 1, 2, 2)]


def test_losses_are_means_over_all_draws_by_subset_and_seed_and_lds_takes_them() -> None:
    draws = (UniformDraws(300, antithetic=False), UniformDraws(300, antithetic=False, seed=1))
    protocol = replace(kfac_protocol(), num_subsets=3, num_seeds=2, draws=draws)
    nets, queries = [SmallDenoiser(seed) for seed in range(6)], make_images(2)
    losses = protocol.losses((SmallDenoiser(9), make_scheduler()), nets, queries, progress=False)
    assert losses.shape == (3, 2, 2)
    subset, seed, query = 1, 1, 1
    expected = []
    for some in draws:
        t, e = some.timesteps([query], 100).flatten(), some.noise([query], IMAGE, CPU)[0, 0]
        x_t = make_scheduler().add_noise(queries[query].expand_as(e), e, t)
        with torch.no_grad():
            expected.append(F.mse_loss(nets[2 * subset + seed](x_t, t), e))
    assert abs(losses[subset, seed, query] - sum(expected) / 2) <= 1e-5 * abs(losses[subset, seed, query])
    table = lds({"any": randn(2, 10)}, losses, protocol.subsets(10), num_bootstrap=2)
    assert table.ceiling is not None
