"""Batches that fit the memory, by measuring, and what happens when they do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models import Images, SmallDenoiser, make_images, make_scheduler

import journey
from journey.features import row_plan
from journey.gradients.memory import default_budget, is_out_of_memory, largest_batch
from journey.measure.draws import StratifiedDraws
from journey.projectors.random import CountSketch
from journey.store.store import FeatureStore

CPU = torch.device("cpu")
MIB = 2**20


def run(out: Path, **options: Any) -> journey.Features:
    """Featurize nine images, one file of them."""
    defaults = {"projector": CountSketch(64), "draws": StratifiedDraws(num_draws=2), "progress": False}
    return journey.featurize(
        (SmallDenoiser(), make_scheduler()), Images(make_images(9)), out, **{**defaults, **options}
    )


def take(mib_per_sample: int, sizes: list[int], size: int) -> None:
    """Use memory in proportion to the batch, and remember the batch."""
    sizes.append(size)
    torch.ones(size * mib_per_sample * MIB // 4).sum()


def test_the_largest_batch_fills_the_budget_and_does_not_exceed_it():
    sizes: list[int] = []
    largest = largest_batch(lambda size: take(32, sizes, size), CPU, sizes=[1, 2, 4], budget=1024 * MIB, most=1000)
    # 32 samples fit; a tenth is left free, and the allocator's own pages blur what is measured.
    assert 20 <= largest <= 32
    assert sizes == [1, 2, 4]


@pytest.mark.parametrize(("budget", "most", "expected"), [(48, 100, 1), (80, 100, 2), (10**6, 3, 2), (10**6, 1, 1)])
def test_small_budgets_and_small_datasets_bound_the_batch(budget, most, expected):
    def run(size: int) -> None:
        take(32, [], size)

    assert largest_batch(run, CPU, sizes=[1, 2, 5], budget=budget * MIB, most=most) == expected


def test_a_batch_never_exceeds_what_is_asked_for():
    assert largest_batch(lambda size: take(1, [], size), CPU, sizes=[1, 2, 4], budget=10**12, most=77) == 77


def test_a_sample_that_does_not_fit_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match=r"memory must be enough .* took 0\.\d+ GiB of the 0\.02 GiB allowed"):
        largest_batch(lambda size: take(64, [], size), CPU, sizes=[1, 2], budget=16 * MIB, most=10)


def test_running_out_while_measuring_bounds_the_batch_and_other_errors_pass():
    def scarce(size: int) -> None:
        if size > 2:
            torch.empty(2**58)

    assert largest_batch(scarce, CPU, sizes=[1, 2, 4], budget=10**12, most=100) == 2
    with pytest.raises(KeyError):
        largest_batch(lambda size: {}[size], CPU, sizes=[1, 2], budget=10**12, most=100)


def test_an_impossible_allocation_is_recognised_and_other_errors_are_not():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**58)
    assert is_out_of_memory(raised.value)
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


def test_half_of_the_free_memory_is_the_default():
    total = int(next(line for line in Path("/proc/meminfo").read_text().splitlines() if "MemTotal" in line).split()[1])
    assert 0 < default_budget(CPU) <= total * 1024 / 2


def test_auto_measures_once_and_a_second_run_keeps_the_batch(tmp_path, monkeypatch):
    features = run(tmp_path / "f", batch_size="auto")
    expected = run(tmp_path / "expected", batch_size=3).matrix()
    size = features.store.manifest.fingerprints["batch_size"]
    assert size == 9  # so small a model fits whole
    torch.testing.assert_close(features.matrix(), expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())

    def never(*args: Any, **options: Any) -> int:
        raise AssertionError("measured again")

    monkeypatch.setattr(row_plan, "largest_batch", never)
    assert torch.equal(run(tmp_path / "f", batch_size="auto").matrix(), features.matrix())


@pytest.mark.parametrize(("rows", "stored"), [(1, 0.5), (2, 1), (3, 1), (9, 4)])
def test_what_fits_is_kept_in_images_be_it_a_part_of_one(tmp_path, monkeypatch, rows, stored):
    expected = run(tmp_path / "expected", batch_size=9).matrix()
    with monkeypatch.context() as patch:
        patch.setattr(row_plan, "largest_batch", lambda *args, **options: rows)
        features = run(tmp_path / "f", batch_size="auto")
    assert features.store.manifest.fingerprints["batch_size"] == stored
    torch.testing.assert_close(features.matrix(), expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
    again = run(tmp_path / "f", batch_size="auto")  # measures nothing, but goes on with what was stored
    assert again.featurizer.rows_per_pass == stored * 2


def test_one_draw_of_an_image_is_measured_where_all_do_not_fit(tmp_path, monkeypatch):
    seen = []

    def measure(work, device, *, sizes, budget, most):
        for size in sizes:
            work(size)
        seen.append((sizes, most))
        return 1

    monkeypatch.setattr(row_plan, "largest_batch", measure)
    run(tmp_path / "f", batch_size="auto", draws=StratifiedDraws(num_draws=5), shard_size=3)
    assert seen == [([1, 2, 4, 5, 10, 20], 45)]


def test_running_out_while_measuring_is_told_to_the_measurement(tmp_path, monkeypatch):
    class Scarce(SmallDenoiser):
        def forward(self, x_t, timesteps):
            if len(x_t) > 4:
                torch.empty(2**58)
            return super().forward(x_t, timesteps)

    options = {"projector": CountSketch(64), "draws": StratifiedDraws(num_draws=2), "progress": False}
    model = (Scarce(), make_scheduler())
    features = journey.featurize(model, Images(make_images(9)), tmp_path / "f", batch_size="auto", **options)
    assert features.store.manifest.fingerprints["batch_size"] == 2
    assert FeatureStore.open(tmp_path / "f").is_complete


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": 10**9}, 'memory is the limit of batch_size="auto", got 1000000000 without it'),
        ({"batch_size": "auto", "memory": 0}, "memory must be a positive integer, got 0"),
    ],
)
def test_memory_without_auto_or_without_size_is_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "f", **options)
