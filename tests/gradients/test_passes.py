"""How many draws go through a network at once changes nothing but what memory it takes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import randn
from hypothesis import given
from hypothesis import strategies as st
from models import IMAGE, Images, SmallDenoiser, make_images, make_scheduler
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import journey
from journey.curvature.ekfac import fit_ekfac
from journey.curvature.kfac import fit_kfac
from journey.curvature.whitened import Curvature
from journey.gradients import passes
from journey.gradients.passes import RowBudget, kept_bytes, split_rows
from journey.measure.draws import StratifiedDraws
from journey.measure.featurizer import Featurizer
from journey.measure.measurements import TrainingLoss
from journey.models.load import as_denoiser
from journey.projectors import scaled
from journey.projectors.random import CountSketch

NUM_SAMPLES, BINS, NUM_DRAWS = 3, 2, 3
NUM_ROWS = NUM_SAMPLES * BINS * NUM_DRAWS


class Watched(SmallDenoiser):
    """Remembers how many rows it was given at once, and runs out of memory with more than it has room for."""

    def __init__(self, room: int = 10**9) -> None:
        super().__init__()
        self.room = room
        self.seen: list[int] = []

    def forward(self, x_t: Tensor, timesteps: Tensor) -> Tensor:
        self.seen.append(len(x_t))
        if len(x_t) > self.room:
            torch.empty(2**58)
        return super().forward(x_t, timesteps)


class Scaled(SmallDenoiser):
    """Has a parameter that no layer rule covers."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, x_t: Tensor, timesteps: Tensor) -> Tensor:
        return super().forward(x_t, timesteps) * self.scale


def featurizer(network: nn.Module, rows: int | None = None, **options: Any) -> Featurizer:
    """Measure the training loss of a small denoiser."""
    fields: dict[str, Any] = {"measurement": TrainingLoss(), "projector": CountSketch(64), "rows_per_pass": rows}
    return Featurizer(as_denoiser((network, make_scheduler())), **{**fields, **options})


def batch() -> dict[str, Tensor]:
    """Images with draws that do not count alike, and regions."""
    times = torch.randint(0, 100, (NUM_SAMPLES, BINS, NUM_DRAWS), generator=torch.Generator().manual_seed(0))
    return {
        "images": make_images(NUM_SAMPLES),
        "timesteps": times,
        "noise": randn(NUM_SAMPLES, BINS, NUM_DRAWS, *IMAGE),
        "mask": torch.rand(NUM_SAMPLES, 1, 8, 8, generator=torch.Generator().manual_seed(1)),
        "weights": 0.5 + torch.rand(times.shape, generator=torch.Generator().manual_seed(2)),
    }


def small_run(network: nn.Module, out: Path, **options: Any) -> journey.Features:
    """Featurize nine images by the defaults, but for a small sketch and four draws."""
    defaults = {"projector": scaled.Scaled(CountSketch(64)), "draws": StratifiedDraws(2, bins=2), "progress": False}
    defaults["measurement"] = TrainingLoss()
    return journey.featurize((network, make_scheduler()), Images(make_images(9)), out, **{**defaults, **options})


def assert_close(found: Tensor, expected: Tensor) -> None:
    """Equal but for rounding."""
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 40))
def test_slices_hold_every_row_once_and_whole_groups_or_a_part_of_one(groups: int, each: int, most: int) -> None:
    parts = list(split_rows(groups, each, most))
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(groups * each))
    for part in parts:
        assert part.stop - part.start <= most
        whole = part.start % each == 0 and part.stop % each == 0
        assert whole if most >= each else part.start // each == (part.stop - 1) // each


def test_what_autograd_keeps_is_counted_once_and_without_the_weights() -> None:
    network = nn.Sequential(nn.Linear(4, 300), nn.Tanh(), nn.Linear(300, 2))
    x = randn(5, 4)
    # The input of the first layer, and that of the second, which is also what the tanh keeps.
    assert kept_bytes(network, lambda: network(x).sum()) == 4 * (5 * 4 + 5 * 300)


@pytest.mark.parametrize("make", [lambda: SmallDenoiser(), Scaled])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, 9, 100])
def test_features_and_values_are_the_same_for_any_number_of_rows_at_once(make: Callable[[], nn.Module], rows) -> None:
    given = batch()
    expected = featurizer(make(), NUM_ROWS, uncovered="autograd").features(**given)
    found = featurizer(make(), rows, uncovered="autograd").features(**given, check=True)
    for each, whole in zip(found, expected, strict=True):
        assert_close(each, whole)


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 7])
def test_no_more_rows_than_allowed_go_through_the_network(rows: int) -> None:
    network = Watched()
    featurizer(network, rows).features(**batch(), check=True)
    assert max(network.seen) == rows if rows < NUM_DRAWS else NUM_DRAWS <= max(network.seen) <= rows


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_norms_of_single_draws_are_the_same(rows: int) -> None:
    given = {name: x for name, x in batch().items() if name != "weights"}
    assert_close(featurizer(SmallDenoiser(), rows).norms(**given), featurizer(SmallDenoiser(), 18).norms(**given))


def test_the_sizes_of_layers_are_the_same_and_those_of_the_first_draws_where_a_bin_does_not_fit() -> None:
    given = {name: x for name, x in batch().items() if name != "mask"}
    whole = featurizer(SmallDenoiser(), NUM_ROWS).layer_sizes(**given)
    parts = featurizer(SmallDenoiser(), NUM_DRAWS + 1).layer_sizes(**given)
    assert parts.layers == whole.layers
    assert_close(parts.norms, whole.norms)
    assert_close(parts.largest, whole.largest)
    some = {name: x if name == "images" else x[:, :, :2] for name, x in given.items()}
    expected = featurizer(SmallDenoiser()).layer_sizes(**some)
    assert_close(featurizer(SmallDenoiser(), 2).layer_sizes(**given).norms, expected.norms)


def test_where_nobody_says_the_bytes_that_are_kept_decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Watched()
    expected = small_run(network, tmp_path / "expected").matrix()
    assert max(network.seen) > 3
    probe, times = randn(1, *IMAGE), torch.zeros(1)
    monkeypatch.setattr(passes, "_KEPT_BYTES", 4 * kept_bytes(network, lambda: network(probe, times).square().mean()))
    network.seen.clear()
    features = small_run(network, tmp_path / "found")
    assert max(network.seen) in (2, 3, 4)  # a little more is kept for the loss than counted here
    assert_close(features.matrix(), expected)
    network.seen.clear()
    trajectory = journey.record((network, make_scheduler()), seed=[0, 1], num_inference_steps=3, progress=False)
    journey.score(features, trajectory, progress=False)  # 16 noises of each query
    assert max(network.seen) in (2, 3, 4)


@pytest.mark.cuda
def test_on_a_gpu_half_of_the_free_memory_decides() -> None:
    network = Watched().cuda()
    probe, times = randn(1, *IMAGE).cuda(), torch.zeros(1, device="cuda")
    kept = kept_bytes(network, lambda: network(probe, times).square().mean())
    free = torch.cuda.mem_get_info()[0]
    rows = RowBudget(network).at_once(lambda rows: network(probe[rows], times[rows]).square().mean((1, 2, 3)), IMAGE)
    assert rows == pytest.approx(free / 2 / kept, rel=0.1)


def test_larger_images_go_through_in_smaller_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Watched()
    probe, times = randn(1, *IMAGE), torch.zeros(1)
    kept = kept_bytes(network, lambda: network(probe, times).square().mean())
    monkeypatch.setattr(passes, "_KEPT_BYTES", 8 * kept)
    one = featurizer(network)
    for side, most in ((8, (5, 6, 7, 8)), (16, (1, 2)), (8, (5, 6, 7, 8))):
        network.seen.clear()
        one.features(randn(8, 1, side, side), torch.ones(8, 1, 1).long(), randn(8, 1, 1, 1, side, side))
        assert max(network.seen) in most


def test_under_gradient_checkpointing_the_inputs_that_hooks_hold_are_counted() -> None:
    width, depth, rows = 32, 6, 5

    class Deep(nn.Module):
        def __init__(self, checkpointed: bool) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(depth)])
            self.checkpointed = checkpointed
            self.eval()

        def through(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x).tanh()
            return x

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.through, x, use_reentrant=False) if self.checkpointed else self.through(x)

    x = randn(rows, width)
    plain, checkpointed = (kept_bytes(net, lambda net=net: net(x).sum()) for net in (Deep(False), Deep(True)))
    assert plain == 4 * rows * width * (depth + 1)  # the input, and what each tanh gives
    assert checkpointed == 4 * rows * width * depth  # every layer's input
    frozen = Deep(True)
    frozen.requires_grad_(False)
    frozen.layers[0].requires_grad_(True)
    assert kept_bytes(frozen, lambda: frozen(x).sum()) == 4 * rows * width, "layers that are not measured hold nothing"


def test_running_out_halves_what_goes_through_at_once_and_loses_nothing(tmp_path: Path) -> None:
    expected = small_run(Watched(), tmp_path / "expected")
    trajectory = journey.record((Watched(), make_scheduler()), seed=[0, 1], num_inference_steps=3, progress=False)
    scores = journey.score(expected, trajectory, progress=False)
    network = Watched(room=5)
    with pytest.warns(UserWarning, match=r"memory ran out with 32 draws at once; going on with 16: .*allocate"):
        features = small_run(network, tmp_path / "found")
    assert_close(features.matrix(), expected.matrix())
    # In the fit; what follows knows.
    assert [network.seen.count(rows) for rows in (32, 16, 8)] == [1, 1, 1]
    assert max(network.seen[network.seen.index(8) + 1 :]) == 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = journey.score(features, trajectory, progress=False)
    assert_close(found.values, scores.values)


@pytest.mark.parametrize(("fit", "first"), [(fit_kfac, 18), (fit_ekfac, 72)])
def test_a_fit_that_runs_out_begins_again_with_half(fit: Callable[..., Curvature], first: int) -> None:
    images = make_images(9)

    def curvature(network: nn.Module) -> Tensor:
        blocks = fit((network, make_scheduler()), images, progress=False).blocks
        return torch.stack([b.scale.sum() if fit is fit_kfac else b.eigenvalues.sum() for b in blocks.values()])

    expected = curvature(SmallDenoiser())
    with pytest.warns(UserWarning, match=f"memory ran out with {first} draws at once; going on with {first // 2}"):
        found = curvature(Watched(room=first - 1))
    assert_close(found, expected)


def test_one_draw_that_does_not_fit_is_an_error_and_so_is_anything_else() -> None:
    with pytest.warns(UserWarning, match="going on with 1:"), pytest.raises(RuntimeError, match="allocate memory"):
        featurizer(Watched(room=0), 3).features(**batch())

    class Broken(SmallDenoiser):
        def forward(self, x_t: Tensor, timesteps: Tensor) -> Tensor:
            raise KeyError("its own")

    with pytest.raises(KeyError, match="its own"):
        featurizer(Broken(), 4).features(**batch())


def test_a_number_of_rows_that_is_not_positive_is_refused() -> None:
    with pytest.raises(ValueError, match="rows_per_pass must be positive, got 0"):
        featurizer(SmallDenoiser(), 0)
